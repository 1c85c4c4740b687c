"""Runs in float64 of code that names float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]


class _Double(TorchFunctionMode):
    """Whatever is asked for in float32 is made in float64, and is said to be float32 when the code looks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        if func is Tensor.float:
            return args[0].double()
        out = func(*args, **kwargs)
        return torch.float32 if func == _DTYPE and out is torch.float64 else out


@contextmanager
def doubled() -> Iterator[None]:
    """While this lasts, float32 means float64.

    >>> with doubled():
    ...     x = torch.ones(2).float().to(torch.float32)
    ...     said = x.dtype
    >>> said, x.dtype
    (torch.float32, torch.float64)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)
