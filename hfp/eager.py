"""`eagerly`: parts of a model that are compiled run as they are written.

What watches a model, or gates it, looks at its functions one by one, and `torch.compile` would compile that as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_stances: list[Any] = []
"""One for each `eagerly` that lasts, in any thread: what the first has changed, for all, is put back by the last."""


@contextmanager
def eagerly() -> Iterator[None]:
    """Nothing in here is compiled by itself; all of it may be part of what is being compiled."""
    entered = _enter()
    try:
        yield
    finally:
        if entered:
            _leave()


def _enter() -> bool:
    # Only where something has been compiled: to import torch._dynamo takes seconds.
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return False
    try:
        with _lock:
            _stances.append(torch.compiler.set_stance("force_eager"))
    except RuntimeError:  # "attempted to set_stance in a torch.compile region"
        return False
    return True


def _leave() -> None:
    with _lock:
        last = _stances.pop()
        if not _stances:
            last.__exit__(None, None, None)
