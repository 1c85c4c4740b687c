"""`eagerly`: parts of a model that are compiled run as they are written.

What watches a model, or gates it, looks at its functions one by one. `torch.compile` would compile that as well, and
of a function that `torch.jit.script` was given only operators are to be seen, not what asks for their sizes.
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
"""One entry for each `eagerly` in force, in any thread: the last to leave restores what the first has found."""
_unscripted = 0
"""The number of those that have made scripted functions run as Python."""
_Scripted: Any = torch._C.ScriptFunction
_call_script = _Scripted.__call__


@contextmanager
def eagerly() -> Iterator[None]:
    """Nothing in here is compiled by itself; all of it may be part of what is being compiled."""
    if torch.compiler.is_compiling():
        yield
        return
    entered = _enter()
    try:
        yield
    finally:
        _leave(entered)


def _enter() -> bool:
    """Whether the stance of `torch.compile` was changed."""
    global _unscripted
    with _lock:
        _unscripted += 1
        _Scripted.__call__ = _as_written
        # Only where something has been compiled: to import torch._dynamo takes seconds.
        if "torch._dynamo" not in sys.modules:
            return False
        try:
            _stances.append(torch.compiler.set_stance("force_eager"))
        except RuntimeError:  # "attempted to set_stance in a torch.compile region"
            return False
    return True


def _leave(entered: bool) -> None:
    global _unscripted
    with _lock:
        _unscripted -= 1
        if not _unscripted:
            _Scripted.__call__ = _call_script
        if entered:
            last = _stances.pop()
            if not _stances:
                last.__exit__(None, None, None)


def _as_written(function: Any, *args: Any, **kwargs: Any) -> Any:
    written = getattr(function, "_torchdynamo_inline", None)  # one that comes from a file has none
    return _call_script(function, *args, **kwargs) if written is None else written(*args, **kwargs)
