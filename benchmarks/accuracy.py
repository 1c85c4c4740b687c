"""Accuracy on CIFAR-10 at equal multiply-adds: every method from one baseline, by one recipe, for as many epochs.

    python benchmarks/accuracy.py --network resnet20 --data DIR --methods hfp,uniform,tp-group-norm --targets 0.4,0.1
    python benchmarks/accuracy.py --report-only          # table and pictures again, from benchmarks/results/accuracy

--data is a folder of image folders (train/CLASS, test/CLASS), or holds torchvision's CIFAR-10. Methods are those of
hfp.methods, and Torch-Pruning's (benchmarks/peers.py; `pip install -e ".[bench]"`).

The baseline of a network is trained first, once, with shortcuts that are projections (Torch-Pruning knows no others);
with --weights FILE it is adapted to the images from that checkpoint, and with --baseline-epochs 0 that file is the
baseline. Every run starts from it, is pruned in the first --prune-epochs of its --epochs and recovers in the others, on
one learning-rate cosine; the runs of a seed see the same batches in the same order, with the baseline as a teacher. The
control of a seed is the same with a target of 1: nothing is pruned. What is reported is test accuracy after the last
epoch. Nothing is chosen on the test images; the validation accuracy of every epoch is in the JSON.

Each run is a `train.py` of its own, or, for a peer, train.py with another choice of channels. The same command goes on
with what was stopped, at its last epoch; --minutes stops by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from accuracy_figures import (
    CONTROL,
    Result,
    draw_curves,
    draw_widths,
    groups,
    label,
    load_results,
    markdown,
    method_of,
    rich_table,
)
from common import HERE, RESULTS, write_json
from peers import PEERS
from rich.console import Console
from safetensors.torch import load_file

from hfp.experiment.options import flag
from hfp.experiment.run import RunFolder
from hfp.files import atomic_write
from hfp.methods import METHODS
from models.resnet import DEPTHS

ROOT = HERE.resolve().parent
FIGURES = RESULTS / "accuracy"

RECIPE: dict[str, Any] = {"batch_size": 128, "distill": 0.7, "channels_last": True}
"""The settings of train.py that all runs have in common, whatever the command line of the benchmark says."""
FROM_SCRATCH, ADAPTED = {"lr": 0.1, "dense_epochs": 30}, {"lr": 0.05, "dense_epochs": 3}
"""How a baseline is trained, without and with weights to start from."""
ONLY_DENSE = {"method": CONTROL[0], "target_macs": CONTROL[1], "prune_epochs": 1, "finetune_epochs": 0, "seed": 0}
"""What train.py is told beside: the run is of no further interest once its baseline is there."""

# ---------------------------------------------------------------------------------------------------------------------
# The runs


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    settings: dict[str, Any]
    weights: Path | None
    """What it starts from; None for the weights of a fresh network."""
    makes: str = "result.json"
    """The file that is there once it is finished."""

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").exists()

    @property
    def finished(self) -> bool:
        return (self.folder / self.makes).exists()

    @property
    def ready(self) -> bool:
        return self.begun or self.weights is None or self.weights.exists()

    def command(self) -> list[str]:
        """Start it, or go on with it; train.py refuses to go on by settings other than those it was started with."""
        script = "benchmarks/peers.py" if self.settings.get("method") in PEERS else "train.py"
        flags = [spelt(name, value) for name, value in self.settings.items() if value is not False]
        files = ["--resume", self.folder] if self.begun else ["--output", self.folder]
        if not self.begun and self.weights is not None:
            files += ["--weights", self.weights]
        return [sys.executable, script, *map(str, files), *flags]


def spelt(name: str, value: Any) -> str:
    """
    >>> spelt("amp", True), spelt("target_macs", 0.4)
    ('--amp', '--target-macs=0.4')
    """
    return flag(name) if value is True else f"{flag(name)}={value}"


def plan(given: argparse.Namespace) -> list[Run]:
    """Every run that the command line asks for: the baseline first, then seed by seed, each with its control first."""
    network = {"model": given.network, "data_dir": given.data, "device": given.device, "amp": given.amp}
    network["dataset"] = "imagefolder" if (given.data / "train").is_dir() else "cifar10"
    if given.shortcut is not None:
        network["shortcut"] = given.shortcut
    common = RECIPE | network | {"lr": given.lr}
    name = label(common)
    planned, baseline = [], given.weights
    if given.baseline_epochs != 0:
        training = FROM_SCRATCH if given.weights is None else ADAPTED
        if given.baseline_epochs is not None:
            training = training | {"dense_epochs": given.baseline_epochs}
        dense = common | {"distill": 0.0} | training | ONLY_DENSE
        planned.append(Run(given.runs / f"{name}-baseline", dense, given.weights, makes="dense.safetensors"))
        baseline = planned[0].folder / "dense.safetensors"
    split = {"prune_epochs": given.prune_epochs, "finetune_epochs": given.epochs - given.prune_epochs}
    for seed in given.seeds:
        for method, target in [CONTROL, *((method, target) for target in given.targets for method in given.methods)]:
            own = {"method": method, "target_macs": target, "seed": seed, "dense_epochs": 0}
            title = "control" if (method, target) == CONTROL else f"{method}-{target:g}"
            folder = given.runs / f"{name}-{given.epochs}ep-{title}-seed{seed}"
            planned.append(Run(folder, common | split | own, baseline))
    return planned


def work_off(runs: Sequence[Run], jobs: int, until: float) -> list[str]:
    """Run what is not finished, `jobs` at a time, up to `until` on the monotonic clock.

    The names of the runs that failed or had no weights to start from.
    """
    waiting = [run for run in runs if not run.finished]
    running: dict[subprocess.Popen[bytes], Run] = {}
    failed: list[str] = []
    try:
        while (waiting or running) and time.monotonic() < until:
            ready = [run for run in waiting if run.ready]
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


def collect(runs: Sequence[Run], folder: Path) -> None:
    """Copy the results of those that are finished to `folder`, with every epoch, without paths of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.finished and run.makes == "result.json":
            result = json.loads((run.folder / run.makes).read_text())
            check_settings(run, result["config"])
            history = RunFolder(run.folder, {}).lines()
            added = {"history": history, "baseline_sha256": digest(run.folder / "dense.safetensors")}
            write_json(folder / f"{run.folder.name}.json", without_paths(result) | added)


def digest(weights: Path) -> str:
    """A hash of names and numbers; the file says besides when it was written."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def check_settings(run: Run, config: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the run in the folder was made by other settings than planned.
    """
    for setting, value in run.settings.items():
        if setting not in ("data_dir", "device") and config.get(setting) != value:
            raise ValueError(
                f"The run {run.folder.name} was made with {flag(setting)} {config.get(setting)}, not {value}. "
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


def report(folder: Path) -> None:
    """From all results in `folder`: print the table, write it, draw a picture of the methods and one of widths."""
    results = load_results(folder)
    (Console() if sys.stdout.isatty() else Console(width=160)).print(rich_table(results))
    command = f"python benchmarks/accuracy.py --report-only --results {os.path.relpath(folder.resolve(), ROOT)}"
    atomic_write(folder / "table.md", markdown(results, command).encode())
    for name, own in groups(results):
        draw_curves(own, folder / f"accuracy-{name}.png")
        if gated := [one for one in own if method_of(one) == "hfp"]:
            draw_widths(gated, folder / f"widths-{name}.png")


# ---------------------------------------------------------------------------------------------------------------------
# The command

Item = TypeVar("Item")


def listed(kind: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """A parser of items between commas, each once.

    >>> listed(float)("0.4,0.1,0.4")
    [0.4, 0.1]
    """
    return lambda text: list(dict.fromkeys(kind(item) for item in text.split(",")))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ",".join([*METHODS, *PEERS])
    made.add_argument(
        "--network", default="resnet20", metavar="NAME", help="resnet20, resnet56, resnet110, vgg16_bn ..."
    )
    made.add_argument("--shortcut", choices=("A", "B"), help="of the ResNets here (default: B; A with --weights)")
    made.add_argument("--data", type=Path, metavar="DIR")
    made.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint that the baseline is adapted from")
    made.add_argument("--methods", type=listed(str), default=["hfp"], metavar="NAME,...", help=f"of {known}")
    made.add_argument("--targets", type=listed(float), default=[0.4], metavar="SHARE,...", help="of the multiply-adds")
    made.add_argument("--seeds", type=listed(int), default=[0, 1, 2], metavar="SEED,...")
    made.add_argument("--epochs", type=int, default=10, help="of pruning and recovery together (default: 10)")
    made.add_argument("--prune-epochs", type=int, help="the first of these, for pruning (default: three tenths)")
    made.add_argument("--lr", type=float, default=0.05, help="of the runs, where the cosine starts (default: 0.05)")
    made.add_argument("--baseline-epochs", type=int, help="default: 30, or 3 from --weights; 0 takes these as they are")
    made.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 ...")
    made.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="forward passes in bfloat16")
    made.add_argument("--runs", type=Path, default=ROOT / "runs" / "accuracy", metavar="DIR", help="folder of the runs")
    made.add_argument("--results", type=Path, default=FIGURES, metavar="DIR", help="folder of JSON, table and pictures")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time; above 1, their output goes to log files")
    made.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so many; the same command goes on"
    )
    made.add_argument("--report-only", action="store_true", help="train nothing")
    return made


def complete(given: argparse.Namespace) -> argparse.Namespace:
    """What is given, checked, with paths that hold anywhere.

    Raises:
        ValueError: it makes no sense.
    """
    if given.data is None:
        raise ValueError("training needs --data DIR; --report-only does not.")
    unknown = [method for method in given.methods if method not in METHODS and method not in PEERS]
    if unknown:
        raise ValueError(f"--methods {','.join(unknown)}: there are {', '.join([*METHODS, *PEERS])}")
    filled = {name: getattr(given, name).resolve() for name in ("data", "runs")}
    if given.weights is not None:
        filled["weights"] = given.weights.resolve()
    elif given.baseline_epochs == 0:
        raise ValueError("--baseline-epochs 0 takes a baseline as it is; which, says --weights FILE.")
    if given.shortcut is None and given.network in (f"resnet{depth}" for depth in DEPTHS):
        filled["shortcut"] = "B" if given.weights is None else "A"
    peers = [method for method in given.methods if method in PEERS]
    if peers and (filled.get("shortcut") or given.shortcut) == "A":
        raise ValueError(f"{peers[0]} crashes on shortcuts that pad (A); compare all methods on --shortcut B.")
    if given.prune_epochs is None:
        filled["prune_epochs"] = max(1, round(0.3 * given.epochs))
    if not 1 <= filled.get("prune_epochs", given.prune_epochs) <= given.epochs:
        raise ValueError(f"--prune-epochs {given.prune_epochs} has to be from 1 to --epochs {given.epochs}.")
    if given.jobs < 1:
        raise ValueError(f"--jobs {given.jobs}: at least one run at a time.")
    return argparse.Namespace(**vars(given) | filled)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a run failed, 2 bad arguments or results, 3 out of time, 130 stopped."""
    given = parser().parse_args(argv)
    failed: list[str] = []
    runs: list[Run] = []
    try:
        if not given.report_only:
            until = time.monotonic() + 60 * given.minutes
            # A process that outlives this one would write into its folder beside the one that goes on with it.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            runs = plan(complete(given))
            failed = work_off(runs, given.jobs, until)
            collect(runs, given.results)
        if given.report_only or any(given.results.glob("*-seed*.json")):
            report(given.results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on.", file=sys.stderr)
        return 130
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    left = [run for run in runs if not run.finished]
    if left and not failed:
        print(f"{len(left)} of {len(runs)} runs are still to be finished; the same command goes on.", file=sys.stderr)
        return 3
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
