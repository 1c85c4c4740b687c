"""Work on large tensors part by part, so that what is between two steps stays in the processor's cache."""

from __future__ import annotations

from torch import Tensor

CACHED = 2**17
"""Numbers that a processor has at hand, in its second cache."""


def rows_at_hand(tensor: Tensor, dim: int) -> int:
    """How many indices of `dim` make a part that the cache holds; all, where it is not a processor's.

    >>> import torch
    >>> rows_at_hand(torch.empty(4096, 1024), 0)
    128
    """
    length = tensor.shape[dim]
    return max(1, CACHED * length // max(1, tensor.numel()) if tensor.device.type == "cpu" else length)
