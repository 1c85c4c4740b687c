"""The coverage benchmark: two published networks through the command, and made-up ones for every status of a row."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from double import doubled
from torch import Tensor, nn

import hfp
import hfp.cutting.surgery

coverage: Any = importlib.import_module("coverage")
networks: Any = importlib.import_module("networks")
processes: Any = importlib.import_module("processes")

COMMAND = Path(coverage.__file__)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, where threads are running


def test_two_networks_through_the_command(tmp_path: Path) -> None:
    output = tmp_path / "coverage.json"
    command = ["torchvision", "--only", "^(squeezenet1_1|resnet18)$", "--output", str(output)]
    printed = subprocess.run([sys.executable, COMMAND, *command], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1].startswith("torchvision: held 2 of 2 (100.0 %); 2 of them")
    before = output.read_text()
    rows = json.loads(before)["networks"]
    for row in rows.values():
        assert row["status"] == "held" and row["prunable_macs"] > 0.9 and 0 < row["peak_gb"] < 4
        assert [cut["density"] for cut in row["cuts"]] == list(coverage.DENSITIES)
        assert all(cut["error"] < 1e-5 and 0 < cut["macs"] < row["macs"] for cut in row["cuts"])
        assert row["cuts"][0]["change"] > 0.01
    coverage.main(command)
    assert output.read_text() == before, "what holds is not run again"


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))


def not_a_number() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Threshold(1e9, math.nan))


def hang(*_: Any) -> None:
    while True:
        pass


def fill_memory(*_: Any) -> None:
    kept = torch.ones(2**28 + 2**26)
    time.sleep(60)
    del kept


COMPACT = hfp.cutting.surgery.compact


def shifted(model: nn.Module, table: Any, keep: Tensor) -> nn.Module:
    small = COMPACT(model, table, keep)
    small.get_parameter("2.bias").data += 1e-3
    return small


def without_its_end(model: nn.Module, table: Any, keep: Tensor) -> nn.Module:
    small = COMPACT(model, table, keep)
    small.register_module("2", nn.Linear(99, 6))
    return small


def one_too_many(table: Any, keep: Tensor) -> tuple[int, int]:
    return table.macs.count(keep), table.params.count(keep) + 1


def user_error(*_: Any) -> None:
    raise ValueError("raised by code that is not hfp's")


CASES: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "held": ("held", perceptron, {}, ""),
    "no": ("refused", perceptron, {"trace": lambda *_: hfp.trace("none")}, "ValueError: hfp.trace needs an nn.Module"),
    "another output": ("wrong", perceptron, {"compact": shifted}, "density 0.2: outputs differ by"),
    "other costs": ("wrong", perceptron, {"predicted": one_too_many}, "dense: 111 parameters predicted, 110 counted;"),
    "not hfp's error": ("crashed", perceptron, {"trace": user_error}, "ValueError: raised by code that is not hfp's"),
    "does not run": ("crashed", perceptron, {"compact": without_its_end}, "RuntimeError: "),
    "dies": ("crashed", perceptron, {"trace": lambda *_: os._exit(3)}, "the process ended with 3 in stage trace"),
    "hangs": ("timeout", perceptron, {"trace": hang}, "more than 2 s in stage trace"),
    "fills memory": ("memory", perceptron, {"compact": fill_memory}, "more than"),
    "is not built": ("unavailable", user_error, {}, "ValueError: raised by"),
    "no number": ("unavailable", not_a_number, {}, "FloatingPointError: the output is not finite"),
}
"""Name -> status, what builds the network, what is replaced in the benchmark, how the message starts."""


def network(build: Callable[[], nn.Module], **options: Any) -> Any:
    return networks.Network("it", build, lambda _: ((torch.randn(5, 6),), {}), **options)


def task(made_up: Any) -> Any:
    return made_up.name, functools.partial(coverage.examine, made_up)


def row_of(made_up: Any, seconds: float = 30) -> dict[str, Any]:
    pages = int(
        Path("/proc/self/statm").read_text().split()[1]
    )  # with what the tests have imported: a process is forked
    limits = processes.Limits(seconds, gb=pages * os.sysconf("SC_PAGE_SIZE") / 2**30 + 0.5)
    [(name, row)] = processes.rows_of([task(made_up)], limits)
    assert name == "it"
    return row


@pytest.mark.parametrize("name", CASES)
def test_every_status(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, build, replaced, message = CASES[name]
    for attribute, value in replaced.items():
        monkeypatch.setattr(coverage, attribute, value)
    row = row_of(network(build), seconds=2 if name == "hangs" else 30)  # a busy machine fills memory slowly
    assert (row["status"], row.get("message", "")[: len(message)]) == (status, message)
    assert ("prunable_macs" in row) == (row["stage"] in ("compact", "check")), "what was found before stays in the row"


def test_both_modes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compacted network that differs in training mode only."""

    class Mode(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-3 if self.training else x

    def differs_in_training(model: nn.Module, table: Any, keep: Tensor) -> nn.Module:
        small = COMPACT(model, table, keep)
        small.append(Mode())
        return small

    monkeypatch.setattr(coverage, "compact", differs_in_training)
    assert row_of(network(perceptron))["status"] == "held"
    row = row_of(network(perceptron, training=lambda _: ((torch.randn(5, 6),), {})))
    assert row["status"] == "wrong" and row["message"].startswith("training: outputs differ by")


def test_rounding_is_told_from_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tolerance that float32 misses and float64 does not: the row says so, and holds."""
    monkeypatch.setattr(coverage, "TOLERANCE", 0.0)
    row = row_of(network(lambda: nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 6))))
    assert row["status"] == "held"
    assert all(0 < cut["double_error"] < 1e-12 < cut["error"] < 1e-5 for cut in row["cuts"])


class Chaos(nn.Module):
    """The logistic map, which doubles a difference at every step."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.sigmoid()
        for _ in range(100):
            x = 4 * x * (1 - x)
        return x


def test_chaos_is_told_from_a_wrong_cut() -> None:
    """Where the last digit of the inputs changes all, the order of a sum does as well: the row says so."""
    row = row_of(network(lambda: nn.Sequential(nn.Linear(6, 5000), nn.ReLU(), nn.Linear(5000, 6), Chaos())))
    assert row["status"] == "held"
    assert all(cut["double_error"] > 1e-3 and cut["rounding"] > 1e-3 for cut in row["cuts"])


def test_rows_come_as_they_are_done() -> None:
    every = [network(perceptron), network(user_error), network(perceptron)]
    rows = [row["status"] for _, row in processes.rows_of(map(task, every), processes.Limits(), jobs=2)]
    assert sorted(rows) == ["held", "held", "unavailable"]


def test_another_engine_has_its_rows_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = [networks.Network(name, perceptron, lambda _: ((torch.randn(5, 6),), {})) for name in "ab"]
    monkeypatch.setitem(coverage.LIBRARIES, "timm", lambda: iter(made_up))

    def run(*more: str) -> list[str]:
        coverage.main(["timm", "--output", str(tmp_path / "rows.json"), *more])
        return [line for line in capsys.readouterr().out.splitlines() if line.endswith("prunable")]

    assert len(run()) == 2 and run() == []
    monkeypatch.setattr(coverage, "engine", lambda: "another")
    assert run("--failed") == [] and len(run("--only", "b")) == 1 and len(run()) == 1 and len(run("--again")) == 2


def test_summary_and_causes() -> None:
    rows = {
        "a": {"status": "held", "prunable_macs": 0.7, "reasons": [["bmm: of 3 axes", 5]]},
        "b": {"status": "held", "prunable_macs": 0.5, "reasons": [["bmm: of 3 axes", 7], ["add: fixed", 1]]},
        "c": {"status": "crashed", "message": "IndexError: A has 12 channels", "class": "A"},
        "d": {"status": "crashed", "message": "IndexError: B has 7 channels", "class": "B"},
    }
    assert coverage.summary("timm", rows) == (
        "timm: held 2 of 4 (50.0 %); 1 of them (25.0 %) with 60 % or more of the MACs prunable; wrong 0, crashed 2"
    )
    assert coverage.failures(rows) == [("crashed: IndexError: the model has # channels", ["c", "d"])]
    assert coverage.pins(rows) == [("bmm: of # axes", ["a", "b"]), ("add: fixed", ["b"])]


def test_what_names_float32_runs_in_float64() -> None:
    with doubled():
        x = torch.linspace(0, 1, 3).to(torch.float32)
        y = torch.zeros(3, dtype=x.dtype) + x.float() / 3
        assert y.dtype is torch.float32  # so it is told
    assert x.dtype is y.dtype is torch.float64
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(y, torch.linspace(0, 1, 3, dtype=torch.float64) / 3)
