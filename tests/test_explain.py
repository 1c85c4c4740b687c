"""The report before any training: what it says is what is there, and it stays short enough to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from operator import attrgetter
from types import SimpleNamespace

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
import models
from hfp import trace
from hfp.cutting.surgery import compact
from hfp.explain import PLAIN_WIDTH, SHOWN_ROWS, _few, folded, table_data, table_text
from hfp.trial.keeps import smallest_cut


@pytest.fixture(autouse=True)
def plain_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests may say how wide its terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


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


@pytest.mark.parametrize(
    "specimen", [s for s in (*POSITIONS.values(), *ODDITIES.values()) if s.pinned], ids=attrgetter("name")
)
def test_whatever_stays_whole_has_a_reason_and_a_place(specimen: Specimen) -> None:
    """Operator and source line; only the outputs of the network have none."""
    data = table_data(hfp.trace(specimen.model(), specimen.inputs()))
    rows = {row["tensor"]: row for row in data["pinned"]}
    for tensor, reason in specimen.pinned.items():
        assert reason in rows[tensor]["reason"] and rows[tensor]["channels"] > 0
        if rows[tensor]["operator"] != "output":
            assert re.fullmatch(r"\w+\.py:\d+", rows[tensor]["line"])


# ---------------------------------------------------------------------------------------------- for a person


def columns(text: str) -> list[list[str]]:
    """The first lines of the rows of tables without frames; a line of blanks at first goes on with the one above."""
    bodies = [body.strip("\n").split("\n\n")[0] for body in re.split(r"^ -+$", text, flags=re.MULTILINE)[1:]]
    lines = [line for body in bodies for line in body.splitlines() if not line.startswith(10 * " ")]
    return [re.split(r" {2,}", line.strip()) for line in lines]


@pytest.mark.parametrize("name", sorted(ODDITIES))
def test_text_is_plain_wherever_it_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours, nothing that an old encoding lacks; and a notebook shows nothing in place of giving it."""
    specimen = ODDITIES[name]
    table = hfp.trace(specimen.model(), specimen.inputs())
    text = str(table)
    assert "can be pruned" in text and "parameters" in text
    assert text.isascii() and "\x1b" not in text
    assert repr(table) == text
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(table) == text
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(table) == text


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


class Blend(nn.Module):
    """A residual pair that can be pruned, and an output that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def test_the_channel_table_in_words() -> None:
    text = table_text(trace(Blend(), torch.zeros(1, 3, 4, 4)))
    assert text == str(trace(Blend(), torch.zeros(1, 3, 4, 4)))
    assert text.startswith("8 channels in 1 groups can be pruned")
    groups, pinned = text.split("Stays whole")
    groups, reach = groups.split("Within reach")
    assert columns(groups) == [["0", "8", "stem, body", "body, head", "100.0 %", "100.0 %"]]
    # One channel: 16 positions x 9 x (3 + 1) + 10, and 9 x (3 + 1) + 10.
    assert columns(reach) == [["MACs", "586", "12,752", "4.6 %"], ["parameters", "46", "872", "5.3 %"]]
    assert columns(pinned) == [["head", "10", "is an output of the network", "output"]]
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_table_keeps_within_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = table_text(trace(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 32, 32)))
    assert max(map(len, text.splitlines())) <= min(width, PLAIN_WIDTH)
    assert "features.10.conv.0.0," in text.split()  # the longest name that is listed is not broken
    assert "features.{7-10}.conv.2" in text.split()


def test_long_lists_of_layers_are_cut() -> None:
    assert _few(["conv", "fc"]) == "conv, fc"
    assert _few(["a.0", "a.1", "a.2", "a.3", "b"]) == "a.{0-3}, b"
    assert _few(["a.w", "b.w", "c.w", "d.w", "e.w"]) == "a.w, b.w, c.w and 2 more"


def test_groups_that_share_their_layers_can_be_told_apart() -> None:
    """A stage that is padded on both sides: its halves have the same convolutions."""
    rows = columns(table_text(trace(models.build("resnet20"))))
    assert [row[2].split(",")[0] for row in rows if row[1] == "8"] == [
        f"layer2.0.shortcut.{side}" for side in ("before", "after")
    ]


def test_a_network_without_groups() -> None:
    text = table_text(trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)))
    assert text.startswith("0 channels in 0 groups can be pruned\n")
    reach, pinned = text.split("Stays whole")
    assert columns(reach) == [["MACs", "3,888", "3,888", "100.0 %"], ["parameters", "112", "112", "100.0 %"]]
    assert columns(pinned) == [["weight", "4", "is an output of the network", "output"]]


def test_a_network_without_channels() -> None:
    text = table_text(trace(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), torch.zeros(1, 3, 8, 8)))
    assert text.endswith("\nNo layer has channels.")


class Elsewhere(nn.Module):
    """Reads its weights from an object of its own, in which nothing can stand in for them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 8))
        self.held = SimpleNamespace(first=self.first, second=self.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.held.first.T).relu() @ self.held.second.T


def test_parameters_that_are_taken_from_elsewhere() -> None:
    text = table_text(trace(Elsewhere(), torch.zeros(1, 4)))
    assert "No operator was given a parameter that a module has." in text


class Bessel(nn.Conv2d):
    """A convolution whose weight goes through an operator that no rule knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, torch.special.bessel_j0(self.weight), self.bias)


def test_a_layer_that_is_pinned_in_several_dims_is_named_once() -> None:
    table = trace(nn.Sequential(nn.Conv2d(3, 6, 3), Bessel(6, 4, 3)), torch.zeros(1, 3, 8, 8))
    assert len({pinned.dim for pinned in table.pinned if pinned.tensor == "1.weight"}) > 1
    rows = [row for row in columns(table_text(table)) if row[0] == "1" and "without a rule" in row[2]]
    assert [row[1:3] for row in rows] == [["4", "is touched by an operator without a rule"]]
    assert rows[0][3].startswith("special_bessel_j0 in 1 (test_explain.py:")


class Decoder(nn.Module):
    """Writes out how many channels a vector is viewed as; what is space in it cannot be cut anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32 * 16), nn.ConvTranspose2d(32, 3, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu().view(-1, 32, 4, 4)
        return self.last(x * 2)


def test_what_held_the_last_factor_of_a_product_is_the_reason() -> None:
    (pinned, _) = trace(Decoder(), torch.randn(2, 8)).pinned
    assert pinned.tensor == "first.weight" and pinned.place.operator == "view"
    assert "'[-1, 32, 4, 4]' is invalid" in pinned.reason
