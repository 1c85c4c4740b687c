"""Transforms of torch.func in a forward: axes that they hide from the code are followed, counted and cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from promises import check_cut, measured, predicted, random_keep
from specimen import Net, parameter
from torch import Tensor, nn
from torch.nn.functional import linear

import hfp
from hfp.cutting.surgery import compact


def through(x: Tensor, *layers: Any) -> Tensor:
    """Not by their own forward: PyTorch's counter hooks into that, and fails where gradients are asked for."""
    for layer in layers:
        x = linear(x.tanh(), layer.weight, layer.bias)
    return x


def energy(net: Any, x: Tensor) -> Tensor:
    return through(x, net.a, net.b, net.c).sum()


def mapped_layers(net: Any, x: Tensor) -> Tensor:
    """One small network a row of the parameters: an ensemble."""

    def one(first: Tensor, second: Tensor) -> Tensor:
        return linear(linear(x, first).relu(), second)

    return torch.vmap(one)(net.w1, net.w2)


def per_example(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    weights = torch.einsum("bk,koi->boi", net.mix(x).softmax(-1), net.w)
    return net.b(torch.vmap(linear)(x, weights).relu())


def matrices(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.b(torch.vmap(torch.matmul)(x[:, None], (x[:, :, None] * net.w)[:, None])[:, 0, 0])


TRANSFORMED: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], tuple[int, ...], int]] = {
    "vmap of a module": (
        lambda net, x: torch.vmap(net.b)(torch.vmap(net.a)(x).relu()),
        {"a": nn.Linear(4, 12), "b": nn.Linear(12, 3)}, (7, 5, 4), 12,
    ),
    "vmap over parameters": (mapped_layers, {"w1": parameter(5, 16, 4), "w2": parameter(5, 2, 16)}, (6, 4), 16),
    "vmap over weights of each example": (
        per_example,
        {"a": nn.Linear(3, 12), "mix": nn.Linear(12, 4), "b": nn.Linear(16, 3), "w": parameter(4, 16, 12)}, (2, 3), 20,
    ),
    "vmap of a product of matrices": (
        matrices, {"a": nn.Linear(4, 12), "b": nn.Linear(12, 3), "w": parameter(12, 12)}, (5, 4), 0
    ),
    "grad": (
        lambda net, x: torch.func.grad(lambda y: energy(net, y))(x),
        {"a": nn.Linear(4, 12), "b": nn.Linear(12, 10), "c": nn.Linear(10, 1)}, (3, 4), 22,
    ),
    "jacrev": (
        lambda net, x: torch.func.jacrev(lambda y: energy(net, y))(x),
        {"a": nn.Linear(4, 12), "b": nn.Linear(12, 10), "c": nn.Linear(10, 1)}, (3, 4), 22,
    ),
    "vjp": (
        lambda net, x: torch.func.vjp(lambda y: through(y, net.a, net.b), x)[1](torch.ones(3, 2).to(x))[0],
        {"a": nn.Linear(4, 12), "b": nn.Linear(12, 2)}, (3, 4), 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
def test_what_a_transform_hides_is_counted_and_cut(name: str) -> None:
    run, layers, shape, least = TRANSFORMED[name]
    torch.manual_seed(0)
    model = Net(run, **layers).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    table, given = hfp.trace(model, x), ((x,), {})
    assert table.channels >= least
    for density in (1.0, 0.5, 0.0):
        keep = random_keep(table, density, torch.Generator().manual_seed(0))
        assert predicted(table, keep) == measured(compact(model, table, keep), given)
        check_cut(model, table, keep, given, 1e-10)


@pytest.mark.parametrize("method", ["hfp", "taylor", "ggp"])
@pytest.mark.parametrize("norm", [True, False])
def test_gradients_of_each_example_are_those_of_steps_of_their_own(method: str, norm: bool) -> None:
    """By `vmap` of `grad`, in the first call of a network as in any."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.LayerNorm(16) if norm else nn.ReLU(), nn.Tanh(), nn.Linear(16, 3)]
    x = torch.randn(4, 6, dtype=torch.float64)
    net = hfp.wrap(nn.Sequential(*layers).double(), x, target_macs=0.6, steps=10, method=method)
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, (parameters, buffers), (row[None],))
        return out.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    wanted = [name for name, parameter in parameters.items() if parameter.requires_grad]
    for number, row in enumerate(x):
        expected = torch.autograd.grad(net(row[None]).square().sum(), [parameters[name] for name in wanted])
        for name, gradient in zip(wanted, expected, strict=True):
            torch.testing.assert_close(found[name][number], gradient)
    torch.testing.assert_close(torch.func.jacrev(net)(x), torch.autograd.functional.jacobian(net, x))


def test_a_transform_over_which_channels_are_live_is_refused() -> None:
    nets = [
        hfp.wrap(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)), torch.zeros(1, 6), target_macs=0.5) for _ in "ab"
    ]
    parameters, buffers = torch.func.stack_module_state(nets)
    with pytest.raises(ValueError, match="has to know its live channels; let it transform parameters and inputs alone"):
        torch.vmap(lambda *own: torch.func.functional_call(nets[0], own, (torch.zeros(1, 6),)))(parameters, buffers)
