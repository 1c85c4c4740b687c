"""The speed benchmark: its fit, its rows and its limits, on small things; no timing is judged."""

from __future__ import annotations

import dataclasses
import importlib
import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

speed: Any = importlib.import_module("speed")
LIMITS = {"limit": 60.0, "memory": 8.0}


class Small(speed.Network):
    """A network that no library has."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


SMALL = Small("small", ((1, 3, 8, 8),), 4)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_fit_finds_the_exponent(power: float) -> None:
    sizes = [60, 110, 450, 900]
    assert speed.exponent(sizes, [3e-3 * size**power for size in sizes]) == pytest.approx(power)


def test_a_row_of_a_small_network() -> None:
    messages = speed.in_a_process(speed.in_turns, SMALL, 2, **LIMITS)
    row = speed.row_of(SMALL, messages)
    assert set(row["hfp_parts"]) == {"trace", "keep", "compact"} and row["rounds"] == 2
    assert row["hfp_seconds"] > 0
    assert ("ratio" in row) != ("peer_failed" in row)  # it is an extra, and may not be there


def test_a_trace_without_weights() -> None:
    model = speed.without_weights(SMALL)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    (row,) = speed.in_a_process(speed.measured, SMALL, **LIMITS)
    assert row["operators"] >= 4
    assert row["bytes"] == 4 * ((3 * 9 + 1) * 8 + 4 * 8 + (8 * 9 + 1) * 4) + 8  # the count of batches is an int64


def test_networks_are_timed_in_turns() -> None:
    other = dataclasses.replace(SMALL, name="other")
    turns = list(speed.in_a_process(speed.timed, [SMALL, other], 2, **LIMITS))
    assert [name for name, _ in turns] == ["small", "other"] * 2 and all(seconds > 0 for _, seconds in turns)


def sends_its_peak(send: Callable[[Any], None]) -> None:
    send(speed.peak_memory(lambda: torch.ones(2**25).numel()))


def test_peak_memory_sees_what_is_given_back() -> None:
    # in a process of its own: the heap of this one may hold as much that was given back and is used again
    ((peak, size),) = speed.in_a_process(sends_its_peak, **LIMITS)
    assert size == 2**25
    assert peak is None or 1.2e8 < peak < 3e8  # 2**25 floats are 1.34e8 bytes


def sends_once(send: Callable[[Any], None]) -> None:
    send(("hfp", {"trace": 1.0}))
    while True:
        pass


def takes_memory(send: Callable[[Any], None]) -> None:
    send(len(bytearray(2**32)))


def test_a_network_that_hangs_keeps_what_came_before() -> None:
    row = speed.row_of(SMALL, speed.in_a_process(sends_once, limit=8.0, memory=8.0))
    assert row["hfp_seconds"] == 1.0
    assert row["peer_failed"] == "TimeoutError: nothing within 8 CPU seconds"


def test_memory_is_limited() -> None:
    with pytest.raises(ChildProcessError, match="died"):
        list(speed.in_a_process(takes_memory, limit=60.0, memory=2.0))


def turns(*results: Any) -> Iterator[tuple[str, Any]]:
    return iter([(("hfp", "peer")[i % 2], {"a": r} if isinstance(r, float) else r) for i, r in enumerate(results)])


CASES = [
    ((1.0, 2.0, 2.0, 8.0, 4.0, 12.0), 3.0),  # the median of the ratios of neighbours, 2, 4 and 3
    (("KeyError: x", 2.0), None),
    ((1.0, "KeyError: x"), None),
]


@pytest.mark.parametrize(("results", "ratio"), CASES)
def test_ratios(results: tuple[Any, ...], ratio: float | None) -> None:
    assert speed.row_of(SMALL, turns(*results)).get("ratio") == ratio


def test_the_summary_counts_a_failure_of_ours_as_slower() -> None:
    rows = {str(number): speed.row_of(SMALL, turns(*results)) for number, (results, _) in enumerate(CASES)}
    figures = speed.summary(rows)
    assert figures["networks"] == 3 and figures["hfp_can"] == 2 and figures["peer_can"] == 2
    assert figures["as_fast_or_faster"] == 1 and figures["median_ratio"] == 1.5
    assert list(figures["slowest"]) == ["1", "0"]


def test_a_run_that_is_ended_early_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names: list[str] = []

    def measured(_: Any, network: Any, *rest: Any, **limits: Any) -> Iterator[tuple[str, Any]]:
        names.append(network.name)
        if names == ["a", "b"]:
            raise KeyboardInterrupt
        return iter([("hfp", {"trace": 1.0, "keep": 0.5, "compact": 0.5}), ("peer", {"construct": 2.0, "step": 4.0})])

    monkeypatch.setattr(speed, "torchvision_networks", lambda: [Small(name) for name in "abc"])
    monkeypatch.setattr(speed, "in_a_process", measured)
    options = Namespace(output=tmp_path / "peers.json", only="", rounds=1, limit=1.0, memory=1.0)
    with pytest.raises(KeyboardInterrupt):
        speed.peers(options)
    saved = json.loads(options.output.read_text())
    assert list(saved["networks"]) == ["a"] and saved["summary"]["median_ratio"] == 3.0
    assert speed.peers(options)["summary"]["networks"] == 3
    assert names == ["a", "b", "b", "c"]
    monkeypatch.setattr(speed, "engine", lambda: "another")
    speed.peers(options)
    assert names[4:] == ["a", "b", "c"], "rows of other code say nothing"
