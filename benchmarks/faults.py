"""What can go wrong with a run of train.py, done to it: signals, writes that are cut off, full disks, damaged files.

A fault of a process is armed in the process itself, which a benchmark has forked for it: the functions that the
product writes files with are replaced there by ones that count, and at a chosen one the fault happens. The product
knows nothing of it. Damage is done to files while nobody writes them.
"""

from __future__ import annotations

import builtins
import errno
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hfp.experiment.run
import hfp.files


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Writes:
    """Every step of writing a file, counted: opening, half of the bytes, flushing, linking, renaming.

    At step `at`, counted from 1, `act` is called: before a step that is no writing, and amid one that is.
    """

    def __init__(self, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.at, self.act = at, act
        self.count = 0
        self.last = ""

    def step(self, name: str) -> None:
        self.count += 1
        self.last = name
        if self.count == self.at:
            self.act()

    def install(self) -> None:
        """Stand between the product and the system, in this process."""
        for name in ("fsync", "replace", "link"):
            setattr(os, name, self._before(name, getattr(os, name)))
        for module in (hfp.files, hfp.experiment.run):
            module.open = self._open  # type: ignore[attr-defined]  # shadows the builtin there

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            self.step(name)
            return function(*args)

        return stepped

    def _open(self, path: Any, mode: str = "r") -> Any:
        if mode == "r":
            return builtins.open(path, mode)
        self.step("open")
        file = builtins.open(path, mode)  # noqa: SIM115  # whoever called closes it
        write = file.write

        def torn(data: Any) -> int:
            half = len(data) // 2
            write(data[:half])
            file.flush()
            self.step("write")
            return half + write(data[half:])

        return _Proxy(file, torn)


class _Proxy:
    """A file with another `write`: attributes of file objects cannot be set."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file = file
        self.write = write

    def __enter__(self) -> _Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def truncated(content: bytes, draws: random.Random) -> bytes:
    return content[: draws.randrange(len(content))]


def flipped(content: bytes, draws: random.Random) -> bytes:
    """With one to three bits changed."""
    changed = bytearray(content)
    for place in draws.sample(range(8 * len(content)), draws.randint(1, 3)):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def zeroed(content: bytes, draws: random.Random) -> bytes:
    """With a block of zeros, as file systems leave it after a power cut."""
    begin = 4096 * draws.randrange(1 + len(content) // 4096)
    block = content[begin : begin + 4096]
    return content[:begin] + bytes(len(block)) + content[begin + len(block) :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "bits flipped": flipped,
    "block of zeros": zeroed,
}
LOST = "lost"


def damage(path: Path, kind: str, draws: random.Random) -> bytes:
    """Do it; what was in the file before."""
    content = path.read_bytes()
    if kind == LOST:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](content, draws) if content else content)
    return content


def fill_disk(ballast: Path, free: int) -> None:
    """Leave `free` bytes of the file system that `ballast` is on."""
    found = os.statvfs(ballast.parent)
    ballast.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - free)))
