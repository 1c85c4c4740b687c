"""What is shown: counts against published figures, tables cell by cell, pictures that are there."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hfp import report

ROW = {"accuracy": 0.9731, "params": 1234, "params_share": 0.5, "macs": 56789, "macs_share": 0.4, "latency_ms": 1.25}
RESULT: dict[str, Any] = {
    "baseline": ROW | {"params": 2468, "params_share": 1.0},
    "gated": ROW,
    "compacted": ROW,
    "finetuned": ROW,
    "config": {"model": "lenet5", "dataset": "digits"},
    "ptflops": {"baseline": 2000, "finetuned": 900, "share": 0.45},
    "widths": {"dense": {"conv1": 20, "fc": 10}, "compact": {"conv1": 8, "fc": 10}},
}
LINE = {
    "phase": "prune",
    "epoch": 1,
    "task_loss": 0.25,
    "complexity_loss": 0.0,
    "train_accuracy": 0.9,
    "validation_accuracy": 0.95,
    "validation_loss": 0.3,
    "macs_share": 0.6,
    "params_share": 0.7,
    "macs": 6,
    "params": 7,
    "lr": 0.05,
    "seconds": 1.5,
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as where there is no terminal, whatever runs the tests."""
    monkeypatch.setenv("COLUMNS", str(report.PLAIN_WIDTH))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def printed(table: Any, capsys: pytest.CaptureFixture[str]) -> str:
    report.console().print(table)
    return capsys.readouterr().out


def test_the_final_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = cells(printed(report.result_table(RESULT), capsys))
    assert rows[0] == ["baseline", "97.31 %", "2,468", "1.0000", "56,789", "0.4000", "1.25 ms"]
    assert [row[0] for row in rows] == ["baseline", "gated", "compacted", "finetuned"]
    rows = cells(printed(report.result_table(RESULT | {"control": ROW}), capsys))
    assert [row[0] for row in rows] == ["baseline", "control", "gated", "compacted", "finetuned"]


def test_the_line_of_an_epoch() -> None:
    assert report.epoch_line(LINE, 10) == (
        "prune      1/10  loss 0.2500  train 90.00 %  validation 95.00 %"
        "  MACs 0.600  parameters 0.700  lr 0.0500  1.5 s"
    )
    assert "loss 0.2500 + 0.1250" in report.epoch_line(LINE | {"complexity_loss": 0.125}, 10)


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with report.Display() as display:
        display.start("prune", total=10)
        display.step(lambda: pytest.fail("nothing is shown, so nothing is asked for"))
        display.line("a line [of brackets] that stays and is long " * 5)
    assert capsys.readouterr().out == "a line [of brackets] that stays and is long " * 5 + "\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    wide = report.Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr(report, "console", lambda: wide)
    with report.Display() as display:
        display.start("prune", total=4, done=1)
        display.step(lambda: "MACs 0.610")
        assert display._bar is not None
        (task,) = display._bar.tasks
        assert (task.completed, task.total, task.fields["live"]) == (2, 4, "MACs 0.610")
        display.step(lambda: pytest.fail("asked again within a fifth of a second"))
        display.start("finetune", total=5)
        assert [task.description for task in display._bar.tasks] == ["finetune"]
        display.line("stays")
    assert "stays" in wide.export_text()


def test_a_finished_run_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(LINE | {"epoch": n}) + "\n" for n in (1, 2)))
    assert report.main([str(tmp_path)]) == 0
    assert "ptflops counts 900 of 2,000 MACs (0.4500)" in capsys.readouterr().out
    for name in ("widths.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err


def test_what_the_table_wants_and_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(json.dumps({key: RESULT[key] for key in RESULT if key != "ptflops"}))
    (tmp_path / "metrics.jsonl").write_text("")
    assert report.main([str(tmp_path)]) == 2
    assert "is not the folder of a finished run: KeyError('ptflops')" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "ptflops counts 900" in told.out and "Pictures need matplotlib" in told.err
    assert "finished run" not in told.err
