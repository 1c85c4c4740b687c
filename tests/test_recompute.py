"""Activation checkpointing changes no gradient of a gated network, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from specimen import Net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hfp

Part = Callable[[Any, Tensor], Tensor]


def convolutions(net: Any, x: Tensor) -> Tensor:
    return net.b(F.relu(net.norm(net.a(x))))


def over_channels(net: Any, x: Tensor) -> Tensor:
    """Functions that have removed channels hidden from them, of which a layer norm is taken apart."""
    x = F.layer_norm(convolutions(net, x).movedim(1, -1), (12,)).softmax(-1)
    return F.layer_norm(x, (12,)).movedim(-1, 1)


def with_dropout(net: Any, x: Tensor) -> Tensor:
    return F.dropout(over_channels(net, x), 0.3)


def nested(net: Any, x: Tensor) -> Tensor:
    return over_channels(net, x) + checkpoint(over_channels, net, x, use_reentrant=False)


def sequential(net: Any, x: Tensor) -> Tensor:
    return checkpoint_sequential(nn.Sequential(net.a, nn.ReLU(), net.b), 2, x, use_reentrant=False)


def plainly(part: Part, net: Any, x: Tensor, **_: Any) -> Tensor:
    return part(net, x)


def trained(part: Part, checkpointed: Callable[..., Tensor], **options: Any) -> dict[str, Tensor | None]:
    """Gradients of weights and gates, when some channels are gone."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.layer_norm(net.first(x).movedim(1, -1), (8,)).movedim(-1, 1)  # the same function before and after
        x = checkpointed(part, net, x, **options)
        return net.last(F.layer_norm(x.movedim(1, -1), (12,)).mean((1, 2)))

    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 8, 3), "a": nn.Conv2d(8, 8, 3), "norm": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 12, 3)}
    net = hfp.wrap(Net(run, **layers, last=nn.Linear(12, 4)), torch.randn(1, 3, 12, 12), target_macs=0.4, steps=1)
    net.complexity_loss()
    x, y = torch.randn(4, 3, 12, 12), torch.randn(4, 4)
    torch.manual_seed(1)
    F.mse_loss(net(x), y).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("part", [convolutions, over_channels, with_dropout, nested, sequential])
def test_gradients_are_those_without_it(part: Part) -> None:
    expected, found = trained(part, plainly), trained(part, checkpoint, use_reentrant=False)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_has_a_backward_pass_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use_reentrant=True cannot train gates; call checkpoint\(.*False\)"):
        trained(convolutions, checkpoint, use_reentrant=True)


def test_without_gates_checkpoint_is_what_it_was() -> None:
    trained(convolutions, checkpoint, use_reentrant=False)
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    for reentrant in (True, False):
        layer.zero_grad()
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
        torch.testing.assert_close(layer.weight.grad, expected)
    with torch.no_grad():
        checkpoint(layer, x, use_reentrant=False)


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)),
    "softmax": lambda: nn.Sequential(nn.Linear(16, 24), nn.Softmax(-1), nn.Linear(24, 16)),
    "attention": transformer,
    "several": lambda: nn.Sequential(transformer(), nn.LayerNorm(16), transformer()),
}


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_has_no_code_of_the_users(name: str, always: bool) -> None:
    """In backward it is not to be seen any more where the model called it."""

    def gradients(recomputed: bool) -> list[Tensor | None]:
        def run(net: Any, x: Tensor) -> Tensor:
            for part in (net.part, net.other):
                if recomputed and (net.training or always):
                    x = checkpoint(part, net.norm(x), use_reentrant=False)
                else:
                    x = part(net.norm(x))
            return net.last(x)

        torch.manual_seed(0)
        layers = {"part": PARTS[name](), "other": PARTS[name](), "norm": nn.LayerNorm(16), "first": nn.Linear(5, 16)}
        model = Net(lambda net, x: run(net, net.first(x)), **layers, last=nn.Linear(16, 3))
        net = hfp.wrap(model, torch.randn(2, 7, 5), target_macs=0.5, steps=1).train()
        net.complexity_loss()
        net(torch.randn(2, 7, 5)).square().mean().backward()
        return [parameter.grad for parameter in net.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_what_a_forward_computes_anew_in_another_thread_does_not_wait_for_it() -> None:
    """On a GPU backward has threads of its own, and a forward may ask for gradients, as of an energy."""

    def energy(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x).tanh())

    def force(net: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        total = checkpoint(lambda x: energy(net, x).sum(), x, use_reentrant=False)
        return ThreadPoolExecutor(1).submit(torch.autograd.grad, total, x).result(20)[0]

    torch.manual_seed(0)
    model, x = Net(energy, a=nn.Linear(5, 12), b=nn.Linear(12, 3)), torch.randn(4, 5, requires_grad=True)
    net = hfp.wrap(model, x, target_macs=0.5, steps=1)
    net.complexity_loss()
    (expected,) = torch.autograd.grad(net(x).sum(), x)
    model.run = force
    assert not net.keep.all() and torch.equal(net(x), expected)


def whole(net: hfp.GatedModel, x: Tensor) -> Tensor:
    return net(x).square().mean() + net.complexity_loss()


@pytest.mark.parametrize("method", ["hfp", "ggp", "pag-rounds", "prunenet", "taylor", "slimming"])
def test_a_checkpoint_around_a_net_computes_anew_what_was_before_the_cut(method: str) -> None:
    def run(around: Callable[[hfp.GatedModel, Tensor], Tensor]) -> list[Tensor | None]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU())
        net = hfp.wrap(
            model.append(nn.Linear(10, 3)).double(),
            torch.randn(2, 6).double(),
            target_macs=0.4,
            steps=10,
            method=method,
        )
        optimizer = torch.optim.SGD(net.param_groups(lr=0.05), momentum=0.9)
        gradients = []
        for step in range(12):
            optimizer.zero_grad()
            around(net, torch.randn(8, 6).double()).backward()
            assert net.progress == min(1.0, (step + 1) / 10)
            gradients += [parameter.grad for parameter in net.parameters()]
            optimizer.step()
        return gradients

    def around(net: hfp.GatedModel, x: Tensor) -> Tensor:
        return checkpoint(net, x, use_reentrant=False).square().mean() + net.complexity_loss()

    def around_all(net: hfp.GatedModel, x: Tensor) -> Tensor:
        loss: Tensor = checkpoint(whole, net, x, use_reentrant=False)
        return loss

    for checkpointed in around, around_all:
        for found, expected in zip(run(checkpointed), run(whole), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_penalty_on_gradients_is_of_the_channels_that_are_live() -> None:
    """Of second order, and from within a backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    net = hfp.wrap(model, x, target_macs=0.5, steps=1, method="uniform")
    net(x), net.complexity_loss()
    small, found = net.compact(), []
    for called in net, small:
        out = called(x)
        out.register_hook(lambda grad: found.append(called(x).detach()))  # noqa: B023
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        found += torch.autograd.grad(gradient.square().sum(), x)
    half = len(found) // 2
    for own, expected in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(own, expected)
