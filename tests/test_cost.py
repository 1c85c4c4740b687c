"""Costs: exact as integers, differentiable between, the same as counting by hand."""

from __future__ import annotations

import pytest
import torch
from promises import random_keep
from specimen import Specimen
from zoo import ZOO

from hfp import trace
from hfp.cost import Factor, build


def test_a_cost_by_hand() -> None:
    """7 * (2 + live of channels 0, 1, 1) * (live of channel 2) + 5."""
    two = Factor.of(torch.tensor([-1, -1, 0, 1, 1]))
    one = Factor.of(torch.tensor([2]))
    cost = build(3, [(7, (two, one)), (5, ()), (3, (Factor.of(torch.tensor([-1])),))])
    for keep in ([1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0]):
        a, b, c = keep
        assert cost.count(torch.tensor(keep, dtype=torch.bool)) == 7 * (2 + a + 2 * b) * c + 5 + 3


def test_terms_of_equal_factors_are_added_up() -> None:
    factor = Factor.of(torch.tensor([0, 1]))
    cost = build(2, [(3, (factor,)), (4, (Factor.of(torch.tensor([0, 1])),))])
    assert len(cost.coefficients) == 1
    assert cost.dense() == 14


def test_no_terms_cost_nothing() -> None:
    assert build(2, []).dense() == 0


def test_counts_are_exact_far_above_float32() -> None:
    factor = Factor.of(torch.arange(2))
    assert build(2, [(2**51 + 1, (factor,))]).dense() == 2**52 + 2


@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_the_gradient_is_that_of_finite_differences(specimen: Specimen) -> None:
    """Costs are linear in each single channel, so differences are exact."""
    table = trace(specimen.model(), specimen.inputs())
    keep = random_keep(table, 0.5, torch.Generator().manual_seed(0)).double().requires_grad_()
    for cost in (table.macs, table.params):
        (gradient,) = torch.autograd.grad(cost(keep), keep)
        for channel in range(table.channels):
            with_, without = keep.detach().clone(), keep.detach().clone()
            with_[channel], without[channel] = 1, 0
            if len(set(cost.entries[1].tolist())) and degree_of(cost, channel) < 2:
                assert float(gradient[channel]) == pytest.approx(cost.count(with_ > 0) - cost.count(without > 0))


def degree_of(cost, channel: int) -> int:  # type: ignore[no-untyped-def]
    """How often the channel may stand in one product: twice where a layer reads and makes the same channels."""
    axes = cost.entries[0][cost.entries[1] == channel]
    return int(torch.isin(cost.factors, axes).sum(1).max()) if cost.factors.numel() else 0


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "dense_block"])
def test_more_channels_never_cost_less(name: str) -> None:
    table = trace(ZOO[name].model(), ZOO[name].inputs())
    keep = random_keep(table, 0.0, torch.Generator().manual_seed(0))
    before = (table.macs.count(keep), table.params.count(keep))
    for channel in (~keep).nonzero().flatten().tolist():
        keep[channel] = True
        now = (table.macs.count(keep), table.params.count(keep))
        assert now[0] > before[0] and now[1] > before[1]
        before = now
    assert before == (table.macs.dense(), table.params.dense())


def test_macs_grow_with_the_batch_and_the_image() -> None:
    model = ZOO["chain"].model()
    one, four = (trace(model, torch.zeros(b, 3, 8, 8, dtype=torch.float64)).macs.dense() for b in (1, 4))
    wide = trace(model, torch.zeros(1, 3, 8, 16, dtype=torch.float64)).macs.dense()
    assert (four, wide) == (4 * one, 2 * one)
