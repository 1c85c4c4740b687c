"""The folder of one training run: what lies in it, what is written when, and how a run that was stopped goes on.

    config.json            the settings
    metrics.jsonl          a line an epoch
    checkpoint.safetensors everything needed to go on, replaced after every epoch
    dense.safetensors      the baseline, once trained; gated.safetensors the gated network at the end of pruning;
    small.safetensors      the compact network, fine-tuned (hfp.load reads it); control.safetensors where asked for
    held.safetensors       with an accuracy floor: the last state that held it
    result.json            the final figures

An epoch's line is written before its checkpoint. A run killed between the two has a line too many, never one too few,
and `RunFolder.begin` drops the lines that the checkpoint does not know of.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfp.checkpoint import fill, load_training, save_training
from hfp.files import atomic_write

PHASES = ("dense", "prune", "finetune", "control")
"""In the order in which a run goes through them."""


class RunFolder:
    """One run's files. Made by `create` or `resume`.

    Attributes:
        path: the folder.
        config: the settings, as in config.json.
        state: the checkpoint that the run goes on from; None before the first one.
    """

    def __init__(self, path: Path, config: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        self.path = path
        self.config = config
        self.state = state
        self.dense = path / "dense.safetensors"
        self.gated = path / "gated.safetensors"
        self.small = path / "small.safetensors"
        self.control = path / "control.safetensors"
        self.held = path / "held.safetensors"
        self.checkpoint = path / "checkpoint.safetensors"
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> RunFolder:
        """A new run for a folder that holds none yet. Nothing is written before `begin`: settings may prove wrong.

        Raises:
            ValueError: there is a run in it, or `path` is a file.
        """
        path = Path(path)
        if (path / "config.json").exists():
            raise ValueError(
                f"{path} already holds a run. Continue it with --resume {shlex.quote(str(path))}, "
                "or give another --output."
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; --output wants the name of a folder for the run.")
        return cls(path, config)

    @classmethod
    def resume(cls, path: str | Path) -> RunFolder:
        """The run in the folder `path` (or in the folder of the file `path`). Nothing is written before `begin`.

        Raises:
            ValueError: there is no run, or its config or checkpoint is damaged.
        """
        path = Path(path)
        path = path.parent if path.is_file() else path
        try:
            config = json.loads((path / "config.json").read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"There is no run in {path} (no config.json); start one with --output {shlex.quote(str(path))}."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path / 'config.json'} is damaged: {error}.") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path / 'config.json'} is damaged: it holds no settings.")
        run = cls(path, config)
        if run.checkpoint.exists():
            run.state = load_training(run.checkpoint)
            if run.state.get("phase") not in PHASES or type(run.state.get("epoch")) is not int:
                raise ValueError(f"{run.checkpoint} is not the checkpoint of a run: it names no phase and epoch.")
        return run

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return (self.path / "config.json").exists()

    def begin(self) -> None:
        """Make the folder, or put an old one back where its checkpoint is; from here on, files are written."""
        if not self.begun:
            atomic_write(self.path / "config.json", json.dumps(self.config, indent=2).encode())
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        self._trim_metrics()

    def passed(self, phase: str) -> bool:
        """Whether the run has already gone beyond `phase`, so that its result lies in the folder."""
        return self.state is not None and PHASES.index(self.state["phase"]) > PHASES.index(phase)

    def restore(self, phase: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put `net` and `optimizer` back where the checkpoint has them, if it is of `phase`; the epochs done in it.

        Raises:
            ValueError: the checkpoint is of another network, or misses a part.
        """
        if self.state is None or self.state["phase"] != phase:
            return 0
        for part in ("net", "optimizer"):
            if not isinstance(self.state.get(part), dict):
                raise ValueError(f"{self.checkpoint} is damaged: it has no {part}.")
        fill(net, self.state["net"], source=str(self.checkpoint))
        optimizer.load_state_dict(self.state["optimizer"])
        return int(self.state["epoch"])

    def save(self, state: Mapping[str, Any], path: Path | None = None) -> None:
        """Write the checkpoint (or, with `path`, a copy of it under that name) atomically."""
        save_training(path or self.checkpoint, state)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and see it onto the disk."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; a last one cut short by a crash is left out."""
        if not self.metrics.exists():
            return []
        found = []
        for text in self.metrics.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("phase") in PHASES:
                found.append(line)
        return found

    def write_result(self, result: Mapping[str, Any]) -> None:
        atomic_write(self.path / "result.json", json.dumps(result, indent=2).encode())

    def resume_command(self) -> str:
        """What the user types to go on."""
        return f"python train.py --resume {shlex.quote(str(self.path))}"

    def _trim_metrics(self) -> None:
        """Drop what was logged after the checkpoint: those epochs are about to be run again."""
        if not self.metrics.exists():
            return
        reached = (PHASES.index(self.state["phase"]), self.state["epoch"]) if self.state is not None else (-1, 0)
        kept = [line for line in self.lines() if (PHASES.index(line["phase"]), line["epoch"]) <= reached]
        atomic_write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())
