"""Attention, graphs, normalisers, distances, recurrence, rearrangements: promises hold, what must be prunable is.

`pytest tests/test_any_network.py -k "fused_qkv and not alike"` runs one.
"""

from __future__ import annotations

import pytest
import torch
from attention import ATTENTION
from attention_layers import LAYERS
from constants import CONSTANTS
from gradients import GRADIENTS
from graphs import GRAPHS
from head_shares import SHARES
from normalisers import NORMALISERS
from pairs import PAIRS
from positions import POSITIONS
from promises import check_cut, measured, predicted, random_keep, snapshot
from rearranged import REARRANGED
from recurrent import RECURRENT
from sliced import SLICED
from specimen import Specimen

from hfp import trace
from hfp.model.inputs import arguments
from hfp.model.names import Names

ALL = {**ATTENTION, **SHARES, **CONSTANTS, **GRADIENTS, **GRAPHS, **LAYERS, **NORMALISERS, **PAIRS, **POSITIONS}
ALL |= {**RECURRENT, **REARRANGED, **SLICED}
WHOLE = {
    "grouped_convolution_and_group_norm": "groups of a convolution and of a norm are cut together",
    "shuffle_unit": "half of the output is made by the last layer",
}
"""What could be pruned and is not yet, and why: held to stay whole by a pin, never cut wrongly."""
every = pytest.mark.parametrize("specimen", ALL.values(), ids=ALL.keys())


def prunable_places(specimen: Specimen) -> set[str]:
    table = trace(specimen.model(), specimen.inputs())
    return {f"{tensor}/{dim}" for group in table.groups for tensor, dim in group.members}


@every
def test_specimens_run_with_nothing_at_its_initial_value(specimen: Specimen) -> None:
    """The specimens themselves: same output twice, tensors that `least` and `pinned` name, no constant parameter."""
    model = specimen.model()
    tensors = Names.of(model).tensors
    inputs = arguments(model, specimen.inputs())
    with torch.no_grad():
        first, second = (model(*inputs[0], **inputs[1]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.isfinite().all() and first.std() > 0
    assert all(p.numel() == 1 or p.std() > 0 for p in model.parameters())
    assert all(int(dim) < tensors[name].dim() for name, dim in (place.rsplit("/", 1) for place in specimen.least))
    assert set(specimen.pinned) <= set(tensors)


@every
def test_compacted_computes_what_gated_does_at_the_predicted_cost(specimen: Specimen) -> None:
    model = specimen.model()
    table = trace(model, specimen.inputs())
    inputs = arguments(model, specimen.inputs(seed=2))
    generator = torch.Generator().manual_seed(0)
    assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
    for density in (0.0, 0.3, 0.7):
        keep = random_keep(table, density, generator)
        check_cut(model, table, keep, inputs, tolerance=1e-9, training=not specimen.random)


@every
def test_trace_leaves_the_model_as_it_was(specimen: Specimen) -> None:
    model = specimen.model().train()
    before = snapshot(model)
    trace(model, specimen.inputs())
    assert snapshot(model) == before


@pytest.mark.parametrize("specimen", [s for s in ALL.values() if s.least], ids=lambda s: s.name)
def test_what_must_be_prunable_is(specimen: Specimen) -> None:
    assert bool(specimen.least - prunable_places(specimen)) == (specimen.name in WHOLE)


@pytest.mark.parametrize(
    "name, weight",
    [
        ("fused_qkv", "qkv.weight"),
        ("chunked_qkv", "qkv.weight"),
        ("bert", "att.query.weight"),
    ],
)
def test_heads_and_head_dimensions_go_separately(name: str, weight: str) -> None:
    """A row that makes queries belongs to a head (of 3) and to a place in it (of 4)."""
    specimen = ATTENTION[name]
    table = trace(specimen.model(), specimen.inputs())
    assert {3, 4} <= {group.width for group in table.groups if (weight, 0) in group.members}


@pytest.mark.parametrize("specimen", [s for s in ALL.values() if s.pinned], ids=lambda s: s.name)
def test_what_cannot_be_pruned_says_why(specimen: Specimen) -> None:
    table = trace(specimen.model(), specimen.inputs())
    reasons = {name: " ".join(row.reason for row in table.pinned if row.tensor == name) for name in specimen.pinned}
    assert [name for name, word in specimen.pinned.items() if word not in reasons[name] or not reasons[name]] == []
