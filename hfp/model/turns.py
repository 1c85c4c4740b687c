"""Threads take turns where something that they share is changed for a while.

PyTorch itself: its functions, its modules, the garbage collector. A model: other tensors stand in for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

one_at_a_time = RLock()
_looking = RLock()
_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Beside the models, not in them: a lock is neither copied nor pickled."""


@contextmanager
def turn(model: nn.Module) -> Iterator[None]:
    """While this lasts, other threads wait for their turn in this model; not in copies of it, nor in replicas.

    Compiled code takes none: in it nothing stands in for anything.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _looking:
        lock = _turns.setdefault(model, RLock())
    with lock:
        yield


def in_turn(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """The method of something that has a `model`, called in a turn in that."""

    @wraps(method)
    def inner(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with turn(self.model):
            return method(self, *args, **kwargs)

    return inner
