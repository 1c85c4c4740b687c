"""The benchmark of all methods: a network through the command, and a promise that is broken."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import hfp

benchmark: Any = importlib.import_module("methods")


def run(monkeypatch: pytest.MonkeyPatch, output: Path) -> bool:
    """Whether the command fails."""
    command = ["methods.py", "--networks", "lenet5", "--methods", "pag", "prunenet", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    return bool(ended.value.code)


def test_rows_are_written_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "methods.json"
    assert not run(monkeypatch, output)
    before = output.read_text()
    rows = json.loads(before)["rows"]
    assert set(rows) == {f"lenet5/{method}/{budget}" for method in ("pag", "prunenet") for budget in ("macs", "params")}
    assert all(0.39 < row[f"{name.rpartition('/')[2]}_share"] <= 0.4 for name, row in rows.items())
    monkeypatch.setattr(benchmark, "examine", lambda *case: pytest.fail("made again"))
    assert not run(monkeypatch, output) and output.read_text() == before
    assert "prunenet" in capsys.readouterr().out


def test_a_broken_promise_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hfp.GatedModel, "macs", lambda net: 7)
    output = tmp_path / "methods.json"
    assert run(monkeypatch, output)
    assert all("AssertionError" in row["failed"] for row in json.loads(output.read_text())["rows"].values())


def test_the_committed_rows_are_complete_and_none_failed() -> None:
    rows = json.loads((benchmark.RESULTS / "methods.json").read_text())["rows"]
    networks, methods = [*benchmark.OURS, *benchmark.TORCHVISION], benchmark.METHODS
    assert set(rows) == {f"{n}/{m}/{b}" for n in networks for m in methods for b in benchmark.BUDGETS}
    assert all(row["error"] < benchmark.TOLERANCE for row in rows.values())
