"""Anybody's dense weights: however they are wrapped, and whatever is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import swa_utils

import models
from hfp.deploy import foreign

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights"


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


State = dict[str, Any]


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], State]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best": 0.9, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "args": None},
    "one in the other": lambda state: {"model": {"state_dict": state}},
    "DataParallel": prefixed("module."),
    "torch.compile in DataParallel": prefixed("module._orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "pytorch-lightning_version": "2.0"},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
    "without counters": lambda state: {name: x for name, x in state.items() if "num_batches" not in name},
    "in double precision": lambda state: {
        name: x.double() if x.is_floating_point() else x for name, x in state.items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapping_comes_off(wrapping: str, tmp_path: Path) -> None:
    theirs, ours = network(1), network(2)
    torch.save(WRAPPED[wrapping](theirs.state_dict()), tmp_path / "weights.pth")
    foreign.fill(ours, foreign.read(tmp_path / "weights.pth"), source="weights.pth")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]) and value.dtype == theirs.state_dict()[name].dtype


def test_safetensors_and_old_files_of_torch_save(tmp_path: Path) -> None:
    theirs, ours = network(1), network(2)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    torch.save(theirs.state_dict(), tmp_path / "weights.th", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.th"):
        foreign.fill(ours, foreign.read(tmp_path / name), source=name)
        assert torch.equal(ours[0].weight, theirs[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_public_checkpoints_load(depth: int) -> None:
    path = WEIGHTS / f"resnet{depth}-cifar10.th"
    if not path.is_file():
        pytest.skip(f"no checkpoint at {path}")
    model = models.build(f"resnet{depth}")
    foreign.fill(model, foreign.read(path), source=str(path))
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, stored[f"module.{name}"]), name


AVERAGES: dict[str, Callable[[State, State], State]] = {
    "timm": lambda live, averaged: {"state_dict": live, "state_dict_ema": averaged},
    "torchvision": lambda live, averaged: {
        "model": live,
        "model_ema": {"n_averaged": torch.tensor(2), **prefixed("module.")(averaged)},
    },
    "wrapped": lambda live, averaged: {"model": live, "ema": {"state_dict": averaged, "decay": 0.9}},
}


@pytest.mark.parametrize("wrapping", AVERAGES)
def test_averaged_weights_are_taken_if_asked_for(wrapping: str, tmp_path: Path) -> None:
    live, averaged, ours = network(1), network(2), network(3)
    torch.save(AVERAGES[wrapping](live.state_dict(), averaged.state_dict()), tmp_path / "x.pt")
    for use_ema, expected in ((False, live), (True, averaged)):
        foreign.fill(ours, foreign.read(tmp_path / "x.pt", use_ema=use_ema), source="x.pt")
        assert torch.equal(ours[0].weight, expected[0].weight)  # type: ignore[index]


def test_an_averaged_model_itself_is_averaged(tmp_path: Path) -> None:
    averaged = swa_utils.AveragedModel(network(1))
    torch.save(averaged.state_dict(), tmp_path / "x.pt")
    ours = network(2)
    foreign.fill(ours, foreign.read(tmp_path / "x.pt", use_ema=True), source="x.pt")
    assert torch.equal(ours[0].weight, averaged.module[0].weight)  # type: ignore[index]


HEADS = {"squeezenet1_0": 2, "inception_v3": 4, "vit_b_32": 2, "lenet5": 2, "resnet20": 2}


@pytest.mark.parametrize("name", HEADS)
def test_weights_for_other_classes_but_for_the_heads(name: str) -> None:
    """Auxiliary heads, too."""
    with torch.device("meta"):
        ours, others, theirs = (models.build(name, num_classes=classes) for classes in (10, 11, 1000))
    given = prefixed("module.")(theirs.state_dict()) | {"n_averaged": torch.tensor(3)}
    state, afresh = foreign.without_heads(given, ours, others)
    assert len(afresh) == HEADS[name] and state.keys() == ours.state_dict().keys()
    assert all(value.shape == ours.state_dict()[key].shape for key, value in state.items())
    assert [key for key, value in state.items() if value is not given[f"module.{key}"]] == afresh
    assert foreign.without_heads(ours.state_dict(), ours, others)[1] == []
    wrong = given | {f"module.{afresh[0]}": torch.zeros(1000, 7, 7)}
    assert foreign.without_heads(wrong, ours, others) == ({key: wrong[f"module.{key}"] for key in state}, [])


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {Harm.proof}",)

    proof = ""


def written(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "There is no file"),
    "noise": (
        lambda path: path.write_bytes(b"noise" * 100),
        "is damaged, or holds more than tensors",
    ),
    "empty": (lambda path: path.write_bytes(b""), "is damaged, or holds more than tensors"),
    "code": (
        written({"state_dict": {"a": torch.zeros(1)}, "x": Harm()}),
        "is damaged, or holds more than tensors",
    ),
    "a module": (written(nn.Linear(1, 1)), "holds more than tensors and plain data.*torch.save.model.state_dict"),
    "a tensor": (written(torch.zeros(1)), "holds no state dict.*it holds a Tensor"),
    "no tensors": (written({"epoch": 1, "lr": [1]}), "holds no state dict.*it holds epoch, lr"),
    "averages alone": (written({"model_ema": {"a": torch.zeros(1)}}), "it has averaged weights, which --use-ema takes"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_words(name: str, tmp_path: Path) -> None:
    Harm.proof = str(tmp_path / "harmed")
    make, message = UNREADABLE[name]
    make(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message) as caught:
        foreign.read(tmp_path / "weights.pth")
    assert str(tmp_path) in str(caught.value) and not (tmp_path / "harmed").exists()


def test_there_may_be_no_averages(tmp_path: Path) -> None:
    torch.save({"state_dict": network(1).state_dict()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no averaged weights .*; it holds state_dict"):
        foreign.read(tmp_path / "x.pt", use_ema=True)


UNFIT: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "missing": ({"0.bias": None}, "0.bias is missing"),
    "left over": ({"more": torch.zeros(1)}, "more is not in the network"),
    "misshapen": ({"0.bias": torch.zeros(5)}, r"0\.bias is \(5,\) float32, the network has \(4,\) float32"),
    "of integers": ({"0.bias": torch.zeros(4, dtype=torch.int32)}, r"0\.bias is \(4,\) int32"),
    "not a number": ({"0.bias": torch.tensor([0, 0, 0, float("nan")])}, "0.bias holds numbers that are not finite"),
    "sparse": ({"3.weight": torch.zeros(5, 144).to_sparse()}, r"3\.weight is torch\.sparse_coo"),
    "of another network": (dict.fromkeys(network(0).state_dict()) | {"model.a": torch.zeros(1)}, "0.weight is missing"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(name: str) -> None:
    entries, message = UNFIT[name]
    ours = network(2)
    state = {key: value for key, value in (network(1).state_dict() | entries).items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        foreign.fill(ours, state, source="weights.pth")
    assert "weights.pth" in str(caught.value)
    assert all(torch.equal(value, network(2).state_dict()[key]) for key, value in ours.state_dict().items())
