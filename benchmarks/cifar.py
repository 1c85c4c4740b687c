"""Accuracy on CIFAR-10: the runs behind the README's figures, and the figures made from them.

    python benchmarks/cifar.py --data DIR --weights DIR      # train what is not yet trained, then report
    python benchmarks/cifar.py --report-only                 # table and pictures again, from benchmarks/results/cifar

--data is a folder of image folders (train/CLASS, test/CLASS); --weights one of checkpoints NETWORK-cifar10.th.
A network has one baseline: its checkpoint, adapted to the images by the run of the first seed and the first target,
from which all its other runs start. The first target of every seed also trains the control: the baseline, unpruned,
for as many epochs by the same recipe with the same batches. What a pruned network loses is counted against it.
Each run is a `train.py` of its own; the same command goes on with what was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from cifar_figures import Result, draw_widths, load_results, markdown, rich_table
from common import HERE, RESULTS, write_json
from rich.console import Console

from hfp.experiment.options import flag
from hfp.files import atomic_write

ROOT = HERE.resolve().parent
FIGURES = RESULTS / "cifar"

RECIPE: dict[str, Any] = {
    "dataset": "imagefolder",
    "statistics": "imagenet",
    "batch_size": 128,
    "lr": 0.05,
    "prune_epochs": 3,
    "finetune_epochs": 9,
    "distill": 0.7,
    "amp": True,
    "channels_last": True,
}
"""The settings of train.py that all runs have in common."""
ADAPT_EPOCHS = 3

# ---------------------------------------------------------------------------------------------------------------------
# The runs


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    settings: dict[str, Any]
    weights: Path
    """What it starts from."""

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").exists()

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    def command(self) -> list[str]:
        """Start it, or go on with it; train.py refuses to go on by settings other than those it was started with."""
        flags = [flag(name) if value is True else f"{flag(name)}={value}" for name, value in self.settings.items()]
        files = ["--resume", self.folder] if self.begun else ["--output", self.folder, "--weights", self.weights]
        return [sys.executable, "train.py", *map(str, files), *flags]


def plan(
    networks: Sequence[str], targets: Sequence[float], seeds: Sequence[int], *, data: Path, weights: Path, runs: Path
) -> list[Run]:
    """Every run, in an order in which a network's baseline comes first."""
    planned = []
    for network in networks:
        folders = {(seed, target): runs / f"{network}-{target:g}-seed{seed}" for seed in seeds for target in targets}
        first = folders[seeds[0], targets[0]]
        for (seed, target), folder in folders.items():
            own = {"model": network, "target_macs": target, "seed": seed, "data_dir": data}
            own["dense_epochs"] = ADAPT_EPOCHS if folder == first else 0
            if target == targets[0]:
                own["control"] = True
            start = weights / f"{network}-cifar10.th" if folder == first else first / "dense.safetensors"
            planned.append(Run(folder, RECIPE | own, start))
    return planned


def work_off(runs: Sequence[Run], jobs: int) -> list[str]:
    """Run what is not finished, `jobs` at a time; the names of the runs that failed or had no weights to start from."""
    waiting = [run for run in runs if not run.finished]
    running: dict[subprocess.Popen[bytes], Run] = {}
    failed: list[str] = []
    try:
        while waiting or running:
            ready = [run for run in waiting if run.begun or run.weights.exists()]
            if not ready and not running:
                return failed + [f"{run.folder.name} (there is no {run.weights})" for run in waiting]
            for run in ready[: jobs - len(running)]:
                waiting.remove(run)
                running[launch(run, to_file=jobs > 1)] = run
            for process in [process for process in running if process.poll() is not None]:
                run = running.pop(process)
                if process.returncode:
                    failed.append(f"{run.folder.name} (exit code {process.returncode})")
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def launch(run: Run, to_file: bool) -> subprocess.Popen[bytes]:
    """Start the process of a run. On one thread, unless the environment says otherwise: the count changes results."""
    print(f"\n{'going on with' if run.begun else 'starting'} {run.folder.name}", flush=True)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    with open(log, "ab") if to_file else contextlib.nullcontext() as out:
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        return subprocess.Popen(run.command(), cwd=ROOT, env=environment, stdout=out, stderr=out)


# ---------------------------------------------------------------------------------------------------------------------
# Their results


def runs_of_shared(runs: Path) -> dict[str, Result]:
    """Results of the finished runs in `runs`, by name. Other things may lie there; paths of the machine are cut off.

    Raises:
        ValueError: a run was not made by the recipe.
    """
    found = {}
    for path in sorted(runs.glob("*/result.json")):
        name = path.parent.name
        if re.fullmatch(r"\w+-[\d.]+-seed\d+", name):
            result = json.loads(path.read_text())
            check_recipe(name, result["config"])
            found[name] = without_paths(result)
    return found


def check_recipe(name: str, config: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: settings other than the recipe's.
    """
    for setting, value in RECIPE.items():
        if config.get(setting) != value:
            raise ValueError(
                f"The run {name} was made with {flag(setting)} {config.get(setting)}, the recipe says {value}. "
                "Move it away to have it made again, or give another folder: --runs DIR."
            )


def without_paths(result: Result) -> Result:
    """`result` with file names where the settings hold paths."""
    places = {
        name: PurePath(value).name
        for name, value in result["config"].items()
        if name in ("output", "data_dir", "weights") and value is not None
    }
    return result | {"config": result["config"] | places}


# ---------------------------------------------------------------------------------------------------------------------
# The command


def report(runs: Path, folder: Path) -> None:
    """Copy the results of finished runs to `folder`; from all that lie there, print the table, write it, draw."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in runs_of_shared(runs).items():
        write_json(folder / f"{name}.json", result)
    results = load_results(folder)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(rich_table(results))
    recipe = " ".join(flag(name) if value is True else f"{flag(name)} {value}" for name, value in RECIPE.items())
    atomic_write(folder / "table.md", markdown(results, recipe).encode())
    for network in dict.fromkeys(one["config"]["model"] for one in results):
        own = [one for one in results if one["config"]["model"] == network]
        draw_widths(own, folder / f"widths-{network}.png")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a run failed, 2 bad arguments or results, 130 stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="image folders train/CLASS and test/CLASS")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="checkpoints NETWORK-cifar10.th")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"], metavar="NAME")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.4, 0.25], metavar="SHARE", help="of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "cifar", metavar="DIR", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=FIGURES, metavar="DIR", help="folder of table and pictures")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; above 1, their output goes to log files")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    given = parser.parse_args(argv)
    if not given.report_only and (given.data is None or given.weights is None):
        parser.error("training needs --data DIR and --weights DIR; --report-only needs neither.")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least one run at a time.")
    runs = given.runs.resolve()
    failed: list[str] = []
    try:
        if not given.report_only:
            # A process that outlives this one would write into its folder beside the one that goes on with it.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            data, weights = given.data.resolve(), given.weights.resolve()
            planned = plan(given.networks, given.targets, given.seeds, data=data, weights=weights, runs=runs)
            failed = work_off(planned, given.jobs)
        report(runs, given.results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on.", file=sys.stderr)
        return 130
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
