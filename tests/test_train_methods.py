"""train.py with every method, and with an accuracy floor: stopped and gone on with, it ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hfp
import models
import train
from benchmarks import training_runs as runs
from hfp import checkpoint
from hfp import compact as compact_command
from hfp.experiment import data, loop
from hfp.experiment.run import RunFolder
from hfp.methods import METHODS

EPOCHS = ["--prune-epochs", "2", "--finetune-epochs", "1"]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense LeNet-5, trained for a few epochs; file name."""
    torch.manual_seed(0)
    net, digits = models.build("lenet5"), data.load("digits")
    optimizer = loop.sgd([{"params": net.parameters(), "lr": 0.05, "weight_decay": 5e-4}])
    for epoch in range(5):
        shuffled = digits.train.batches(64, seed=epoch, augment=False, drop_last=True)
        loop.train_epoch(net, shuffled, optimizer, loop.Recipe(), lr_factor=lambda step: 1.0)
    path = tmp_path_factory.mktemp("baseline") / "dense.safetensors"
    checkpoint.save_weights(net, path, statistics="data")
    return path


def run(folder: Path, *settings: str) -> dict[str, Any]:
    assert train.main([*settings, "--output", str(folder)]) == 0
    return json.loads((folder / "result.json").read_text())


def interrupted(folder: Path, saves: int, monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    """The same run, killed instead of writing its checkpoint number `saves`, and gone on with."""
    save, left = RunFolder.save, [saves]

    def save_or_die(self: RunFolder, *given: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        save(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_or_die)
        assert train.main([*settings, "--output", str(folder)]) == 130
    assert train.main(["--resume", str(folder)]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_ends_the_same(
    method: str, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--method", method, "--target-params", "0.3", "--weights", str(baseline), *EPOCHS]
    result = run(tmp_path / "peaceful", *settings)
    assert result["config"]["method"] == method and result["finetuned"]["params_share"] <= 0.3
    assert result["gated"]["accuracy"] == result["compacted"]["accuracy"]
    # The fourth checkpoint would be that of the second epoch of pruning: before it are those of the baseline, of the
    # start of pruning, and of its first epoch.
    interrupted(tmp_path / "stopped", 4, monkeypatch, *settings)
    assert runs.differences(tmp_path / "peaceful", tmp_path / "stopped") == []
    outcome = compact_command.compact(tmp_path / "peaceful" / "gated.safetensors")
    record = checkpoint.record_of(outcome.small)
    assert record.params == result["finetuned"]["params"] and record.targets["method"] == method
    assert compact_command.gate_difference(outcome) is not None


# --- an accuracy floor


@pytest.mark.parametrize("method", ["ggp", "hfp"])
def test_pruning_ends_at_the_thinnest_network_above_the_floor(
    method: str, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = ["--prune-epochs", "5", "--finetune-epochs", "1"]
    settings = ["--method", method, "--accuracy-floor", "0.9", "--weights", str(baseline), *epochs]
    result = run(tmp_path / "peaceful", *settings)
    lines = [line for line in RunFolder(tmp_path / "peaceful", {}).lines() if line["phase"] == "prune"]
    broken = next(number for number, line in enumerate(lines) if line["validation_accuracy"] < 0.9)
    before, after = lines[:broken], lines[broken + 1 :]
    assert before and all(line["validation_accuracy"] >= 0.9 for line in before)
    thinnest = before[-1]["macs"]
    assert thinnest == min(line["macs"] for line in before) < result["baseline"]["macs"]
    assert {line["macs"] for line in after} <= {thinnest} and lines[broken]["macs"] < thinnest
    held = checkpoint.load_training(tmp_path / "peaceful" / "held.safetensors")
    assert held["epoch"] == broken
    small = hfp.load(tmp_path / "peaceful" / "small.safetensors", models.build("lenet5"))
    assert checkpoint.record_of(small).macs == result["finetuned"]["macs"] == thinnest
    interrupted(tmp_path / "stopped", broken + 3, monkeypatch, *settings)  # where the floor is broken
    assert runs.differences(tmp_path / "peaceful", tmp_path / "stopped") == []


def test_a_checkpoint_of_a_run_with_a_floor_is_cut_where_it_stands(baseline: Path, tmp_path: Path) -> None:
    run(tmp_path, "--method", "ggp", "--accuracy-floor", "0.5", "--weights", str(baseline), *EPOCHS)
    held = checkpoint.load_training(tmp_path / "held.safetensors")
    state = checkpoint.load_training(tmp_path / "gated.safetensors")
    checkpoint.save_training(tmp_path / "there.safetensors", state | {"net": held["net"]})
    record = checkpoint.record_of(compact_command.compact(tmp_path / "there.safetensors").small)
    assert torch.equal(record.keep, held["net"]["live"] > 0.5)


def test_a_state_that_held_the_floor_is_not_damaged_unnoticed(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--method", "ggp", "--accuracy-floor", "0.5", "--weights", str(baseline), *EPOCHS)
    whole = (tmp_path / "held.safetensors").read_bytes()
    (tmp_path / "held.safetensors").write_bytes(whole[:-8] + bytes(8))
    assert train.main(["--resume", str(tmp_path)]) == 2
    assert "held.safetensors is damaged" in capsys.readouterr().err
    (tmp_path / "held.safetensors").unlink()
    assert train.main(["--resume", str(tmp_path)]) == 0


def test_with_a_target_too_the_floor_may_never_be_met(baseline: Path, tmp_path: Path) -> None:
    floor = ["--accuracy-floor", "0.1", "--target-macs", "0.6"]
    result = run(tmp_path, "--method", "ggp", *floor, "--weights", str(baseline), *EPOCHS)
    assert 0.58 < result["finetuned"]["macs_share"] <= 0.6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "magic"], "invalid choice: 'magic'"),
        (["--method", "pag", "--accuracy-floor", "0.9"], "little by little (hfp, pag-rounds, ggp); pag cuts once"),
        (["--accuracy-floor", "92"], "'92' is not below 1"),
        (["--accuracy-floor", "0.9999", *EPOCHS], "on the validation images, so there is nothing to hold"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    given: list[str], message: str, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert train.main([*given, "--weights", str(baseline), "--output", str(tmp_path / "run")]) == 2
    except SystemExit as stop:  # of argparse
        assert stop.code == 2
    assert message in capsys.readouterr().err
