"""Parameters that modules hold in lists, tuples and dicts are gated and cut there, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import hfp

X = torch.zeros(4, 16)
Layers = Callable[[Any], Iterable[tuple[Tensor, Tensor]]]


class Net(nn.Module):
    """Two layers, of which the forward takes the weights by `layers`, and a last one."""

    def __init__(self, hold: Callable[[Any], Any], layers: Layers) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(24, 16)), nn.Parameter(torch.randn(20, 24))
        self.b1, self.b2 = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(20))
        self.last, self.layers = nn.Linear(20, 5), layers
        self.held = hold(self)

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in self.layers(self):
            x = linear(x, weight, bias).relu()
        return self.last(x)


HELD: dict[str, tuple[Callable[[Any], Any], Layers]] = {
    "by name": (lambda net: None, lambda net: [(net.w1, net.b1), (net.w2, net.b2)]),
    "lists": (lambda net: [[net.w1, net.w2], [net.b1, net.b2]], lambda net: zip(*net.held, strict=True)),
    "tuples": (lambda net: ((net.w1, net.b1), (net.w2, net.b2)), lambda net: net.held),
    "dict": (
        lambda net: {"w": {1: net.w1, 2: net.w2}, "b": [net.b1, net.b2], "n": 2},
        lambda net: [(net.held["w"][n], net.held["b"][n - 1]) for n in range(1, net.held["n"] + 1)],
    ),
    "in part": (lambda net: [net.w2], lambda net: [(net.w1, net.b1), (net.held[0], net.b2)]),
}


@pytest.mark.parametrize("how", HELD)
def test_what_is_held_is_pruned(how: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Net(*HELD[how])
    assert hfp.trace(model, X).channels == 44
    net = hfp.wrap(model, X, target_macs=0.3, steps=3, verify=True)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.1), momentum=0.9)
    x = torch.randn(4, 16)
    for _ in range(4):
        loss = net(x).square().mean() + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    small = net.compact(optimizer=optimizer)
    torch.testing.assert_close(small(x), net(x))
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    optimizer.step()
    hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", Net(*HELD[how]))
    torch.testing.assert_close(again(x), small(x))


def test_the_model_is_left_as_it_was() -> None:
    def fail(net: Any) -> Any:
        if net.fails:
            raise KeyError("weights")
        return net.held

    model: Any = Net(HELD["tuples"][0], fail)
    model.fails = False
    before = model.held
    net = hfp.wrap(model, X, target_macs=0.5)
    net(X)
    model.fails = True
    with pytest.raises(KeyError, match="weights"):
        net(X)
    assert model.held is before


def test_a_container_that_has_changed_is_taken_as_it_is() -> None:
    model: Any = Net(*HELD["lists"])
    net = hfp.wrap(model, X, target_macs=0.5)
    model.held = [[torch.zeros(20, 16)], [torch.ones(20)]]
    torch.testing.assert_close(net(X), model.last(torch.ones(4, 20)))
