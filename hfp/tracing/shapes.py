"""What the commonest operators give on the meta device.

PyTorch's own kernels for shapes are Python decompositions of up to a millisecond for many an operator: most of the time
of a run. Here are the plainest cases of a few; all others, and their errors, are left to PyTorch. Only what its
convolution of shapes lets pass, and that of numbers does not, is refused here; and norms along an axis of one channel
that is counted from the end have a wrong shape in some versions (2.8 to 2.11 at least).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


def outputs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, quicker where all that counts is the shape."""
    plain = _PLAIN.get(func)
    first = args[0] if args else None
    if isinstance(first, list) and first:
        first = first[0]
    if plain is not None and not kwargs and isinstance(first, Tensor) and first.is_meta:
        out = plain(*args)
        if out is not None:
            return out
    return func(*args, **kwargs)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x.new_empty(shape)`, which is Python code for a tensor of shapes alone."""
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _new(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`."""
    if x.is_contiguous():
        return _empty(x, x.shape)
    dense = 1  # for axes in another order, without holes or overlaps
    for step, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1 and step != dense:
            return torch.empty_like(x)
        dense *= length
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _like(x: Tensor, *_: Any) -> Tensor | None:
    return _new(x) if x.is_floating_point() else None


def _along(x: Tensor, axis: int, half_to_float: bool = False) -> Tensor | None:
    return _like(x) if -x.dim() <= axis < x.dim() and not half_to_float and x.is_contiguous() else None


def _itself(x: Tensor, *_: Any) -> Tensor | None:
    return x if x.is_floating_point() else None


def _larger(x: Tensor, y: Any, *_: Any) -> Tensor | None:
    """The one of two operands that has the shape of both together."""
    if not x.is_floating_point() and x.dtype != torch.int64:
        return None
    if not isinstance(y, Tensor):
        return x if type(y) is int or (x.is_floating_point() and isinstance(y, (int, float))) else None
    if y.dtype != x.dtype or not y.is_meta:
        return None
    if x.shape == y.shape:
        return x
    together = _broadcast(x.shape, y.shape)
    return x if together == x.shape else y if together == y.shape else None


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    if len(a) < len(b):
        a, b = b, a
    rest = len(a) - len(b)
    if any(n != m and n != 1 and m != 1 for n, m in zip(a[rest:], b, strict=True)):
        return None
    return (*a[:rest], *(m if n == 1 else n for n, m in zip(a[rest:], b, strict=True)))


def _power(x: Tensor, exponent: Any) -> Tensor | None:
    return _like(x) if isinstance(exponent, (int, float)) else None


def _both(x: Tensor, y: Any, *_: Any) -> Tensor | None:
    larger = _larger(x, y)
    return None if larger is None else _new(larger)


def _both_into_first(x: Tensor, y: Any, *_: Any) -> Tensor | None:
    return x if _larger(x, y) is x else None


def _ratio(x: Tensor, y: Any, *_: Any) -> Tensor | None:
    return _both(x, y) if x.is_floating_point() else None  # that of integers is none


def _ratio_into_first(x: Tensor, y: Any, *_: Any) -> Tensor | None:
    return _both_into_first(x, y) if x.is_floating_point() else None


def _compared(x: Tensor, y: Any) -> Tensor | None:
    plain = x.is_contiguous() and not x.is_complex() and isinstance(y, (int, float))
    return torch.empty(x.shape, dtype=torch.bool, device="meta") if plain else None


def _filled(fill: Callable[..., Tensor], x: Tensor, mask: Tensor, value: Tensor) -> Tensor | None:
    """A single value may lie on the CPU, as with other operators and devices; on shapes PyTorch wants it beside x."""
    return fill(x, mask, value.to("meta")) if value.dim() == 0 and not value.is_meta else None


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    """Conditions of bytes are as good, with a warning, as those of truth values; on shapes PyTorch refuses them."""
    return aten.where.self(condition.bool(), x, y) if condition.dtype == torch.uint8 else None


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    if not x.is_floating_point() or x.dim() < 2:
        return None
    saved = _empty(x, [x.shape[1]])
    return _new(x), saved, _new(saved)


def _addmm(bias: Any, a: Tensor, b: Tensor) -> Tensor | None:
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]
    return _empty(a, [a.shape[0], b.shape[1]]) if fits and bias.dtype == a.dtype == b.dtype else None


def _bmm(a: Tensor, b: Tensor) -> Tensor | None:
    fits = a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    return _empty(a, [*a.shape[:2], b.shape[2]]) if fits and a.dtype == b.dtype and b.is_meta else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.dim() > 0 and weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    alike = weight.is_meta and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype))
    return _empty(x, [*x.shape[:-1], weight.shape[0]]) if fits and alike else None


def _matmul(a: Tensor, b: Tensor) -> Tensor | None:
    if a.dim() < 3 or b.dim() < 3 or a.shape[-1] != b.shape[-2] or a.dtype != b.dtype or not b.is_meta:
        return None
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    return None if batch is None else _empty(a, [*batch, a.shape[-2], b.shape[-1]])


def _mean(x: Tensor, axes: Any, keepdim: bool = False) -> Tensor | None:
    if not x.is_floating_point() or not axes or not all(-x.dim() <= axis < x.dim() for axis in axes):
        return None
    gone = {axis % x.dim() for axis in axes}
    if len(gone) < len(axes):
        return None
    if keepdim:
        return _empty(x, [1 if axis in gone else n for axis, n in enumerate(x.shape)])
    return _empty(x, [n for axis, n in enumerate(x.shape) if axis not in gone])


def _vector_norm(x: Tensor, order: Any = 2, axes: Any = None, keepdim: bool = False) -> Tensor | None:
    return _mean(x, axes, keepdim)


def _cat(tensors: list[Tensor], axis: int = 0) -> Tensor | None:
    x = tensors[0]
    if not -x.dim() <= axis < x.dim() or not all(
        y.dtype == x.dtype and y.is_meta and y.is_contiguous() for y in tensors
    ):
        return None
    axis %= x.dim()
    others = {(*y.shape[:axis], *y.shape[axis + 1 :], y.dim()) for y in tensors}
    size = sum(y.shape[axis] for y in tensors)
    return _empty(x, (*x.shape[:axis], size, *x.shape[axis + 1 :])) if len(others) == 1 else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    rows, made = weight.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]
    if rows < groups or rows % groups or (transposed and x.dim() == weight.dim() and rows != x.shape[1]):
        raise RuntimeError(f"a convolution of {x.shape[1]} channels in {groups} groups has a weight of {rows} rows")
    if bias is not None and bias.shape != (made,):
        raise RuntimeError(f"a convolution that makes {made} channels has a bias of the shape {tuple(bias.shape)}")
    fits = x.dim() == weight.dim() == len(stride) + 2 and x.shape[1] == weight.shape[1] * groups
    if transposed or not fits or not len(stride) == len(padding) == len(dilation):
        return None
    kernels = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    room = [(n + 2 * pad - apart * (k - 1) - 1, step) for n, k, step, pad, apart in kernels]
    if min(room)[0] < 0:
        raise RuntimeError(f"the kernel {tuple(weight.shape[2:])} is larger than the padded {tuple(x.shape[2:])}")
    alike = x.dtype == weight.dtype and weight.is_meta and x.is_contiguous() and weight.is_contiguous()
    if not alike or 0 in x.shape or 0 in weight.shape:
        return None
    return _empty(x, (x.shape[0], made, *(rest // step + 1 for rest, step in room)))


def _resized(x: Tensor, size: list[int], *_: Any) -> Tensor | None:
    # A picture of one pixel is as well one whose channels come last.
    plain = x.is_floating_point() and x.dim() == 2 + len(size) and x.is_contiguous() and prod(x.shape[2:]) > 1
    return _empty(x, (*x.shape[:2], *size)) if plain and x.numel() and min(size) > 0 else None


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, *rest: Any) -> Tensor | None:
    """PyTorch's own takes bfloat16 alone in some versions (2.11), whose kernels of numbers take more."""
    plain = a.dim() == 2 and b.dim() == 3 and offs is not None and not rest and a.dtype == b.dtype
    if not plain or a.shape[1] != b.shape[1] or not (_whole(a) and _whole(b)):
        return None
    rows, columns, run = a.shape[0], b.shape[2], 16 // a.element_size()
    return torch.empty_strided((rows, columns), (-(-columns // run) * run, 1), dtype=a.dtype, device="meta")


def _whole(x: Tensor) -> bool:
    """Whether what lies side by side in memory, rows or columns, begins at whole 16 bytes."""
    rows, columns = x.stride()[-2:]
    return columns == 1 and rows * x.element_size() % 16 == 0 or rows == 1 and columns * x.element_size() % 16 == 0


_UNARY = "elu exp gelu hardsigmoid hardswish hardtanh leaky_relu relu rsqrt sigmoid silu softplus sqrt tanh".split()
_BINARY = "add sub mul div".split()

_PLAIN: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: _like for name in _UNARY},
    **{getattr(aten, name).default: _along for name in ("_softmax", "_safe_softmax", "_log_softmax")},
    **{getattr(aten, f"{name}_").default: _itself for name in _UNARY if hasattr(aten, f"{name}_")},
    **{getattr(aten, name).Tensor: _both for name in _BINARY},
    **{getattr(aten, f"{name}_").Tensor: _both_into_first for name in _BINARY},
    **{getattr(aten, name).Scalar: _both for name in _BINARY},
    aten.div.Tensor: _ratio,
    aten.div_.Tensor: _ratio_into_first,
    aten.div.Scalar: _ratio,
    **{getattr(aten, name).Scalar: _compared for name in "eq ne lt le gt ge".split()},
    aten.masked_fill.Tensor: partial(_filled, aten.masked_fill.Tensor),
    aten.masked_fill_.Tensor: partial(_filled, aten.masked_fill_.Tensor),
    aten.where.self: _where,
    aten.native_batch_norm.default: _batch_norm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    aten.pow.Tensor_Scalar: _power,
    aten.convolution.default: _convolution,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.cat.default: _cat,
    aten.upsample_bilinear2d.default: _resized,
    aten.upsample_nearest2d.default: _resized,
    **({aten._grouped_mm.default: _grouped} if hasattr(aten, "_grouped_mm") else {}),
}
