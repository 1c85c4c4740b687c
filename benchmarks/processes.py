"""Work in a process of its own, which sends what it finds, and is ended at limits of time and memory (Linux only)."""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import used_by


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
