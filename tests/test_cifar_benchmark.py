"""The CIFAR-10 benchmark: the commands it starts, and what it makes of results; no training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from hfp.experiment.settings import parse

cifar: Any = importlib.import_module("cifar")

RECIPE = (
    "--dataset imagefolder --data-dir {data} --statistics imagenet --batch-size 128 --lr 0.05 --prune-epochs 3 "
    "--finetune-epochs 9 --distill 0.7 --amp --channels-last --model resnet20 --output {runs}/"
)
FIRST = "--target-macs 0.4 --weights {weights}/resnet20-cifar10.th --dense-epochs 3 --control "
LATER = "--weights {runs}/resnet20-0.4-seed0/dense.safetensors --dense-epochs 0 "
COMMANDS = [
    FIRST + RECIPE + "resnet20-0.4-seed0 --seed 0",
    LATER + RECIPE + "resnet20-0.25-seed0 --target-macs 0.25 --seed 0",
    LATER + RECIPE + "resnet20-0.4-seed1 --target-macs 0.4 --control --seed 1",
    LATER + RECIPE + "resnet20-0.25-seed1 --target-macs 0.25 --seed 1",
]


def planned(folder: Path) -> list[Any]:
    places = {name: folder / name for name in ("data", "weights", "runs")}
    return cifar.plan(["resnet20"], [0.4, 0.25], [0, 1], **places)


def test_the_commands_spelt_out(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("data", "weights", "runs")}
    wanted = [parse(command.format(**places).split()) for command in COMMANDS]
    assert [parse(run.command()[2:]) for run in planned(tmp_path)] == wanted


def test_a_run_that_has_begun_is_gone_on_with(tmp_path: Path) -> None:
    run = planned(tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text("{}")
    given, output, resume = parse(run.command()[2:])
    assert resume == str(run.folder) and output is None
    assert "weights" not in given  # they may lie elsewhere by now, and are no longer needed


def test_what_is_finished_is_not_run_and_what_cannot_start_is_told(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "result.json").write_text("{}")
    failed = cifar.work_off(runs, jobs=1)
    assert [each.split()[0] for each in failed] == [run.folder.name for run in runs if run is not runs[1]]
    assert f"there is no {tmp_path}/weights/resnet20-cifar10.th" in failed[0]


def result(target: float, seed: int, finetuned: float, control: float | None = None) -> dict[str, Any]:
    """A result.json, as far as it is read."""
    size = {"macs": 1000, "macs_share": target - 0.0002 * seed, "params_share": 0.5}
    made: dict[str, Any] = {
        "baseline": size | {"accuracy": 0.92, "macs_share": 1.0},
        "compacted": size | {"accuracy": 0.80},
        "finetuned": size | {"accuracy": finetuned},
        "widths": {
            "dense": {"conv1": 8, "layer1.0.conv1": 8, "layer1.0.conv2": 8, "fc": 10},
            "compact": {"conv1": 4, "layer1.0.conv1": seed, "layer1.0.conv2": 4, "fc": 10},
        },
        "config": cifar.RECIPE
        | {"model": "resnet20", "target_macs": target, "seed": seed}
        | {"data_dir": "/home/me/data", "weights": "/home/me/weights/resnet20-cifar10.th"},
        "seed": seed,
        "train_seconds": 1800.0,
        "versions": {"torch": "2.6.0"},
        "machine": {"device": "cpu"},
    }
    return made if control is None else made | {"control": size | {"accuracy": control}}


RESULTS = [
    result(0.4, 0, 0.915, control=0.920),
    result(0.4, 1, 0.911, control=0.922),
    result(0.25, 0, 0.900),  # its control is that of the other target
    result(0.25, 2, 0.890),  # this seed has none
]
ROWS = [
    "| resnet20 | 0.4 | 2 | 92.00 | 92.10 (92.00..92.20) | 80.00 | 91.30 (91.10..91.50) | 0.80 (0.50..1.10) "
    "| 0.3999 (0.3998..0.4000) | 0.5000 |",
    "| resnet20 | 0.25 | 2 | 92.00 | 92.00 | 80.00 | 89.50 (89.00..90.00) | 2.00, 1 of 2 seeds "
    "| 0.2498 (0.2496..0.2500) | 0.5000 |",
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of finished runs, and of a stranger's."""
    for each in RESULTS:
        folder = tmp_path / "runs" / f"resnet20-{each['config']['target_macs']:g}-seed{each['seed']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(each))
    (tmp_path / "runs" / "something").mkdir()
    (tmp_path / "runs" / "something" / "result.json").write_text("{}")
    return tmp_path / "runs"


def report_only(runs: Path, results: Path) -> int:
    return cifar.main(["--report-only", "--runs", str(runs), "--results", str(results)])


def test_the_report(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    assert report_only(runs, results) == 0
    assert "(91.10..91.50)" in capsys.readouterr().out
    table = (results / "table.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("| resnet")] == ROWS
    assert "4 runs, 2.0 hours" in table and "--distill 0.7 --amp --channels-last`" in table
    picture = (results / "widths-resnet20.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert report_only(tmp_path / "gone", results) == 0  # from the copies alone
    assert (results / "table.md").read_text() == table
    assert (results / "widths-resnet20.png").read_bytes() == picture


def test_copies_hold_everything_but_paths(runs: Path) -> None:
    found = cifar.runs_of_shared(runs)
    assert len(found) == len(RESULTS)
    copied, original = found["resnet20-0.4-seed1"], RESULTS[1]
    assert copied["config"] == original["config"] | {"data_dir": "data", "weights": "resnet20-cifar10.th"}
    assert copied | {"config": original["config"]} == original


def test_a_run_by_another_recipe_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "resnet20-0.4-seed1" / "result.json"
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.1'))
    assert report_only(runs, tmp_path / "results") == 2
    assert "resnet20-0.4-seed1 was made with --lr 0.1, the recipe says 0.05" in capsys.readouterr().err


def test_no_results_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_only(tmp_path / "runs", tmp_path / "results") == 2
    assert "There is no result in" in capsys.readouterr().err
