"""Whether code can tell how many channels there are: where it cannot, nothing has to be tried."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from specimen import Net
from torch import Tensor, nn

from hfp import trace
from hfp.tracing.sizes import reads_widths, tells_size
from hfp.trial import trial

X = torch.zeros(1, 3, 8, 8)


def pair(run: Any, **parts: Any) -> Net:
    """Two convolutions, and `run(net, x)` between them."""
    return Net(lambda net, x: net.b(run(net, net.a(x))), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 1), **parts)


def trials(model: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor = X) -> int:
    """How many trials a trace makes."""
    made = []
    run = trial._Trial.run
    monkeypatch.setattr(trial._Trial, "run", lambda self: (made.append(self), run(self))[1])
    trace(model, x)
    return len(made)


def widened(net: Any, x: Tensor) -> Tensor:
    return x * width_of(net.a)


def width_of(layer: Any) -> int:
    return int(layer.out_channels)


BLIND = {
    "nothing": lambda net, x: x.relu(),
    "pooled": lambda net, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "added": lambda net, x: torch.cat([x, x.relu()], 2).amax(2, keepdim=True) + x,
    "batch": lambda net, x: x / x.shape[0] + x.size(0),
    "space": lambda net, x: F.interpolate(x, x.shape[-2:]) / x.shape[2:][0] + x.shape[2:3][0],
    "rank": lambda net, x: x if x.dim() == 4 and x.ndim == 4 else x.flatten(),
    "noise": lambda net, x: x * torch.empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(0.5),
}
SEEING = {
    "shape": lambda net, x: x / x.shape[1],
    "all of the shape": lambda net, x: x / max(1, len(tuple(x.shape))),
    "slice of the shape": lambda net, x: x / x.shape[1:][0] + x.shape[:2][1],
    "size": lambda net, x: x / x.size(1),
    "length": lambda net, x: x / len(x[0]),
    "elements": lambda net, x: x / x.numel(),
    "literal view": lambda net, x: x.view(-1, 6, 36).view(-1, 6, 6, 6),
    "literal constant": lambda net, x: x + torch.zeros(1, 6, 1, 1),
    "attribute": lambda net, x: x * net.a.out_channels,
    "attribute through a function": widened,
    "normalised": lambda net, x: F.layer_norm(x, (6, 6, 6)),
    "slice": lambda net, x: torch.cat([x[:, :3], x[:, 3:]], 1),
}


@pytest.mark.parametrize("name", BLIND)
def test_code_that_sees_no_width_needs_no_trial(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trials(pair(BLIND[name]), monkeypatch) == 0


@pytest.mark.parametrize("name", SEEING)
def test_code_that_may_see_a_width_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trials(pair(SEEING[name]), monkeypatch) > 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "squeezenet1_1"])
def test_common_networks_need_no_trial(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.get_model(name, weights=None)
    assert trials(model, monkeypatch, torch.zeros(1, 3, 64, 64)) == 0


def test_a_parallel_mode_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training calls what evaluation calls, and more: a dropout changes nothing, another path does."""
    seen = {"same": lambda net, x: F.dropout(x - x.shape[1], 0.1, net.training)}
    seen["other"] = lambda net, x: x - x.shape[1] if net.training else x - x.shape[1]
    assert trials(pair(seen["other"]), monkeypatch) == 2 * trials(pair(seen["same"]), monkeypatch)


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.width = self.a.out_channels  # before the run

    def unused(self) -> int:
        return self.a.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class ReadingLater(Reading):
    @property
    def scale(self) -> float:
        return self.unused() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.scale


@functools.lru_cache
def cached_width(layer: nn.Conv2d) -> int:
    return layer.out_channels


class ReadingThroughACache(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * cached_width(self.a)


def test_only_what_a_forward_may_call_is_looked_at() -> None:
    assert reads_widths(ReadingThroughACache(), [])
    assert not reads_widths(Reading(), [])
    assert reads_widths(ReadingLater(), [])
    assert reads_widths(Reading(), ["a"]), "whatever attribute changes"
    assert not reads_widths(torchvision.models.resnet18(weights=None), ["groups"])


@pytest.mark.parametrize(
    "function, out, tells",
    [("shape", torch.Size([2, 3]), True), ("size", 3, True), ("dim", 4, False), ("is_floating_point", True, False)],
)
def test_sizes_are_told_from_other_answers(function: str, out: Any, tells: bool) -> None:
    assert tells_size(function, out) is tells


def test_a_file_of_ones_own_may_be_called_like_one_of_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own code is not looked at."""
    (tmp_path / "this.py").write_text("def width(layer):\n    return layer.out_channels\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    width = importlib.import_module("this").width
    model = Net(lambda net, x: net.a(x) * width(net.a), a=nn.Conv2d(3, 4, 1))
    assert reads_widths(model, [])
    model.run = lambda net, x: net.a(x) * textwrap.indent("", "").count("")
    assert not reads_widths(model, ["splitlines"])
