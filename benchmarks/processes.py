"""Work in processes of its own, that send what they find, and are ended at limits of time and memory (Linux only).

`in_a_process` is for one, that is measured alone; `rows_of` makes the rows of a table, several at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch


def used_by(process: int) -> tuple[float, float]:
    """(processor seconds, GB of resident memory at the peak, with the libraries that processes share), from /proc."""
    try:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # over, or no Linux: only the clock on the wall is left
        return 0.0, 0.0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), int(peak.group(1)) / 2**20 if peak else 0.0


# --- one process -----------------------------------------------------------------------------------------------------


def in_a_process(function: Callable[..., None], *args: Any, limit: float, memory: float) -> Iterator[Any]:
    """What `function(send, *args)` sends from a process of its own, one by one.

    It ends with a TimeoutError if nothing comes for `limit` CPU seconds (or ten times as long on the clock), with a
    ChildProcessError if the process dies; `memory` in GiB.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.models", "torch_pruning"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(sender, function, args, memory), daemon=True)
    child.start()
    sender.close()
    try:
        while True:
            _await(receiver, child.pid, limit)
            message = receiver.recv()
            if message is None:
                return
            yield message
    except EOFError:
        child.join()
        raise ChildProcessError(f"the process died with exit status {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()


def _await(receiver: Connection, pid: Any, limit: float) -> None:
    """Wait for a message; the CPU seconds of the process count, so that a busy machine is not taken for a hang."""
    spent, start = used_by(pid)[0], time.monotonic()
    while not receiver.poll(0.5):
        if used_by(pid)[0] - spent > limit or time.monotonic() - start > 10 * limit:
            raise TimeoutError(f"nothing within {limit:g} CPU seconds")


def _serve(sender: Connection, function: Callable[..., None], args: tuple[Any, ...], memory: float) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    function(sender.send, *args)
    sender.send(None)


# --- a table, a process a row ----------------------------------------------------------------------------------------

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
