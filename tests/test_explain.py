"""The report before any training: what it says is what is there, and it stays short enough to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
import torch
import torchvision
from oddities import ODDITIES
from promises import measured
from specimen import Specimen
from torch import nn
from traps import POSITIONS
from zoo import ZOO

import hfp
from hfp.explain import SHOWN_ROWS, folded, table_data
from hfp.surgery import compact
from hfp.trial import smallest_cut

PRUNABLE = ["chain", "residual", "squeeze_and_excite", "dense_block", "flattened", "keyword_inputs"]


def arguments(specimen: Specimen) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    given = specimen.inputs()
    return ((), given) if isinstance(given, dict) else (given, {})


# ---------------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_range_is_that_of_networks_that_can_be_made(name: str) -> None:
    """Counted by PyTorch, in the network itself and in the smallest that can be cut from it."""
    specimen = ZOO[name]
    model = specimen.model()
    table = hfp.trace(model, specimen.inputs())
    data = table_data(table)
    for which, network in (("dense", model), ("smallest", compact(model, table, smallest_cut(table)))):
        assert (data["macs"][which], data["params"][which]) == measured(network, arguments(specimen))
    for cost in ("macs", "params"):
        assert data[cost]["share"] == pytest.approx(data[cost]["smallest"] / data[cost]["dense"])


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_groups_of_the_data_are_those_of_the_network(name: str) -> None:
    specimen = ZOO[name]
    data = table_data(hfp.trace(specimen.model(), specimen.inputs()))
    assert json.loads(json.dumps(data)) == data
    found = {
        " ".join(f"{place['tensor']}/{place['dim']}" for place in group["places"]): group["width"]
        for group in data["groups"]
    }
    assert specimen.groups is not None
    assert {frozenset(key.split()): width for key, width in found.items()} == {
        frozenset(key.split()): width for key, width in specimen.groups.items()
    }
    tensors = dict(specimen.model().named_parameters())
    for group in data["groups"]:
        assert group["made_by"] and group["read_by"] and 1 <= group["least"] <= group["width"]
        one_dim = [place for place in group["places"] if place["tensor"] in tensors]
        assert group["params"] >= max(tensors[place["tensor"]].numel() // 2 for place in one_dim) > 0


@pytest.mark.parametrize("specimen", [s for s in (*POSITIONS.values(), *ODDITIES.values()) if s.pinned], ids=str)
def test_whatever_stays_whole_has_a_reason_and_a_place(specimen: Specimen) -> None:
    """Operator and source line; only the outputs of the network have none."""
    data = table_data(hfp.trace(specimen.model(), specimen.inputs()))
    rows = {row["tensor"]: row for row in data["pinned"]}
    for tensor, reason in specimen.pinned.items():
        assert reason in rows[tensor]["reason"] and rows[tensor]["channels"] > 0
        if rows[tensor]["operator"] != "output":
            assert re.fullmatch(r"\w+\.py:\d+", rows[tensor]["line"])


# ---------------------------------------------------------------------------------------------- for a person


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv1", "fc"], ["conv1", "fc"]),
        (["a.0", "a.1", "a.2", "a.5"], ["a.{0-2,5}"]),
        (["a.0.b", "a.0.b"], ["a.0.b"]),
        (["s1.0.w", "s1.1.w", "s3.0.w", "s3.1.w"], ["s{1,3}.{0-1}.w"]),
        (["s1.0.w", "s1.1.w", "s3.0.w"], ["s1.{0-1}.w", "s3.0.w"]),
        (["a.9", "a.10", "b"], ["a.{9-10}", "b"]),
        (["7", "8"], ["{7-8}"]),
        ([], []),
    ],
)
def test_names_are_folded(names: list[str], expected: list[str]) -> None:
    assert folded(names) == expected


def unfolded(name: str) -> Iterable[str]:
    """All that a folded name stands for."""
    found = re.search(r"\{([\d,-]+)\}", name)
    if not found:
        return [name]
    runs = [run.split("-") for run in found[1].split(",")]
    numbers = [number for run in runs for number in range(int(run[0]), int(run[-1]) + 1)]
    return [full for n in numbers for full in unfolded(name[: found.start()] + str(n) + name[found.end() :])]


@pytest.mark.parametrize("network", ["densenet121", "regnet_y_400mf", "mnasnet0_5"])
def test_folding_loses_no_name(network: str) -> None:
    names = [name for name, _ in torchvision.models.get_model(network, weights=None).named_modules()]
    assert sorted(full for name in folded(names) for full in unfolded(name)) == sorted(names)
    assert len(folded(names)) < len(names) / 3


class Rolled(nn.Conv2d):
    """What it makes is rolled by one channel, so it stays whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).roll(1, 1)


@pytest.mark.parametrize("blocks", [3, SHOWN_ROWS + 1])
def test_long_tables_are_folded_and_short_ones_are_not(blocks: int) -> None:
    """In every block a layer that can be pruned, and one that cannot."""
    layers = (nn.Sequential(nn.Conv2d(4, 6, 1), Rolled(6, 4, 1)) for _ in range(blocks))
    text = str(hfp.trace(nn.Sequential(*layers), torch.zeros(1, 4, 8, 8)))
    groups, pinned = text.split("Stays whole")
    places = [(f"{n}", f"{n}", 4) for n in range(blocks)]
    if blocks > SHOWN_ROWS:
        every = f"{{0-{blocks - 1}}}"
        places = [(f"0-{blocks - 1}", every, 4 * blocks)]
    for number, block, count in places:
        assert re.search(rf"^ +{number} +6 +{re.escape(block)}.0 +{re.escape(block)}.1 ", groups, re.MULTILINE)
        assert re.search(rf"^ {re.escape(block)}.1 +{count} .* roll in {re.escape(block)}.1 ", pinned, re.MULTILINE)
    assert len(text.splitlines()) < 35
