"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with a run left in peace.

    python benchmarks/kill_resume.py --kills 10

Everything has to be equal bit by bit: losses of every epoch, keep vector, weights, optimizer state, final accuracies.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, write_json
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from hfp.checkpoint import load_training

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["--target-macs", "0.4", "--dense-epochs", "8", "--prune-epochs", "8", "--finetune-epochs", "8"]


def start(folder: Path, settings: list[str]) -> subprocess.Popen[str]:
    """Start the run in `folder`, or go on with it if it has begun."""
    begun = (folder / "config.json").exists()
    arguments = ["--resume", str(folder)] if begun else [*settings, "--output", str(folder)]
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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
    """What is not equal in two finished run folders; empty if nothing."""
    found = []
    for name in ("dense", "gated", "small", "checkpoint"):
        tensors = [load_file(folder / f"{name}.safetensors") for folder in (one, other)]
        if tensors[0].keys() != tensors[1].keys():
            found.append(f"{name}.safetensors: other tensors")
        found += [
            f"{name}.safetensors: {key}"
            for key in tensors[0].keys() & tensors[1].keys()
            if not torch.equal(tensors[0][key], tensors[1][key])
        ]
    records = [load_training(folder / "checkpoint.safetensors").get("record") for folder in (one, other)]
    if records[0] != records[1]:
        found.append("the keep vector")
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for row in ("baseline", "gated", "compacted", "finetuned"):
        if results[0][row]["accuracy"] != results[1][row]["accuracy"]:
            found.append(f"accuracy, {row}")
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS / "kill_resume.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        peaceful, hunted = Path(temporary) / "peaceful", Path(temporary) / "hunted"
        begin = time.perf_counter()
        process = start(peaceful, SETTINGS)
        while not (peaceful / "checkpoint.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        startup = time.perf_counter() - begin
        finish(process)
        seconds = time.perf_counter() - begin
        trained = sum(json.loads(line)["seconds"] for line in (peaceful / "metrics.jsonl").read_text().splitlines())
        # A life lasts up to a share of the training that lets every kill meet a run that is not yet done.
        window = (0.5 * startup, startup + 1.2 * trained / max(given.kills, 1))
        kills = kill_and_resume(hunted, SETTINGS, given.kills, window, random.Random(given.seed))
        result: dict[str, Any] = {
            "machine": machine(),
            "settings": SETTINGS,
            "seed": given.seed,
            "kills": kills,
            "seconds_in_peace": seconds,
            "differences": differences(peaceful, hunted),
        }
    table = Table("kills", "seconds of a run in peace", "differences")
    table.add_row(str(kills), f"{seconds:.1f}", "; ".join(result["differences"]) or "none, bit by bit")
    Console().print(table)
    write_json(given.output, result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
