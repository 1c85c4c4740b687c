"""Training checkpoints that ask for what no run has: refused, before anything is allocated."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

import hfp
import models
from hfp import checkpoint
from hfp.deploy import origin

BUILD = {"name": "lenet5", "num_classes": 10, "image_size": 16, "in_channels": 1, "shortcut": None}
WRAP = {"target_macs": 0.4, "target_params": None, "ignore": [], "round_to": 1, "counter": "macs", "method": "hfp"}


def saved(path: Path, **changes: Any) -> Path:
    """A checkpoint at the beginning of a run."""
    torch.manual_seed(0)
    state = {"phase": "dense", "epoch": 1, "build": BUILD, "wrap": WRAP | {"steps": 4}}
    checkpoint.save_training(path, state | {"net": models.build(**BUILD).state_dict()} | changes)
    return path


def test_one_that_is_in_order(tmp_path: Path) -> None:
    outcome = origin.compact(saved(tmp_path / "x"))
    assert checkpoint.record_of(outcome.small).macs <= 0.4 * checkpoint.record_of(outcome.small).dense_macs


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epoch": "\ud800"}, "its number of epochs is"),
    "a huge size": ({"build": BUILD | {"num_classes": 10**6}}, "asks for a network of an impossible size"),
    "huge sizes": (
        {"build": BUILD | {"image_size": 3_000}},
        "asks for a network of more than 1,073,741,824 parameters",
    ),
    "no tensor": (
        {"net": models.build(**BUILD).state_dict() | {"fc1.bias": "0"}},
        "does not fit this LeNet5: fc1.bias is a str",
    ),
    "no number": ({"net": {name: x * torch.nan for name, x in models.build(**BUILD).state_dict().items()}}, "diverged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    path = saved(tmp_path / "x", **changes)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        origin.compact(path)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("ignore", [3, [1], {"a": "b"}])
def test_a_record_that_ignores_what_has_no_name_is_refused(ignore: Any) -> None:
    small = hfp.wrap(models.build(**BUILD), target_macs=0.5).compact()
    record = checkpoint.record_to_json(checkpoint.record_of(small))
    record["targets"] = record["targets"] | {"ignore": ignore}
    with pytest.raises(ValueError, match=r"does not make sense \(wrong: targets\)"):
        checkpoint.record_from_json(record, source="x")
