"""Costs: exact as integers, differentiable between, the same as counting by hand."""

from __future__ import annotations

import pytest
import torch
from promises import random_keep
from specimen import Specimen
from zoo import ZOO

from hfp import trace
from hfp.cost import Factor, build

NONE = torch.empty(0, 0, dtype=torch.long)
"""No products of channels."""


def test_a_cost_by_hand() -> None:
    """7 * (2 + live of channels 0, 1, 1) * (live of channel 2) + 5."""
    two = Factor.of(torch.tensor([-1, -1, 0, 1, 1]))
    one = Factor.of(torch.tensor([2]))
    cost = build(3, [(7, (two, one)), (5, ()), (3, (Factor.of(torch.tensor([-1])),))], NONE)
    for keep in ([1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0]):
        a, b, c = keep
        assert cost.count(torch.tensor(keep, dtype=torch.bool)) == 7 * (2 + a + 2 * b) * c + 5 + 3


def test_terms_of_equal_factors_are_added_up() -> None:
    factor = Factor.of(torch.tensor([0, 1]))
    cost = build(2, [(3, (factor,)), (4, (Factor.of(torch.tensor([0, 1])),))], NONE)
    assert len(cost.coefficients) == 1
    assert cost.dense() == 14


def test_a_cost_of_products_by_hand() -> None:
    """Rows of a projection are heads (0, 1) times places (2, 3, 4); one row more stays, and channel 2 has one alone."""
    products = torch.cartesian_prod(torch.arange(2), torch.arange(2, 5))
    rows = Factor.of(torch.tensor([5, 6, 7, 8, 9, 10, -1, 2]))
    cost = build(5, [(3, (rows,)), (2, (rows, Factor.of(torch.tensor([0, 1]))))], products)
    for bits in range(32):
        keep = torch.tensor([bool(bits >> i & 1) for i in range(5)])
        heads, places = int(keep[:2].sum()), int(keep[2:].sum())
        live = heads * places + 1 + int(keep[2])
        assert cost.count(keep) == 3 * live + 2 * live * heads


def test_by_group_products_count_where_every_pair_is_there() -> None:
    """Two heads times three places, whichever are live; but not where a pair is missing, or a place has a row more."""
    products, group_of = torch.cartesian_prod(torch.arange(2), torch.arange(2, 5)), torch.tensor([0, 0, 1, 1, 1])
    every = Factor.of(torch.tensor([5, 6, 7, 8, 9, 10, -1, 0, 1]))
    cost = build(5, [(3, (every, Factor.of(torch.arange(2, 5))))], products)
    short = cost.by_group(group_of, 2)
    assert short is not None
    for heads in range(3):
        for places in range(4):
            assert short(torch.tensor([heads, places])) == 3 * (heads * places + 1 + heads) * places
    for rows in ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10, 2], [5, 5, 6, 7, 8, 9, 10]):
        assert build(5, [(3, (Factor.of(torch.tensor(rows)),))], products).by_group(group_of, 2) is None
    assert cost.by_group(torch.zeros(5, dtype=torch.long), 1) is None


@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_by_group_the_cost_is_that_of_any_channels(specimen: Specimen) -> None:
    table = trace(specimen.model(), specimen.inputs())
    for cost in (table.macs, table.params):
        short = cost.by_group(table.group_of, len(table.groups))
        keep = random_keep(table, 0.5, torch.Generator().manual_seed(0))
        live = torch.tensor([int(keep[group.channels].sum()) for group in table.groups])
        assert short is None or short(live) == cost.count(keep)


def test_gradients_of_products_are_those_of_finite_differences() -> None:
    """Also where gates are 0: what one more head would cost depends on the places that are left."""
    products = torch.cartesian_prod(torch.arange(2), torch.arange(2, 5))
    cost = build(5, [(3, (Factor.of(torch.arange(5, 11)),))], products)
    gates = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(cost(gates), gates)[0].tolist() == [6.0, 6.0, 3.0, 3.0, 3.0]


def test_no_terms_cost_nothing() -> None:
    assert build(2, [], NONE).dense() == 0


def test_counts_are_exact_far_above_float32() -> None:
    factor = Factor.of(torch.arange(2))
    assert build(2, [(2**51 + 1, (factor,))], NONE).dense() == 2**52 + 2


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
