"""Operators that nobody has told us about are tried on random numbers: many treat every channel by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hfp.labels import ANY, Labels, Ledger
from hfp.model.chance import forked
from hfp.rules.call import Call, labelled, tensors_in, unknown
from hfp.rules.pointwise import along

LARGEST = 2**22
"""Numbers in an argument at most, so that a trace stays quick."""


def custom(ledger: Ledger, call: Call) -> Labels | list[Labels]:
    """Axes of which the operator treats each index by itself keep their labels; else it is `unknown`.

    It is given random numbers, along each labelled axis in another order, and some of them. Axes are counted from the
    end, as tensors broadcast: in a scan over time, `(T, B, C), (B, C) -> (T, B, C), (B, C)`, the channels are the last.
    Custom operators only, of real numbers and masks, and such as run on the CPU. `hfp.verify` proves it.
    """
    if "::" not in call.place.operator or call.func._schema.is_mutable:  # type: ignore[attr-defined]
        return unknown(ledger, call)
    axes = {
        axis - x.dim()
        for x in call.tensors()
        for axis, ids in labelled(call.labels(x))
        if not bool((ids == ANY).all())  # what is alike along an axis may be mixed there
    }
    try:
        with forked(), torch._C.DisableTorchFunction():
            known = _one_by_one(call, axes)
    except Exception:  # whatever an operator raises that is given random numbers, or fewer of them
        known = False
    if not known:
        return unknown(ledger, call)
    operands = [(x, call.labels(x)) for x in call.tensors()]
    met = {axis: along(ledger, call, operands, axis) for axis in sorted(axes)}
    return [
        tuple(met.get(axis) if x.shape[axis] > 1 else None for axis in range(-x.dim(), 0)) for x in tensors_in(call.out)
    ]


def _one_by_one(call: Call, axes: set[int]) -> bool:
    """Whether indices of each of these axes go from the tensors that have it to those of the output, one by one."""
    if not all(x.is_floating_point() or x.dtype == torch.bool for x in call.tensors()):
        return False  # integers may be places in memory, and code outside of PyTorch need not check them
    if max(x.numel() for x in call.tensors()) > LARGEST:
        return False
    generator = torch.Generator().manual_seed(0)
    arguments = tree_map(lambda x: _random(x, generator) if isinstance(x, Tensor) else x, (call.args, call.kwargs))
    whole = _outputs(call, arguments)
    for axis in axes:
        lengths = {x.shape[axis] for x in (*call.tensors(), *whole) if x.dim() >= -axis} - {1}
        if len(lengths) != 1:
            return False
        (length,) = lengths
        for count in (length, length - length // 2):
            chosen = torch.randperm(length, generator=generator)[:count]
            found = _outputs(call, tree_map(lambda x: _of(x, axis, chosen), arguments))  # noqa: B023
            expected = [_of(x, axis, chosen) for x in whole]
            if not all(torch.allclose(x, y, equal_nan=True) for x, y in zip(found, expected, strict=True)):
                return False
    return True


def _outputs(call: Call, arguments: Any) -> list[Tensor]:
    args, kwargs = arguments
    return tensors_in(call.func(*args, **kwargs))


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator)
    return noise > 0 if x.dtype == torch.bool else noise.to(x.dtype)


def _of(x: Any, axis: int, chosen: Tensor) -> Any:
    """Some indices of an axis; a tensor that has but one there stands for all."""
    if not isinstance(x, Tensor) or x.dim() < -axis or x.shape[axis] == 1:
        return x
    return x.index_select(axis, chosen)
