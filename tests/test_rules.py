"""The zoo and the traps: every specimen gets the table that it states and keeps the promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from promises import Gated, call, check_cut, measured, predicted, random_keep, relative_difference, snapshot
from specimen import Net, Specimen
from torch import nn
from traps import TRAPS
from zoo import ZOO

import hfp
from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact
from hfp.model.inputs import arguments

ALL = {**ZOO, **TRAPS}
OUTPUT = "is an output of the network"
REFUSED = {"output_in_a_dataclass"}
"""Specimens that may be refused with a ValueError instead of being pinned."""

every = pytest.mark.parametrize("specimen", ALL.values(), ids=ALL.keys())
precisions = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def traced(specimen: Specimen, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ChannelTable]:
    model = specimen.model(dtype)
    try:
        return model, trace(model, specimen.inputs(dtype))
    except ValueError as refusal:
        if specimen.name in REFUSED:
            pytest.skip(f"refused: {refusal}")
        raise


def stated(groups: dict[str, int]) -> list[tuple[int, frozenset[str]]]:
    return sorted(((width, frozenset(places.split())) for places, width in groups.items()), key=str_sorted)


def found(table: ChannelTable) -> list[tuple[int, frozenset[str]]]:
    groups = [(g.width, frozenset(f"{tensor}/{dim}" for tensor, dim in g.members)) for g in table.groups]
    return sorted(groups, key=str_sorted)


def str_sorted(group: tuple[int, frozenset[str]]) -> tuple[int, list[str]]:
    return group[0], sorted(group[1])


@pytest.mark.parametrize("specimen", [s for s in ALL.values() if s.groups is not None], ids=lambda s: s.name)
def test_groups_and_pins_are_the_stated_ones(specimen: Specimen) -> None:
    _, table = traced(specimen)
    reasons = {row.tensor: row.reason for row in table.pinned if row.reason != OUTPUT}
    assert found(table) == stated(specimen.groups)
    assert set(reasons) == set(specimen.pinned)
    for tensor, word in specimen.pinned.items():
        assert word in reasons[tensor]


@every
@pytest.mark.parametrize("dtype, tolerance", precisions, ids=["float64", "float32"])
def test_compacted_computes_what_gated_does_at_the_predicted_cost(
    specimen: Specimen, dtype: torch.dtype, tolerance: float
) -> None:
    model, table = traced(specimen, dtype)
    inputs = arguments(model, specimen.inputs(dtype, seed=2))
    generator = torch.Generator().manual_seed(0)
    assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
    for density in (0.0, 0.25, 0.5, 0.5, 0.8):
        keep = random_keep(table, density, generator)
        check_cut(model, table, keep, inputs, tolerance, training=not specimen.random)


@every
def test_trace_and_compact_leave_the_model_as_it_was(specimen: Specimen) -> None:
    for training in (False, True):
        model = specimen.model().train(training)
        before = snapshot(model)
        try:
            table = trace(model, specimen.inputs())
        except ValueError:
            assert specimen.name in REFUSED
        else:
            compact(model, table, torch.ones(table.channels, dtype=torch.bool))
        assert snapshot(model) == before


@every
def test_every_layer_is_in_a_group_or_pinned_with_a_reason(specimen: Specimen) -> None:
    """Nothing is left out in silence."""
    model, table = traced(specimen)
    listed = {(row.tensor, row.dim) for row in table.pinned} | {
        place for group in table.groups for place in group.members
    }
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and f"{name}.weight" in table.axes and len(module.weight) > 1:
            assert (f"{name}.weight", 0) in listed
    assert all(row.reason and row.place.operator for row in table.pinned)


def test_the_checks_see_a_wrong_table() -> None:
    """b reads the channels of a in reversed order: cut by this table, it computes something else."""
    specimen = ZOO["chain"]
    model, table = traced(specimen)
    made, read, *kernel = table.axes["b.weight"]
    wrong = replace(table, axes={**table.axes, "b.weight": (made, read.flip(0), *kernel)})
    keep = torch.arange(table.channels) < 2
    inputs = (specimen.inputs(), {})
    gated = call(Gated(model, table, keep), inputs)
    assert relative_difference(gated, call(compact(model, table, keep), inputs)) < 1e-10
    assert relative_difference(gated, call(compact(model, wrong, keep), inputs)) > 0.01


def test_the_checks_see_a_single_nan() -> None:
    right = torch.ones(3)
    for wrong in (torch.tensor([1.0, float("nan"), 1.0]), torch.tensor([1.0, float("inf"), 1.0])):
        assert relative_difference([right, right], [wrong, right]) == float("inf")
        assert relative_difference(wrong, right) == float("inf")


@pytest.mark.parametrize("step, left", [(1, 8), (-1, 0)])
def test_other_strides_are_other_channels(step: int, left: int) -> None:
    """A view of the same shape may be the transposed one."""

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        return net.b(x.as_strided(x.shape, x.stride()[::step]))

    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    table = trace(model, torch.zeros(8, 5))
    assert table.channels == left
    assert hfp.verify(model, table) < 1e-5
