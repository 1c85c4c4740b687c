"""SIGTERM (of a scheduler that wants its machine back) and Ctrl-C: a run ends between two steps, and keeps them all."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import signal
import types
from collections.abc import Callable, Iterator
from functools import cache

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is."""


def stop(signum: int, frame: types.FrameType | None = None) -> None:
    """Unwind the program in order, so that files being written are cleaned up."""
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def handled_by(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Within it, both signals go to `handler`. Only the main thread of a program can enter it."""
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextlib.contextmanager
def saved_if_stopped(save: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Within it, a signal is only noted, and the function that it gives says so; on leaving, `save`, then stop.

    with saved_if_stopped(lambda: save_everything()) as stopped:
        for batch in itertools.takewhile(lambda batch: not stopped(), batches):
            step(batch)

    A second signal stops at once, wherever the program is, and nothing is saved. So does an error after the first.
    """
    noted: list[int] = []

    def note(signum: int, frame: types.FrameType | None) -> None:
        noted.append(signum)
        if len(noted) > 1:
            stop(signum)

    with handled_by(note):
        try:
            yield lambda: bool(noted)
        except Exception as error:
            if noted:  # it reached other processes as well, and this one misses them
                raise (Terminated if noted[0] == signal.SIGTERM else KeyboardInterrupt) from error
            raise
    if noted:
        save()
        stop(noted[0])


def ignored(worker: int) -> None:
    """For processes that load data: a signal to all processes of a run is for the one that has started them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@cache
def end_workers_at_exit() -> None:
    """Python itself would ask them to end by SIGTERM, which they ignore, and wait for them forever."""
    atexit.register(_end_workers)


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
