"""The accuracy benchmark: the commands it starts, that they are one recipe, and what it makes of results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfp import checkpoint
from hfp.experiment.settings import parse
from hfp.methods import METHODS

accuracy: Any = importlib.import_module("accuracy")
figures: Any = importlib.import_module("accuracy_figures")


def planned(folder: Path, *more: str) -> list[Any]:
    files = ["--data", str(folder / "data"), "--runs", str(folder / "runs")]
    return accuracy.plan(accuracy.complete(accuracy.parser().parse_args([*files, "--seeds", "0,1", *more])))


# --- the commands

EVERY = (
    "--dataset cifar10 --data-dir {0}/data --model resnet20 --shortcut B --batch-size 128 --lr 0.05 --distill 0.7 "
    "--amp --channels-last --device cpu --prune-epochs 3 --finetune-epochs 7 --dense-epochs 0 "
    "--weights {0}/runs/resnet20_b-baseline/dense.safetensors --output {0}/runs/resnet20_b-10ep-"
)
COMMANDS = [
    "--dataset cifar10 --data-dir {0}/data --model resnet20 --shortcut B --batch-size 128 --lr 0.1 --distill 0.0 --amp "
    "--channels-last --device cpu --prune-epochs 1 --finetune-epochs 0 --dense-epochs 30 --target-macs 1.0 --seed 0 "
    "--method uniform --output {0}/runs/resnet20_b-baseline",
    EVERY + "control-seed0 --method uniform --target-macs 1.0 --seed 0",
    EVERY + "hfp-0.4-seed0 --method hfp --target-macs 0.4 --seed 0",
    EVERY + "control-seed1 --method uniform --target-macs 1.0 --seed 1",
    EVERY + "hfp-0.4-seed1 --method hfp --target-macs 0.4 --seed 1",
]


def test_the_commands_spelt_out(tmp_path: Path) -> None:
    wanted = [parse(command.format(tmp_path).split()) for command in COMMANDS]
    assert [parse(run.command()[2:]) for run in planned(tmp_path)] == wanted


def test_a_checkpoint_is_adapted_or_taken_as_it_is(tmp_path: Path) -> None:
    adapted, first, *_ = planned(tmp_path, "--weights", "some.th")
    assert adapted.settings["dense_epochs"] == 3 and adapted.settings["lr"] == first.settings["lr"] == 0.05
    assert adapted.settings["shortcut"] == "A" and adapted.weights == Path("some.th").resolve()
    assert first.weights == adapted.folder / "dense.safetensors"
    adapted, first, *_ = planned(tmp_path, "--weights", "some.th", "--lr", "0.01")
    assert adapted.settings["lr"] == 0.05 and first.settings["lr"] == 0.01
    assert planned(tmp_path, "--weights", "some.th", "--baseline-epochs", "0")[0].weights == adapted.weights


def test_every_method_has_the_same_recipe_and_as_many_epochs(tmp_path: Path) -> None:
    methods = [*METHODS, *accuracy.PEERS]
    _, *runs = planned(tmp_path, "--methods", ",".join(methods), "--targets", "0.4,0.1", "--epochs", "20")
    assert len(runs) == 2 * (1 + 2 * len(methods))
    own = ("method", "target_macs", "seed")
    recipes = [{name: value for name, value in run.settings.items() if name not in own} for run in runs]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert recipes[0]["prune_epochs"] + recipes[0]["finetune_epochs"] == 20
    assert len({run.weights for run in runs}) == 1
    assert len({run.folder for run in runs}) == len(runs)


def test_peers_run_in_their_script(tmp_path: Path) -> None:
    scripts = {run.settings["method"]: run.command()[1] for run in planned(tmp_path, "--methods", "hfp,tp-bn-scale")}
    assert scripts == {"uniform": "train.py", "hfp": "train.py", "tp-bn-scale": "benchmarks/peers.py"}


def test_a_run_that_has_begun_is_gone_on_with(tmp_path: Path) -> None:
    run = planned(tmp_path)[1]
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text("{}")
    given, output, resume = parse(run.command()[2:])
    assert resume == str(run.folder) and output is None
    assert "weights" not in given  # they may lie elsewhere by now, and are no longer needed


def test_what_is_finished_is_not_run_and_what_cannot_start_is_told(tmp_path: Path) -> None:
    runs = planned(tmp_path)[1:]  # without the baseline
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "result.json").write_text("{}")
    failed = accuracy.work_off(runs, jobs=1, until=float("inf"))
    assert [each.split()[0] for each in failed] == [run.folder.name for run in runs if run is not runs[1]]
    assert f"there is no {tmp_path}/runs/resnet20_b-baseline/dense.safetensors" in failed[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "hfp,nothing"], "--methods nothing: there are hfp, "),
        (["--methods", "tp-bn-scale", "--shortcut", "A"], "tp-bn-scale crashes on shortcuts that pad (A)"),
        (["--methods", "tp-bn-scale", "--weights", "some.th"], "tp-bn-scale crashes on shortcuts that pad (A)"),
        (["--baseline-epochs", "0"], "--baseline-epochs 0 takes a baseline as it is; which, says --weights FILE"),
        (["--epochs", "2", "--prune-epochs", "3"], "--prune-epochs 3 has to be from 1 to --epochs 2"),
        (["--jobs", "0"], "at least one run at a time"),
    ],
)
def test_what_makes_no_sense(given: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert accuracy.main(["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- from images to the picture


def test_from_images_to_the_picture(tmp_path: Path, capfd: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 70), ("test", 10)):
        for kind in range(2):
            (tmp_path / f"data/{split}/{kind}").mkdir(parents=True)
            for number in range(count):
                image = torch.randint(0, 150, (3, 28, 28), generator=generator, dtype=torch.uint8)
                image[kind] += 50
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"data/{split}/{kind}/{number}.png")
    places = [text for name in ("data", "runs", "results") for text in (f"--{name}", str(tmp_path / name))]
    command = [*places, "--network", "lenet5", "--seeds", "0", "--epochs", "3", "--baseline-epochs", "2"]
    assert accuracy.main([*command, "--minutes", "0"]) == 3
    assert "3 of 3 runs are still to be finished; the same command goes on" in capfd.readouterr().err
    assert accuracy.main(command) == 0
    assert capfd.readouterr().out.count("starting ") == 3
    assert accuracy.main(command) == 0
    assert "starting " not in capfd.readouterr().out
    made = {path.name for path in (tmp_path / "results").iterdir()}
    runs = {"lenet5-3ep-control-seed0.json", "lenet5-3ep-hfp-0.4-seed0.json"}
    assert made == runs | {"table.md", "accuracy-lenet5-3ep.png", "widths-lenet5-3ep.png"}
    control, pruned = (json.loads((tmp_path / "results" / name).read_text()) for name in sorted(runs))
    assert control["finetuned"]["macs_share"] == 1 and 0.39 < pruned["finetuned"]["macs_share"] <= 0.4
    assert control["baseline_sha256"] == pruned["baseline_sha256"]
    rates = [[line["lr"] for line in one["history"]] for one in (control, pruned)]
    assert rates[0] == rates[1] == pytest.approx([0.05, 0.0375, 0.0125])


# --- the report


def result(method: str, target: float, seed: int, finetuned: float, **more: Any) -> dict[str, Any]:
    """A result.json with its history, as far as it is read."""
    size = {"macs": 1000, "macs_share": round(target - 0.0002 * seed, 4), "params_share": 0.5}
    settings = {name: None for name in figures.RECIPE} | {"prune_epochs": 3, "finetune_epochs": 7, "lr": 0.05}
    own = {"model": "resnet20", "shortcut": "B", "method": method, "target_macs": target, "seed": seed}
    return {
        "baseline": size | {"accuracy": 0.9, "macs_share": 1.0},
        "compacted": size | {"accuracy": 0.80},
        "finetuned": size | {"accuracy": finetuned},
        "widths": {
            "dense": {"conv1": 8, "layer1.0.conv1": 8, "layer1.0.conv2": 8, "fc": 10},
            "compact": {"conv1": 4, "layer1.0.conv1": seed, "layer1.0.conv2": 4, "fc": 10},
        },
        "config": settings | own,
        "seed": seed,
        "train_seconds": 1800.0,
        "versions": {"torch": "2.6.0"},
        "machine": {"device": "cpu"},
        "history": [{"task_loss": 0.9}, {"task_loss": 0.5 + seed / 8}],
        "baseline_sha256": "f00d",
        **more,
    }


RESULTS = {
    "control-seed0": result("uniform", 1.0, 0, 0.920),
    "control-seed1": result("uniform", 1.0, 1, 0.922),
    "hfp-0.4-seed0": result("hfp", 0.4, 0, 0.915),
    "hfp-0.4-seed1": result("hfp", 0.4, 1, 0.911),
    "hfp-0.1-seed0": result("hfp", 0.1, 0, 0.850),
    "tp-bn-scale-0.4-seed0": result("tp-bn-scale", 0.4, 0, 0.910),
    "tp-bn-scale-0.4-seed2": result("tp-bn-scale", 0.4, 2, 0.906),  # this seed has no control
}
ROWS = [
    "| resnet20_b-10ep | baseline | 1 |  |  | 90.00 |  |  | 1 | 1 |",
    "| resnet20_b-10ep | control | 1 | 2 | 80.00 | 92.10 (92.00..92.20) |  | 0.562 (0.500..0.625) "
    "| 0.9999 (0.9998..1.0000) | 0.5000 |",
    "| resnet20_b-10ep | hfp | 0.4 | 2 | 80.00 | 91.30 (91.10..91.50) | 0.80 (0.50..1.10) | 0.562 (0.500..0.625) "
    "| 0.3999 (0.3998..0.4000) | 0.5000 |",
    "| resnet20_b-10ep | tp-bn-scale | 0.4 | 2 | 80.00 | 90.80 (90.60..91.00) | 1.00, 1 of 2 seeds "
    "| 0.625 (0.500..0.750) | 0.3998 (0.3996..0.4000) | 0.5000 |",
    "| resnet20_b-10ep | hfp | 0.1 | 1 | 80.00 | 85.00 | 7.00 | 0.500 | 0.1000 | 0.5000 |",
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, each in RESULTS.items():
        (tmp_path / f"resnet20_b-10ep-{name}.json").write_text(json.dumps(each))
    return tmp_path


def report_only(folder: Path) -> int:
    return accuracy.main(["--report-only", "--results", str(folder)])


def test_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_only(results) == 0
    assert "(91.10..91.50)" in capsys.readouterr().out
    table = (results / "table.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("| resnet")] == ROWS
    assert "7 runs, 3.5 hours" in table and "prune_epochs 3, finetune_epochs 7" in table
    pictures = {path.name: path.read_bytes() for path in results.glob("*.png")}
    assert pictures.keys() == {"accuracy-resnet20_b-10ep.png", "widths-resnet20_b-10ep.png"}
    assert report_only(results) == 0
    assert {path.name: path.read_bytes() for path in results.glob("*.png")} == pictures


def test_a_control_within_another_run_counts() -> None:
    """As `train.py --control` leaves it."""
    members = [result("hfp", 0.4, 0, 0.915, control={"accuracy": 0.925})]
    assert figures.controls(members) == {0: 0.925}
    assert [row[1:6] for row in figures.rows(members)][1] == ("control", "1", "1", "", "92.50")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lr", {"config": RESULTS["hfp-0.4-seed0"]["config"] | {"lr": 0.1}}, "lr is 0.05 in one, 0.1 in another"),
        ("baseline", {"baseline_sha256": "beef"}, "baseline is f00d in one, beef in another"),
    ],
)
def test_what_was_not_made_alike_is_not_compared(
    name: str, change: dict[str, Any], message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results / "resnet20_b-10ep-hfp-0.4-seed0.json"
    path.write_text(json.dumps(RESULTS["hfp-0.4-seed0"] | change))
    assert report_only(results) == 2
    assert f"resnet20_b-10ep cannot be compared: {message}" in capsys.readouterr().err


def test_copies_of_results_hold_no_paths(tmp_path: Path) -> None:
    run = planned(tmp_path)[2]
    run.folder.mkdir(parents=True)
    config = run.settings | {"weights": "/home/me/weights/a.th", "data_dir": "/home/me/data"}
    (run.folder / "result.json").write_text(json.dumps({"config": config, "seed": 0}))
    (run.folder / "metrics.jsonl").write_text('{"phase": "prune", "epoch": 1, "lr": 0.05}\n')
    checkpoint.save_weights(torch.nn.Linear(2, 2), run.folder / "dense.safetensors")
    accuracy.collect([run], tmp_path / "results")
    copied = json.loads((tmp_path / f"results/{run.folder.name}.json").read_text())
    assert copied["config"] == config | {"weights": "a.th", "data_dir": "data"}
    assert copied["history"] == [{"phase": "prune", "epoch": 1, "lr": 0.05}]


def test_a_run_by_other_settings_is_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)[2]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text(json.dumps({"config": run.settings | {"lr": 0.1, "data_dir": "data"}}))
    with pytest.raises(ValueError, match="hfp-0.4-seed0 was made with --lr 0.1, not 0.05"):
        accuracy.collect([run], tmp_path / "results")


def test_no_results_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_only(tmp_path) == 2
    assert "There is no result in" in capsys.readouterr().err
