"""Work on large tensors part by part, so that what is between two steps stays in the processor's cache."""

from __future__ import annotations

from torch import Tensor

CACHED = 2**17
"""Numbers that a processor has at hand, in its second cache."""


def rows_at_hand(tensor: Tensor, dim: int) -> int:
    """How many indices of `dim` make a part that the cache holds.

    >>> import torch
    >>> rows_at_hand(torch.empty(4096, 1024), 0)
    128
    """
    return max(1, CACHED * tensor.shape[dim] // max(1, tensor.numel()))
