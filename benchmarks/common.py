"""What all benchmarks share: where they ran, results as JSON, timing, limits."""

from __future__ import annotations

import datetime
import hashlib
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

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ENGINE = HERE.parent / "hfp"
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


def engine() -> str:
    """A hash of hfp's source code: a row stands for the code that made it."""
    digest = hashlib.sha256()
    for path in sorted(ENGINE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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
