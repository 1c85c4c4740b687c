"""Custom operators without a rule: those that treat each channel by itself are found out, others leave it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from specimen import Net, parameter
from torch import Tensor, nn

import hfp

X = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))  # time, batch, channels


def custom(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator that PyTorch cannot look into; its gradient is that of its function."""

    def opaque(x: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            return run(x.detach(), y.detach()).clone()

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        given = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            found = torch.autograd.grad(run(*given), given, grad, allow_unused=True)
        return found[0], found[1] if found[1] is not None else torch.zeros_like(given[1])

    made = torch.library.custom_op(f"untold::{run.__name__}", opaque, mutates_args=())
    made.register_fake(lambda x, y: torch.empty_like(x))
    made.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return made


@custom
def fires(x: Tensor, y: Tensor) -> Tensor:
    return x * (x > 0.3) + y


@custom
def filtered(x: Tensor, y: Tensor) -> Tensor:
    """Mixes along time, each channel by itself."""
    return x.cumsum(0) * torch.sigmoid(y) + x.mean(1, keepdim=True)


@custom
def normalised(x: Tensor, y: Tensor) -> Tensor:
    return x.softmax(-1) + y


@custom
def turned(x: Tensor, y: Tensor) -> Tensor:
    return x.flip(-1) + y


@custom
def noisy(x: Tensor, y: Tensor) -> Tensor:
    return x + torch.rand_like(x) + y


@custom
def choosy(x: Tensor, y: Tensor) -> Tensor:
    if bool((x < 0).any()):
        raise ValueError("a rate is negative")
    return x + y


def net(function: Callable[..., Tensor]) -> Net:
    torch.manual_seed(0)
    run = lambda net, x: net.c(function(net.b(net.a(x).relu()).relu(), net.y))  # noqa: E731
    return Net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 12), y=parameter(12), c=nn.Linear(12, 4))


@pytest.mark.parametrize("function", [fires, filtered], ids=["fires", "filtered"])
def test_what_treats_channels_one_by_one_needs_no_rule(function: Callable[..., Tensor]) -> None:
    gated = hfp.wrap(net(function), X, target_macs=0.4, steps=1, verify=True)
    places = {member for group in gated.table.groups for member in group.members}
    assert {("b.weight", 0), ("y", 0), ("c.weight", 1)} <= places
    small = gated.eval().compact()
    assert small.b.out_features < 12  # type: ignore[operator, union-attr]
    gated.keep = small.hfp_record.keep  # type: ignore[assignment, union-attr]
    torch.testing.assert_close(small(X), gated(X))


@pytest.mark.parametrize("function", [normalised, turned, noisy, choosy], ids=str)
def test_what_does_not_or_will_not_tell_leaves_them_whole(function: Callable[..., Tensor]) -> None:
    model, state = net(function), torch.get_rng_state()
    table = hfp.trace(model, X)
    assert torch.equal(state, torch.get_rng_state())
    assert [group.width for group in table.groups] == [6]
    (reason,) = {row.reason for row in table.pinned if row.tensor in ("b.weight", "y")}
    assert reason.startswith('is touched by an operator without a rule (@hfp.rule("untold::')


def test_an_axis_on_which_all_is_alike_may_be_mixed() -> None:
    """A frame that is shown to a spiking network time and again."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).unsqueeze(0).repeat(3, 1, 1)
        return net.c(filtered(h, torch.zeros_like(h)))

    model = Net(run, a=nn.Linear(8, 12), c=nn.Linear(12, 4))
    (group,) = hfp.trace(model, X[0]).groups
    assert {("a.weight", 0), ("c.weight", 1)} <= set(group.members)
    assert hfp.verify(model, hfp.trace(model, X[0])) < 1e-5


def test_no_operator_is_given_integers_that_nobody_meant() -> None:
    """They may be places in memory."""
    given: list[torch.Tensor] = []

    @torch.library.custom_op("untold::picked", mutates_args=())
    def picked(x: Tensor, places: Tensor) -> Tensor:
        given.append(places)
        return x.clone()

    picked.register_fake(lambda x, places: torch.empty_like(x))
    model = Net(lambda net, x: net.c(picked(net.a(x), net.places)), a=nn.Linear(8, 6), c=nn.Linear(6, 4))
    model.places = torch.tensor([3, 1])
    assert not hfp.trace(model, X).groups
    assert not given


@torch.library.custom_op("untold::scan", mutates_args=())
def scan(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A leaky sum over time, and what it has come to."""
    every = []
    for now in x:
        state = 0.5 * state + now
        every.append(state)
    return torch.stack(every), state.clone()


scan.register_fake(lambda x, state: (torch.empty_like(x), torch.empty_like(state)))


def test_a_scan_over_time_passes_its_channels_on_in_both_outputs() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h, state = scan(net.a(x), torch.zeros_like(net.b(x[0])))
        return net.c(h + scan(net.b(x), state)[1])

    torch.manual_seed(0)
    model = Net(run, a=nn.Linear(8, 12), b=nn.Linear(8, 12), c=nn.Linear(12, 4))
    table = hfp.trace(model, X)
    (group,) = table.groups
    assert {"a.weight", "b.weight", "c.weight"} <= {tensor for tensor, _ in group.members}
    assert hfp.verify(model, table) < 1e-5
