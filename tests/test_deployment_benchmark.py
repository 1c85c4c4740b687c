"""The benchmark of deployment: a network through the command, what counts as the same, and the committed figures."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

benchmark: Any = importlib.import_module("deployment")
COMMITTED = benchmark.RESULTS / "deployment.json"


@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_rows_are_written_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing} not installed")
    output = tmp_path / "deployment.json"
    stages = ["eager", "channels_last", "onnxruntime", "checks"]
    monkeypatch.setattr(benchmark, "NETWORKS", ("lenet5",))
    monkeypatch.setattr("hfp.deploy.rounding.SECONDS", 0.0)
    command = ["deployment.py", "--stages", *stages, "--seconds", "0", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            benchmark.main()
        assert not ended.value.code
        written = output.read_text()
        monkeypatch.setattr(benchmark, "cut", lambda *case: pytest.fail("made again"))
    row = json.loads(written)["rows"]["lenet5"]
    assert output.read_text() == written and 0.35 < row["macs_share"] <= 0.4 and row["method"] == "uniform"
    assert str(row["rounding"]["chosen"]) in row["rounding"]["latency_ms"]
    for stage in stages[:3]:
        assert all(row[stage][batch]["speedup"] > 0 and row[stage][batch]["turns"] >= 5 for batch in ("1", "8"))
    onnx = row["checks"]["onnx"]
    assert onnx["compact_bytes"] / onnx["dense_bytes"] == pytest.approx(row["params_share"], abs=0.02)
    assert row["checks"]["int8"]["compact"] > row["checks"]["onnx"]["error"]  # 8 bits are not 32
    assert benchmark.passed(row) == {**dict.fromkeys(benchmark.CLOSE, True), "compile": None}
    assert "lenet5" in capsys.readouterr().out


def test_turns_are_compared_and_not_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is ten times as slow in every other turn leaves the ratio alone."""
    now = [0.0]
    calls = {"dense": 0, "compact": 0}

    def work(name: str, seconds: float) -> None:
        now[0] += seconds * (10 if calls[name] % 2 else 1)
        calls[name] += 1

    monkeypatch.setattr(benchmark.time, "process_time", lambda: now[0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    found = benchmark.side_by_side({"dense": lambda: work("dense", 3.0), "compact": lambda: work("compact", 1.5)}, 0)
    assert found["speedup"] == pytest.approx(2.0) and found["turns"] == 5


@pytest.mark.parametrize(
    ("entries", "form", "fine"),
    [
        ({"onnx": {"error": 9e-5}}, "onnx", True),
        ({"onnx": {"error": 2e-4}}, "onnx", False),
        ({"onnx": {"error": float("nan")}}, "onnx", False),
        ({"bf16": {"dense": 0.3, "compact": 0.5}}, "bf16", True),
        ({"bf16": {"dense": 0.01, "compact": 0.2}}, "bf16", False),
        ({}, "int8", None),
    ],
)
def test_what_counts_as_the_same(entries: dict[str, Any], form: str, fine: bool | None) -> None:
    assert benchmark.passed({"checks": entries})[form] is fine


def test_a_form_that_fails_is_a_cell_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(net: nn.Module, x: Tensor, path: Path) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(benchmark, "NETWORKS", ("lenet5",))
    monkeypatch.setattr("hfp.deploy.rounding.SECONDS", 0.0)
    monkeypatch.setitem(benchmark.RUNTIMES, "compile", fails)
    output = tmp_path / "deployment.json"
    monkeypatch.setattr(
        sys, "argv", ["deployment.py", "--stages", "compile", "--seconds", "0", "--output", str(output)]
    )
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    row = json.loads(output.read_text())["rows"]["lenet5"]
    assert ended.value.code and row["compile"] == {"failed": "RuntimeError: no such thing"}
    assert benchmark.passed(row)["compile"] is False and "lenet5" in capsys.readouterr().out


def test_the_committed_rows_keep_what_the_readme_says() -> None:
    rows = json.loads(COMMITTED.read_text())["rows"]
    assert set(rows) == set(benchmark.NETWORKS)
    for name, row in rows.items():
        assert 0.39 < row["macs_share"] <= 0.4, name
        assert False not in benchmark.passed(row).values(), name
    for name in ("resnet50", "vgg16_bn"):
        assert rows[name]["eager"]["8"]["speedup"] >= 1.8
    onnx = rows["resnet50"]["checks"]["onnx"]
    assert onnx["compact_bytes"] / onnx["dense_bytes"] == pytest.approx(rows["resnet50"]["params_share"], abs=0.002)
    assert onnx["error"] < 1e-4


def test_the_readme_has_the_committed_figures() -> None:
    rows = json.loads(COMMITTED.read_text())["rows"]
    assert benchmark.markdown(rows) in (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    """One thread, as the other tests have it, and warnings that are seen."""
    yield
    torch.set_num_threads(1)
    logging.disable(logging.NOTSET)
