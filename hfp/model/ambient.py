"""What a program has set PyTorch to: hfp reckons on the CPU and outside of inference mode, models run as set.

`torch.set_default_device("cuda")` would move every tensor that hfp makes, and what is made in `torch.inference_mode()`
cannot be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_default: ContextVar[torch.device | None] = ContextVar("default device", default=None)


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which makes its tensors on the CPU and outside of inference mode.

    >>> with torch.device("meta"):
    ...     plainly(torch.zeros)(2).device
    device(type='cpu')
    """

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            device = torch.get_default_device()
            if device.type != "cpu":
                stack.enter_context(torch.device("cpu"))
                token = _default.set(device)
                stack.callback(_default.reset, token)
            return function(*args, **kwargs)

    return inner


@contextmanager
def as_set() -> Iterator[None]:
    """Within what is done `plainly`: the default device is that of the program again, for the code of a model."""
    device = _default.get()
    if device is None:
        yield
    else:
        with torch.device(device):
            yield
