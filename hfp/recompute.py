"""Activation checkpointing under gates: what backward computes anew has to be gated as it was in the forward.

`torch.utils.checkpoint` calls a part of a model a second time, during backward, when the gated weights no longer stand
in for the model's own. The values that backward then takes for those of the forward would be others, without an error.
PyTorch offers no hook for this, so two methods of its own are replaced when the first gated forward is about to run;
outside of gated forwards they do what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint

Function = Callable[..., Any]
_lock = Lock()
_alike: ContextVar[Callable[[Function], Function] | None] = ContextVar("alike", default=None)


def in_backward() -> bool:
    """Whether a backward pass calls this, as it does what a checkpoint is around."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """Whether this is compiled, or under a transform of `torch.func`: then no tensor may be looked at, nor kept."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def by_itself() -> Iterator[None]:
    """What is differentiated in here meets neither the hooks of a checkpoint around it nor transforms.

    A checkpoint would miss, the second time, what was saved the first time; where a transform was, hooks are off.
    """
    with ExitStack() as stack:
        stack.enter_context(temporarily_clear_interpreter_stack())
        if torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            stack.enter_context(saved_tensors_hooks(_as_it_is, _as_it_is))
        stack.enter_context(torch.enable_grad())
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def recomputed(alike: Callable[[Function], Function]) -> Iterator[None]:
    """While this lasts, what is handed to checkpoint as `function` is called within `alike(...)` in backward.

    ValueError from a checkpoint with `use_reentrant=True`: it has a backward pass of its own, behind the gates' back.
    """
    with _lock:
        _replace()
    token = _alike.set(alike)
    try:
        yield
    finally:
        _alike.reset(token)


@cache
def _replace() -> None:
    frame, function = checkpoint._CheckpointFrame, checkpoint.CheckpointFunction
    plain, reentrant = frame.__init__, function.forward

    def init(self: Any, part: Function, *args: Any, **kwargs: Any) -> None:
        alike = _alike.get()
        plain(self, part if alike is None else alike(part), *args, **kwargs)

    def forward(*args: Any) -> Any:
        if _alike.get() is not None:
            raise ValueError(
                "torch.utils.checkpoint with use_reentrant=True cannot train gates; "
                "call checkpoint(..., use_reentrant=False), which PyTorch recommends"
            )
        return reentrant(*args)

    frame.__init__ = init  # type: ignore[assignment, method-assign]
    function.forward = staticmethod(forward)  # type: ignore[method-assign]
