"""Training checkpoints that ask for what no run has: refused, before anything is allocated."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

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


class Large(nn.Module):
    """Of 1.2 million parameters, a tenth at a time; nothing can be read off them on the meta device."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        widths = torch.full((10,), 400).tolist()
        Large.made = 0
        for width in widths:
            Large.made += 1
            self.register_parameter(f"weight{Large.made}", nn.Parameter(torch.zeros(width, 300)))


def test_a_network_that_has_no_outline_is_refused_amid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(weight.numel() for weight in origin.bounded(Large, "x", "Large").parameters()) == 1_200_000
    monkeypatch.setattr(origin, "MOST", 500_000)
    with pytest.raises(ValueError, match="x asks for a network of more than 500,000 parameters: Large"):
        origin.bounded(Large, "x", "Large")
    assert Large.made == 5
    Large()  # nothing counts any more


def test_a_checkpoint_of_a_network_that_has_no_outline(tmp_path: Path) -> None:
    """torchvision reads the widths of these off tensors."""
    build = BUILD | {"name": "regnet_y_400mf", "image_size": 32, "in_channels": 3}
    state = {"phase": "dense", "epoch": 1, "build": build, "wrap": WRAP | {"steps": 4}}
    checkpoint.save_training(tmp_path / "x", state | {"net": models.build(**build).state_dict()})
    assert checkpoint.record_of(origin.compact(tmp_path / "x").small).macs > 0


@pytest.mark.parametrize("named", [True, False])
def test_a_compact_file_asks_for_no_network_of_any_size(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless who reads it does."""
    small = hfp.wrap(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64), target_macs=0.5).compact()
    hfp.save(small, tmp_path / "small.safetensors", model="resnet18")
    monkeypatch.setattr(origin, "MOST", 1_000_000)
    if named:
        origin.compact(tmp_path / "small.safetensors", origin.Wanted(model="resnet18"))
    else:
        with pytest.raises(ValueError, match="asks for a network of more than 1,000,000 parameters: resnet18"):
            origin.compact(tmp_path / "small.safetensors")


@pytest.mark.parametrize("name", ["vit_b_16", "maxvit_t", "resnet18"])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([], "takes images"),
        ([1, 12], "takes images"),
        ([1, 3, 0, 0], "example_inputs is empty"),
        ([1, 1, 1, 2**28], "asks for a network for images of an impossible size"),
    ],
)
def test_a_compact_file_asks_for_no_network_for_images_of_any_size(
    name: str, shape: list[int], words: str, tmp_path: Path
) -> None:
    small = hfp.wrap(models.build(**BUILD), target_macs=0.5).compact()
    inputs = {"args": [{"shape": shape, "dtype": "float32"}], "kwargs": {}}
    small.hfp_record = dataclasses.replace(checkpoint.record_of(small), inputs=inputs)  # type: ignore[assignment]
    hfp.save(small, tmp_path / "hostile", model=name)
    for wanted in (origin.Wanted(), origin.Wanted(model=name)):
        with pytest.raises(ValueError, match=words):
            origin.compact(tmp_path / "hostile", wanted)


@pytest.mark.parametrize("ignore", [3, [1], {"a": "b"}])
def test_a_record_that_ignores_what_has_no_name_is_refused(ignore: Any) -> None:
    small = hfp.wrap(models.build(**BUILD), target_macs=0.5).compact()
    record = checkpoint.record_to_json(checkpoint.record_of(small))
    record["targets"] = record["targets"] | {"ignore": ignore}
    with pytest.raises(ValueError, match=r"does not make sense \(wrong: targets\)"):
        checkpoint.record_from_json(record, source="x")
