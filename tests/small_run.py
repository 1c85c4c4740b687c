"""A small network under gates, and steps of training that prune it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import hfp

X = torch.randn(2, 3, 8, 8)
STEPS = 20  # of the schedule


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def train(net: hfp.GatedModel, optimizer: Any, first: int, last: int) -> list[float]:
    """Steps `first` to `last` on data of their own; the losses."""
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator)
        loss = nn.functional.cross_entropy(net(images), labels) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def wrapped(**options: Any) -> tuple[hfp.GatedModel, torch.optim.Optimizer]:
    net = hfp.wrap(network().train(), X, **({"target_macs": 0.4, "steps": STEPS} | options))
    return net, torch.optim.SGD(net.param_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
