"""Lives of a training run: train.py in a process that is forked for it, with a fault waiting in it."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faults
import ptflops  # noqa: F401  # a run imports these when it needs them: here, all lives have them from the beginning
import sklearn.datasets  # noqa: F401
import torch
from processes import used_by
from training_runs import arguments

import train

INSTANTS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
"""Faults that come at a time."""
NO_SPACE = "no space in a write"
IN_A_WRITE: dict[str, Callable[[], None]] = {
    "SIGKILL in a write": faults.kill,
    "SIGTERM in a write": faults.terminate,
    NO_SPACE: faults.no_space,
}
"""Faults that come at a step of writing a file."""
CRASHED = 99


@dataclass(frozen=True)
class End:
    """How a life ended."""

    code: int
    """Exit code; negative for a signal."""
    printed: str
    seconds: float
    """Of processor time."""
    steps: int = 0
    """Of writing files; 0 where it did not live to tell."""
    hit: bool = False
    """Whether the fault came before the end."""
    step: str = ""
    """In which step of a write."""

    def told_of_damage(self) -> str:
        """The lines in which the run says what is damaged and what it takes instead."""
        said = ("The one before", "The checkpoint has the settings")
        return "\n".join(line for line in self.printed.splitlines() if any(words in line for words in said))


def live(folder: Path, settings: list[str], kind: str = "", at: float = 0.0, size_limit: int | None = None) -> End:
    """The run in `folder` is started, or goes on, until it ends or the fault of `kind` does.

    `at`: processor seconds for a fault that comes at a time, else the number of a step of writing.
    """
    argv = arguments(folder, settings)
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+") as told:
        # A fork is safe as long as this process has no threads of tensor operations: it runs with one.
        process = os.fork()
        if process == 0:
            _be(argv, kind, at, size_limit, out.fileno(), told.fileno())
        sent = _send(process, INSTANTS[kind], at) if kind in INSTANTS else False
        _, status, used = os.wait4(process, 0)
        out.seek(0), told.seek(0)
        heard = dict(line.split() for line in told)
        code = os.waitstatus_to_exitcode(status)
        hit = (sent and code != 0) or "struck" in heard
        return End(
            code, out.read(), used.ru_utime + used.ru_stime, int(heard.get("steps", 0)), hit, heard.get("struck", "")
        )


def _be(argv: list[str], kind: str, at: float, size_limit: int | None, out: int, told: int) -> None:
    """What the forked process is: train.py and nothing else."""
    code = CRASHED
    try:
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # whatever they were where this was forked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        if size_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, size_limit))
        act = IN_A_WRITE.get(kind)

        def strike() -> None:
            os.write(told, f"struck {writes.last}\n".encode())
            if act is not None:
                act()

        writes = faults.Writes(max(1, int(at)) if act else 0, strike)
        writes.install()
        code = train.main(argv)
        os.write(told, f"steps {writes.count}\n".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _send(process: int, number: int, at: float) -> bool:
    """Send a signal once a process has used `at` seconds of processor time; False if it ended before."""
    while used_by(process)[0] < at:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.003)
    time.sleep(random.random() * 0.01)  # the clock ticks in hundredths of a second
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True
