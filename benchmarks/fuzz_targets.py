"""What is fuzzed: the readers of hfp, small valid files for each, and what a reader may answer.

A reader gets a file that was valid once. It may take it, or raise ValueError; everything else is a bug.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import torch
from common import HERE
from safetensors.torch import save_file
from torch import nn

import hfp
import models
from hfp import checkpoint, files
from hfp.deploy import foreign
from hfp.deploy.origin import Wanted, compact
from hfp.experiment import loop
from hfp.experiment.restore import amid
from hfp.experiment.run import RunFolder
from hfp.experiment.settings import complete, open_run

FILES = HERE.parent / "tests" / "files"
TINY = {"name": "lenet5", "num_classes": 10, "image_size": 16, "in_channels": 1, "shortcut": None}
"""The smallest network that a training checkpoint can name."""
WRAP = {"target_macs": 0.4, "target_params": None, "ignore": [], "round_to": 1, "counter": "macs", "method": "hfp"}


def network() -> nn.Module:
    """What the committed files of every format hold, and the foreign ones."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


@dataclass(frozen=True)
class Target:
    """A reader, the names of its valid files in the corpus, how they are spoilt, and its share of the inputs."""

    read: Callable[[Path], Any]
    files: tuple[str, ...]
    spoil: Callable[[bytes, random.Random], bytes]
    share: int


# ---------------------------------------------------------------------------------------------- readers


def load(path: Path) -> None:
    model = network()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    try:
        small = hfp.load(path, model)
        assert checkpoint.record_of(small).keep.any()
    finally:
        for tensor, value in zip(model.state_dict().values(), before, strict=True):
            assert torch.equal(tensor, value), "the model that was given has changed"


def header(path: Path) -> None:
    checkpoint.header(path)


def training(path: Path) -> None:
    checkpoint.load_training(path)


def weights(path: Path) -> None:
    checkpoint.weights_notes(path)
    checkpoint.load_weights(path, network())


def foreign_weights(path: Path) -> None:
    foreign.fill(network(), foreign.read(path), source=str(path))


def program(path: Path) -> None:
    try:
        hfp.load(path)
    except ValueError as error:
        assert "trusted=True" in str(error)
    else:
        raise AssertionError("a program was read without trust")
    hfp.load(path, trusted=True)


def compacted(path: Path) -> None:
    """What `python -m hfp.compact` does with a file that it is given, up to the point where it writes."""
    compact(path, Wanted(target_macs=0.3) if path.stat().st_size % 2 else Wanted())


def compacted_foreign(path: Path) -> None:
    wanted = Wanted(model="fuzz_targets:network", shapes=[((1, 3, 8, 8), torch.float32)], target_macs=0.5)
    compact(path, wanted)


def resume(path: Path) -> None:
    """Go on with a run, up to the first step: `path` is one of its files, the others are whole."""
    folder = path.parent
    run = open_run(["--resume", str(folder)])
    assert run.state is not None
    phase = run.state["phase"]
    if phase == "finetune":
        checkpoint.rebuild(
            dense(), checkpoint.record_from_json(run.state.get("record"), source=str(path)), source=str(path)
        )
    net = gated() if phase == "prune" else dense()
    run.restore(phase, net, optimizer_of(net))
    run.amid(phase, torch.device("cpu"))


@functools.cache
def _dense() -> nn.Module:
    torch.manual_seed(0)
    return models.build(**TINY)


def dense() -> nn.Module:
    return copy.deepcopy(_dense())


@functools.cache
def _gated() -> hfp.GatedModel:
    return hfp.wrap(dense(), steps=4, **WRAP)


def gated() -> hfp.GatedModel:
    return copy.deepcopy(_gated())


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    groups: Any = net.param_groups(lr=0.05) if isinstance(net, hfp.GatedModel) else [{"params": net.parameters()}]
    return loop.sgd([{"lr": 0.05, **group} for group in groups])


TARGETS = {
    "hfp.load": Target(load, tuple(f"compact-{n}.safetensors" for n in (1, 2, 3)), mutations.safetensors, 38),
    "header": Target(header, ("compact-3.safetensors",), mutations.safetensors, 4),
    "training": Target(training, tuple(f"training-{n}.safetensors" for n in (1, 2, 3)), mutations.safetensors, 14),
    "dense weights": Target(weights, tuple(f"weights-{n}.safetensors" for n in (1, 2, 3)), mutations.safetensors, 10),
    "foreign torch.save": Target(foreign_weights, ("foreign.pt", "foreign.th", "wrapped.pth"), mutations.archive, 15),
    "foreign safetensors": Target(foreign_weights, ("foreign.safetensors",), mutations.safetensors, 4),
    "compact foreign": Target(compacted_foreign, ("foreign.pt", "foreign.safetensors"), mutations.archive, 1),
    "compact checkpoint": Target(
        compacted, ("dense/checkpoint.safetensors", "prune/checkpoint.safetensors", "small.safetensors"),
        mutations.safetensors, 3,
    ),
    "resume checkpoint": Target(
        resume, ("dense/checkpoint.safetensors", "prune/checkpoint.safetensors"), mutations.safetensors, 4
    ),
    "resume config.json": Target(resume, ("dense/config.json",), mutations.json_file, 5),
    "resume metrics.jsonl": Target(resume, ("dense/metrics.jsonl",), mutations.json_lines, 1),
    "program": Target(program, ("small.pt2",), mutations.archive, 1),
}  # fmt: skip
"""Shares in percent."""


# ---------------------------------------------------------------------------------------------- the corpus


def corpus(folder: Path) -> dict[str, bytes]:
    """Valid files by name: the committed ones of every format, and others that are made here, always the same."""
    found = {path.name: path.read_bytes() for path in FILES.glob("*.safetensors")}
    theirs = network()
    for value in theirs.state_dict().values():
        value.copy_((torch.arange(value.numel()).reshape(value.shape) % 7) / 7)
    state = theirs.state_dict()
    torch.save(state, folder / "foreign.pt")
    torch.save(state, folder / "foreign.th", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, folder / "wrapped.pth"
    )
    save_file(state, folder / "foreign.safetensors")
    small = hfp.load(FILES / f"compact-{files.FORMAT}.safetensors", network())
    hfp.save(small, folder / "small.pt2")
    hfp.save(gated().compact(), folder / "small.safetensors", build=TINY, seed=0)
    for phase in ("dense", "prune"):
        _run(folder / phase, phase)
    found |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found


def _run(folder: Path, phase: str) -> None:
    """The folder of a run that has done one epoch of `phase`, and, in pruning, two steps of the next."""
    config = dataclasses.asdict(complete({"target_macs": 0.4, "image_size": 16}))
    run = RunFolder.create(folder, config)
    run.begin()
    net = gated() if phase == "prune" else dense()
    state = {"net": net.state_dict(), "optimizer": optimizer_of(net).state_dict()}
    also = {"build": TINY, "wrap": {**WRAP, "steps": 4}, "config": config}
    if phase == "prune":
        torch.manual_seed(0)
        also["amid"] = amid(loop.Running(200, 2, 0.1, {"task_loss": torch.tensor(2.0)}), torch.device("cpu"))
    run.log({"phase": phase, "epoch": 1, "task_loss": 0.5, "seconds": 1.0})
    run.save({"phase": phase, "epoch": 1, **state, **also})
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": phase, "epoch": 1, "seconds": 1.0}) + "\n")
