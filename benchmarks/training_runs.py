"""Runs of train.py for benchmarks and tests: start them, go on with them, kill them, compare what they leave."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hfp.checkpoint import load_training
from hfp.experiment.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent


def arguments(folder: Path, settings: list[str]) -> list[str]:
    """What train.py is called with: to start the run in `folder`, or to go on with it if it has begun."""
    return ["--resume", str(folder)] if RunFolder(folder, {}).begun else [*settings, "--output", str(folder)]


def start(folder: Path, settings: list[str]) -> subprocess.Popen[str]:
    """A process that runs or goes on."""
    command = [sys.executable, "train.py", *arguments(folder, settings)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end; what it printed."""
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with exit code {process.returncode}:\n{printed}")
    return printed


def kill_and_resume(
    folder: Path, settings: list[str], kills: int, window: tuple[float, float], generator: random.Random
) -> int:
    """Run to the end through up to `kills` kills, each at a random moment of `window`, in seconds; how many it took."""
    for done in range(kills):
        process = start(folder, settings)
        try:
            process.wait(generator.uniform(*window))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            finish(process)
            return done
    finish(start(folder, settings))
    return kills


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal, bit by bit, in two finished run folders; empty if nothing."""
    found = []
    names = {path.name for path in one.glob("*.safetensors")} - {"previous.safetensors", "damaged.safetensors"}
    for name in sorted(names):
        tensors = [load_file(folder / name) for folder in (one, other)]
        if tensors[0].keys() != tensors[1].keys():
            found.append(f"{name}: other tensors")
        found += [
            f"{name}: {key}"
            for key in tensors[0].keys() & tensors[1].keys()
            if not torch.equal(tensors[0][key], tensors[1][key])
        ]
    states = [load_training(folder / "checkpoint.safetensors") for folder in (one, other)]
    if states[0].get("record") != states[1].get("record"):
        found.append("the keep vector")
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    if _timeless(states[0]["lines"]) != _timeless(states[1]["lines"]):
        found.append("the lines in the checkpoint")
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for row in results[0]:
        if isinstance(results[0][row], dict) and "accuracy" in results[0][row]:
            found += [f"{key}, {row}" for key in ("accuracy", "loss") if results[0][row][key] != results[1][row][key]]
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the time they took."""
    return _timeless([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def _timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
