"""What all benchmarks share: where they ran, results as JSON, made-up weights, timing, limits."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NOTHING = 1e-3  # a parameter whose largest value is below this adds nothing that a check would see
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]


def machine() -> dict[str, Any]:
    """Machine, versions, date: without these a figure means nothing."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all: a benchmark that is killed leaves the last complete file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def randomise(model: nn.Module) -> nn.Module:
    """A network as after a training, as far as a check needs it: no parameter is constant, none is next to nothing.

    With the values that layers start from, a wrong cut can go unseen: the shift of a norm is 0, so a channel that is
    gone leaves nothing behind; a branch behind a LayerScale of 1e-6, or a last layer of zeros, adds nothing.
    """
    with torch.no_grad():
        for module in model.modules():
            _randomise_norm(module)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                _randomise_weak(parameter)
    return model


def _randomise_norm(module: nn.Module) -> None:
    """Statistics of batch norms, frozen ones as well, and the shifts of all norms."""
    state = {name: getattr(module, name, None) for name in ("running_mean", "running_var", "bias")}
    if isinstance(state["running_mean"], Tensor) and isinstance(state["running_var"], Tensor):
        nn.init.normal_(state["running_mean"], std=0.1)
        nn.init.uniform_(state["running_var"], 0.5, 1.5)
    if "norm" in type(module).__name__.lower() and isinstance(state["bias"], Tensor):
        nn.init.normal_(state["bias"])


def _randomise_weak(parameter: Tensor) -> None:
    low, high = parameter.min().item(), parameter.max().item()
    largest = max(abs(low), abs(high))
    if low == high == 0 and parameter.dim() < 2:  # a bias, the strength of a branch
        nn.init.normal_(parameter, std=0.3)
    elif low == high and largest > NOTHING:  # the scale of a norm
        parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
    elif low == high and largest > 0:  # LayerScale
        nn.init.uniform_(parameter, 0.5, 1.5)
    elif parameter.dim() > 1:  # a weight, a table of positions
        usual = parameter[0].numel() ** -0.5
        if largest < NOTHING or parameter.std() < 0.3 * usual:
            nn.init.normal_(parameter, std=max(usual, 0.02))


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    start = clock()
    result = work()
    return clock() - start, result


# --- work in processes of their own, under limits --------------------------------------------------------------------

Row = dict[str, Any]
"""Of a table. "stage" says what is being done, "status" that the row is complete, "model_gb" what the weights take."""
Tell = Callable[[Row], None]
Task = Callable[[Tell], None]
"""Tells of its row when it is complete, and whenever a stage begins: what is ended by force leaves a row too."""
PATIENCE = 5  # times as many seconds are left to any other stage, and to a clock on the wall


@dataclass(frozen=True)
class Limits:
    """`seconds` of processor time are for each stage called "trace" or "compact"; `gb` is for what is not weights."""

    seconds: float = 60
    gb: float = 4


@dataclass
class Child:
    """A process, and the row that it has told of so far."""

    name: str
    process: Any
    row: Row = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    stage_began: float = field(default_factory=time.monotonic)
    stage_began_cpu: float = 0.0
    peak_gb: float = 0.0

    def measure(self) -> float:
        """Notes the peak of memory; processor time so far."""
        cpu, peak = used_by(self.process.pid)
        self.peak_gb = max(self.peak_gb, peak)
        return cpu

    def hear(self, row: Row) -> None:
        self.row, self.stage_began, self.stage_began_cpu = row, time.monotonic(), self.measure()

    def over(self, limits: Limits) -> Row | None:
        """Status and message, where a limit is passed. Other work on the machine must not be the reason."""
        cpu = self.measure() - self.stage_began_cpu
        wall = time.monotonic() - self.stage_began
        stage = self.row.get("stage", "build")
        seconds_allowed = limits.seconds * (1 if stage in ("trace", "compact") else PATIENCE)
        gb_allowed = limits.gb + 3 * self.row.get("model_gb", 0.0)
        if cpu > seconds_allowed or wall > PATIENCE * seconds_allowed:
            return {"status": "timeout", "message": f"more than {seconds_allowed:g} s in stage {stage}"}
        if self.peak_gb > gb_allowed:
            return {"status": "memory", "message": f"more than {gb_allowed:.1f} GB in stage {stage}"}
        return None


def rows_of(tasks: Iterable[tuple[str, Task]], limits: Limits, jobs: int = 1) -> Iterator[tuple[str, Row]]:
    """(name, row) of every task as it is done, each in a process of its own, `jobs` at a time."""
    waiting = iter(tasks)
    running: dict[Connection, Child] = {}
    while True:
        while len(running) < jobs and (task := next(waiting, None)):
            connection, child = _start(*task)
            running[connection] = child
        if not running:
            return
        ready = wait(list(running), timeout=0.1)
        for connection, child in list(running.items()):
            ended = _heard(connection, child) if connection in ready else child.over(limits)
            if ended is not None:
                child.process.kill()
                child.process.join()
                del running[connection]
                spent = {"seconds": time.monotonic() - child.began, "peak_gb": child.peak_gb}
                yield child.name, {**child.row, **ended, **spent}


def _start(name: str, task: Task) -> tuple[Connection, Child]:
    # A fork has everything imported already; it is safe as long as this process runs no tensor operations itself.
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, sending), daemon=True)
    process.start()
    sending.close()
    return receiving, Child(name, process)


def _work(task: Task, connection: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task(connection.send)


def _heard(connection: Connection, child: Child) -> Row | None:
    """Takes in what the process tells; the end of its row, where this is it."""
    try:
        child.hear(connection.recv())
    except EOFError:
        child.process.join()
        stage = child.row.get("stage", "build")
        return {"status": "crashed", "message": f"the process ended with {child.process.exitcode} in stage {stage}"}
    return {} if "status" in child.row else None


def used_by(process: int) -> tuple[float, float]:
    """(processor seconds, GB of resident memory at the peak, with the libraries that processes share), from /proc."""
    try:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # over, or no Linux: only the clock on the wall is left
        return 0.0, 0.0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), int(peak.group(1)) / 2**20 if peak else 0.0
