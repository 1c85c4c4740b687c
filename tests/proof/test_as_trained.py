"""Weights to check with: nothing of what layers start from hides a wrong cut."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from hfp.proof.as_trained import randomise, settle


def test_weights_are_made_to_matter() -> None:
    """What layers start from hides a wrong cut: zeros, ones, next to nothing."""
    model = nn.ModuleList([nn.BatchNorm2d(9), nn.LayerNorm(9), nn.Linear(9, 9)])
    constants = {"gamma": torch.full((9,), 1e-6), "alpha": torch.zeros(1), "table": torch.zeros(1, 4, 9)}
    for name, value in constants.items():
        model.register_parameter(name, nn.Parameter(value))
    nn.init.zeros_(model[2].weight)
    randomise(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.abs().max() > 0.01, name
            assert tensor.numel() == 1 or tensor.std() > 0.01, name
    assert 0.1 < model[2].weight.std() < 1


def test_statistics_are_those_of_what_comes_in() -> None:
    """Without that, the rounding of a deep network grows until it is all of the output; and a call alone sets them."""
    torch.manual_seed(0)
    layers = [(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(6)]
    model = randomise(nn.Sequential(*itertools.chain(*layers))).eval()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 30
    x = torch.randn(4, 8, 16, 16)
    assert model(x).abs().max() > 1e4
    settle(model, lambda: model(x))
    assert 0.5 < model[:-1](x).std() < 3
    after = copy.deepcopy(model.state_dict())
    model(2 * x)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
    settle(model, lambda: model(x[:0]))  # nothing comes in: the statistics stay
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
