"""The folder of one training run: what lies in it, what is written when, and how a run that was stopped goes on.

    config.json            the settings
    metrics.jsonl          a line an epoch, for people; the checkpoint has them all as well
    checkpoint.safetensors everything needed to go on, replaced after every epoch and when a signal stops the run
    previous.safetensors   the checkpoint before, for the day on which the newest turns out to be damaged
    dense.safetensors      the baseline, once trained; gated.safetensors the gated network at the end of pruning;
    small.safetensors      the compact network, fine-tuned (hfp.load reads it); control.safetensors where asked for
    held.safetensors       with an accuracy floor: the last state that held it
    result.json            the final figures

What counts is the checkpoint: an epoch that it does not know of is run again. So an epoch's line may be written before
its checkpoint, and is dropped where a run was killed between the two; and settings and lines that are damaged are put
right from it. A checkpoint that is damaged itself is kept, as damaged.safetensors, and the one before takes its place.
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

from hfp.checkpoint import load_training, save_training
from hfp.experiment.loop import Running
from hfp.experiment.restore import put_back, put_back_amid
from hfp.files import Damaged, atomic_write

PHASES = ("dense", "prune", "finetune", "control")
"""In the order in which a run goes through them."""


class RunFolder:
    """One run's files. Made by `create` or `resume`.

    Attributes:
        path: the folder.
        config: the settings, as in config.json.
        state: the checkpoint that the run goes on from; None before the first one.
        mended: what was damaged, and what is used in its place; a sentence each.
    """

    def __init__(self, path: Path, config: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        self.path = path
        self.config = config
        self.state = state
        self.mended: list[str] = []
        self.settings = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self.previous = path / "previous.safetensors"
        self.damaged = path / "damaged.safetensors"
        self.dense = path / "dense.safetensors"
        self.gated = path / "gated.safetensors"
        self.small = path / "small.safetensors"
        self.control = path / "control.safetensors"
        self.held = path / "held.safetensors"
        self._history: list[dict[str, Any]] = []
        self._new = self._lost_settings = self._fell_back = False

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> RunFolder:
        """A new run for a folder that holds none yet. Nothing is written before `begin`: settings may prove wrong.

        Raises:
            ValueError: there is a run in it, or `path` is a file.
        """
        path = Path(path)
        run = cls(path, config)
        run._new = True
        if run.begun:
            raise run._taken()
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; --output wants the name of a folder for the run.")
        return run

    @classmethod
    def resume(cls, path: str | Path) -> RunFolder:
        """The run in the folder `path` (or in the folder of the file `path`). Nothing is written before `begin`.

        Raises:
            ValueError: there is no run, or what is left of it is damaged (`hfp.files.Damaged`).
        """
        path = Path(path)
        path = path.parent if path.is_file() else path
        run = cls(path, {})
        if not run.begun:
            raise ValueError(
                f"There is no run in {path} (no config.json); start one with --output {shlex.quote(str(path))}."
            )
        run.state = run._last_good()
        try:
            run.config = _settings(run.settings)
        except Damaged as error:
            config = (run.state or {}).get("config")
            if not isinstance(config, dict):
                raise
            run.config, run._lost_settings = config, True
            run.mended.append(f"{error} The checkpoint has the settings as well, and they are taken from there.")
        run._history = run._lines_so_far()
        return run

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return any(path.exists() for path in (self.settings, self.checkpoint, self.previous))

    def _taken(self) -> ValueError:
        return ValueError(
            f"{self.path} already holds a run. Continue it with --resume {shlex.quote(str(self.path))}, "
            "or give another --output."
        )

    def begin(self) -> None:
        """Make the folder, or put an old one back where its checkpoint is; from here on, files are written.

        Raises:
            ValueError: another run has begun in the folder since `create` looked.
        """
        settings = json.dumps(self.config, indent=2).encode()
        if self._new:
            self._claim(settings)
        elif self._lost_settings or not self.settings.exists():
            atomic_write(self.settings, settings)
        if self._fell_back:  # else the damaged file would become the one before, when the next is written
            os.replace(self.checkpoint, self.damaged)
        for leftover in [] if self._new else self.path.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        if self.metrics.exists() or self._history:
            atomic_write(self.metrics, "".join(json.dumps(line) + "\n" for line in self._history).encode())

    def _claim(self, settings: bytes) -> None:
        """Write the settings, whole and unless there are any: of two runs, the second to link them is refused."""
        draft = self.path / f".config.json.{os.getpid()}.draft.tmp"
        atomic_write(draft, settings)
        try:
            os.link(draft, self.settings)
        except FileExistsError as error:
            raise self._taken() from error
        except OSError:  # a file system without second names
            os.replace(draft, self.settings)
        finally:
            draft.unlink(missing_ok=True)

    def passed(self, phase: str) -> bool:
        """Whether the run has already gone beyond `phase`, so that its result lies in the folder."""
        return self.state is not None and PHASES.index(self.state["phase"]) > PHASES.index(phase)

    def restore(self, phase: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put `net` and `optimizer` back where the checkpoint has them, if it is of `phase`; the epochs done in it.

        Raises:
            ValueError: the checkpoint is of another network or optimizer, or misses a part.
        """
        if self.state is None or self.state["phase"] != phase:
            return 0
        put_back(net, optimizer, self.state, source=str(self.checkpoint))
        return int(self.state["epoch"])

    def amid(self, phase: str, device: torch.device) -> Running:
        """How far the epoch is amid which the checkpoint was saved, if it is of `phase`; random numbers go on, too.

        Raises:
            ValueError: the checkpoint does not say it in a way that fits.
        """
        if self.state is None or self.state["phase"] != phase:
            return Running()
        return put_back_amid(self.state, device, source=str(self.checkpoint))

    def save(self, state: Mapping[str, Any], path: Path | None = None) -> None:
        """Write the checkpoint, and keep the one before; or, with `path`, write the state under that name."""
        if path is None:
            save_training(self.checkpoint, {**state, "lines": self._history}, before=self.previous)
        else:
            save_training(path, state)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and see it onto the disk."""
        self._history.append(dict(line))
        with open(self.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; those that are none, such as a last one cut short by a crash, are left out."""
        if not self.metrics.exists():
            return []
        found = []
        for text in self.metrics.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if _is_line(line):
                found.append(line)
        return found

    def write_result(self, result: Mapping[str, Any]) -> None:
        atomic_write(self.path / "result.json", json.dumps(result, indent=2).encode())

    def resume_command(self) -> str:
        """What the user types to go on."""
        return f"python train.py --resume {shlex.quote(str(self.path))}"

    def _last_good(self) -> dict[str, Any] | None:
        """The checkpoint, or, if it is damaged, the one before; None if none was written yet."""
        if not self.checkpoint.exists() and not self.previous.exists():
            if self.lines():  # written after the first checkpoint
                raise Damaged(
                    f"{self.metrics} tells of epochs that were run, and {self.checkpoint}, which had them, is missing, "
                    f"as is {self.previous}. Put it back, or start a new run with another --output."
                )
            return None
        try:
            if not self.checkpoint.exists():
                raise Damaged(f"{self.checkpoint} is missing.")
            return _checkpoint(self.checkpoint)
        except Damaged as error:
            if not self.previous.exists():
                raise
            try:
                state = _checkpoint(self.previous)
            except Damaged as other:
                raise Damaged(f"{error} The checkpoint before is no better: {other}") from other
            self._fell_back = self.checkpoint.exists()
            done = f"{state['epoch']} epochs of phase {state['phase']!r}"
            self.mended.append(
                f"{error} The one before, {self.previous}, is whole, and has {done}: from there it goes on."
            )
            return state

    def _lines_so_far(self) -> list[dict[str, Any]]:
        """The lines of the epochs that the checkpoint knows of."""
        if self.state is None:
            return []
        lines = self.state.get("lines")
        if lines is None:  # a checkpoint of format 2 or older: metrics.jsonl alone has them
            reached = (PHASES.index(self.state["phase"]), self.state["epoch"])
            return [line for line in self.lines() if (PHASES.index(line["phase"]), line["epoch"]) <= reached]
        if not isinstance(lines, list) or not all(map(_is_line, lines)):
            raise ValueError(f"{self.checkpoint} is not the checkpoint of a run: its lines are not those of epochs.")
        return list(lines)


def _is_line(line: Any) -> bool:
    return isinstance(line, dict) and line.get("phase") in PHASES and type(line.get("epoch")) is int


def _settings(path: Path) -> dict[str, Any]:
    """The content of config.json."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict):
        raise Damaged(f"{path} is damaged: it holds no settings.")
    return config


def _checkpoint(path: Path) -> dict[str, Any]:
    """The state in a file, which has to be that of a run."""
    state = load_training(path)
    epoch = state.get("epoch")
    if state.get("phase") not in PHASES or type(epoch) is not int or epoch < 0:
        raise ValueError(f"{path} is not the checkpoint of a run: it names no phase and epoch.")
    return state
