"""What is shown: counts against published figures, tables cell by cell, pictures that are there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import models
from hfp import report, trace
from hfp.explain import table_text

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


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("lenet5", 431_080, 2_293_000), ("resnet20", 269_722, 40_551_040), ("resnet56", 853_018, 125_485_696)],
)
def test_counts_are_those_of_the_literature(name: str, params: int, macs: int) -> None:
    net: Any = models.build(name)
    assert report.count_params(net) == params
    assert report.count_macs(net, net.input_size) == macs


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert report.count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 12


def test_widths_are_those_of_layers_with_weights() -> None:
    found = report.widths(torchvision.models.mobilenet_v3_small())
    assert found["features.0.0"] == 16 and found["classifier.3"] == 1000
    assert not any("1.block.0.1" in name for name in found)  # a batch norm


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def columns(text: str) -> list[list[str]]:
    """The first lines of the rows of tables without frames; a line of blanks at first goes on with the one above."""
    bodies = [body.strip("\n").split("\n\n")[0] for body in re.split(r"^ ─+$", text, flags=re.MULTILINE)[1:]]
    lines = [line for body in bodies for line in body.splitlines() if not line.startswith(10 * " ")]
    return [re.split(r" {2,}", line.strip()) for line in lines]


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
def test_long_lists_of_layers_are_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = table_text(trace(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 32, 32)))
    assert "and 1 more" in " ".join(text.split()) and max(map(len, text.splitlines())) <= min(width, report.PLAIN_WIDTH)
    assert "features.10.conv.0.0," in text.split()  # the longest name that is listed is not folded


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


class Bessel(nn.Conv2d):
    """A convolution whose weight goes through an operator that no rule knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, torch.special.bessel_j0(self.weight), self.bias)


def test_a_layer_that_is_pinned_in_several_dims_is_named_once() -> None:
    table = trace(nn.Sequential(nn.Conv2d(3, 6, 3), Bessel(6, 4, 3)), torch.zeros(1, 3, 8, 8))
    assert len({pinned.dim for pinned in table.pinned if pinned.tensor == "1.weight"}) > 1
    rows = [row for row in columns(table_text(table)) if row[0] == "1" and "without a rule" in row[2]]
    assert [row[1:3] for row in rows] == [["4", "is touched by an operator without a rule"]]
    assert rows[0][3].startswith("special_bessel_j0 in 1 (test_report.py:")


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
