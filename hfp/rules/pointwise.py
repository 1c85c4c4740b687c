"""Pointwise operators: they pass labels on and tie the labels of their operands, index by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfp.labels import Labels, Ledger, anything
from hfp.rules.call import Call, Rule, looked_up, unknown


def pointwise(ledger: Ledger, call: Call) -> Labels:
    """Along every axis, the labels of all operands are the same channels."""
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    operands = [(tensor, call.labels(tensor)) for tensor in call.tensors() if tensor.numel() != 1]
    if not any(labels for _, labels in operands):
        return ()
    return tuple(along(ledger, call, operands, axis - out.dim()) for axis in range(out.dim()))


def cross(ledger: Ledger, call: Call) -> Labels:
    """`(input, other, dim)`: index by index, but for the three along `dim`."""
    labels, axis = list(pointwise(ledger, call)), call.argument(2, "dim", -1) % call.out.dim()
    if labels:
        ledger.pin(labels[axis], "is reduced or normalised along the channels", call.place)
        labels[axis] = None
    return tuple(labels)


def along(ledger: Ledger, call: Call, operands: list[tuple[Tensor, Labels]], axis: int) -> Tensor | None:
    """The labels of the output along `axis`, counted from the end. An operand that has none there would not follow."""
    extents = [labels[axis] if labels else None for x, labels in operands if x.dim() >= -axis and x.shape[axis] > 1]
    return _met(ledger, call, extents)


def _met(ledger: Ledger, call: Call, extents: Sequence[Tensor | None]) -> Tensor | None:
    """The labels of an axis on which these meet."""
    labelled = [ids for ids in extents if ids is not None]
    if len(labelled) < len(extents):
        for ids in labelled:
            ledger.pin(ids, "is combined with a tensor of fixed size (the network's input, say)", call.place)
        return None
    merged: Tensor | None = None
    for ids in labelled:
        merged = ids if merged is None else ledger.meet(merged, ids, call.place)
    return merged


def index_put(ledger: Ledger, call: Call) -> Labels:
    """`(input, indices, values)`: along the axes that no index looks into, the values are the same channels."""
    target, indices, values = call.args[:3]
    labels, own = call.labels(target) or (None,) * target.dim(), call.labels(values) or (None,) * values.dim()
    looked = looked_up(indices)
    if not looked:
        return unknown(ledger, call)
    _stays(ledger, call, *(labels[axis] for axis in looked))
    found = [None if axis in looked else ids for axis, ids in enumerate(labels)]
    rank = max(1 if index.dtype == torch.bool else index.dim() for index in indices if index is not None)
    adjacent = looked == list(range(looked[0], looked[-1] + 1))  # else the axes of the indices come first
    order: list[int | None] = [axis for axis in range(target.dim()) if axis not in looked]
    order[looked[0] if adjacent else 0 : 0] = [None] * rank
    for to, place in zip(order, range(-len(order), 0), strict=True):
        given = [own[place]] if values.dim() >= -place and values.shape[place] > 1 else []
        if to is None:
            _stays(ledger, call, *given)
        else:
            found[to] = _met(ledger, call, [labels[to], *given] if target.shape[to] > 1 else given)
    return tuple(found)


def write_along_one(ledger: Ledger, call: Call) -> Labels:
    """`index_add`, `scatter_add`, `(input, dim, index, source)`: the axis `dim` is looked up, others meet those of the
    source, and of an index that has them."""
    target = call.args[0]
    if not target.dim():
        return unknown(ledger, call)
    looked = call.argument(1, "dim") % target.dim()
    operands = [x for x in call.tensors() if x.dim() == target.dim()]
    every = [call.labels(x) or (None,) * x.dim() for x in operands]
    found: list[Tensor | None] = []
    for axis in range(target.dim()):
        extents = [labels[axis] for x, labels in zip(operands, every, strict=True) if x.shape[axis] > 1]
        if axis == looked or len({x.shape[axis] for x in operands}) > 1:
            _stays(ledger, call, *extents)
            found.append(None)
        else:
            found.append(_met(ledger, call, extents))
    return tuple(found)


def _stays(ledger: Ledger, call: Call, *labels: Tensor | None) -> None:
    for ids in labels:
        ledger.pin(ids, "is looked up by index", call.place)


def factory(ledger: Ledger, call: Call) -> Labels:
    """`x.new_zeros(shape)`: a length that agrees with that of `x` is taken to come from it (the trial tells)."""
    source = call.args[0] if call.args and isinstance(call.args[0], Tensor) else None
    if source is None or source.dim() != call.out.dim():
        return ()
    lengths = zip(call.labels(source), source.shape, call.out.shape, strict=False)
    return tuple(ids if before == after else None for ids, before, after in lengths)


def uniform(ledger: Ledger, call: Call) -> Labels:
    """`zeros(shape)`: all values are alike, so they can stand beside any channels."""
    labels = factory(ledger, call) or (None,) * call.out.dim()
    return tuple(
        anything(length) if ids is None and length > 1 else ids
        for ids, length in zip(labels, call.out.shape, strict=True)
    )


NAMES = """
abs acos acosh add addcdiv addcmul alias_copy angle asin asinh atan atan2 atanh bernoulli bitwise_and bitwise_not
bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip clone complex contiguous copy copysign cos cosh
deg2rad detach digamma div dropout elu empty_like eq erf erfc erfinv exp exp2 expm1 exponential fill floor
floor_divide fmax fmin fmod frac full_like gcd ge gelu gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot
isfinite isinf isnan le leaky_relu lerp lgamma lift lift_fresh log log10 log1p log2 log_sigmoid_forward logaddexp
logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num
native_dropout ne neg nextafter normal normal_functional ones_like poisson polar positive pow prelu _prelu_kernel
rad2deg rand_like randn_like reciprocal relu relu6 remainder round rrelu rrelu_with_noise rsqrt rsub selu sgn sigmoid
sign signbit silu sin sinc sinh softplus softshrink special_expit sqrt square sub tan tanh threshold _to_copy to trunc
uniform where xlogy zero zeros_like resolve_conj resolve_neg real conj _conj
""".split()

DERIVATIVES = """
elu gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logit mish rrelu_with_noise sigmoid silu softplus
softshrink tanh threshold
""".split()
"""Of models whose output is a gradient (forces, from an energy): `tanh_backward(gradient, output)`, and so on."""

UNIFORM = "empty full new_empty new_empty_strided new_full new_ones new_zeros ones zeros empty_strided".split()
FACTORIES = (
    """
arange eye linspace rand randint randn randperm scalar_tensor tril_indices triu_indices
""".split()
    + UNIFORM
)

POINTWISE: dict[str, Rule] = {
    **dict.fromkeys([*NAMES, *(f"{name}_backward" for name in DERIVATIVES)], pointwise),
    **dict.fromkeys(FACTORIES, factory),
    **dict.fromkeys(UNIFORM, uniform),
    "index_put": index_put,
    "linalg_cross": cross,
    **dict.fromkeys("index_add index_copy index_fill scatter scatter_add".split(), write_along_one),
    **dict.fromkeys("index_reduce scatter_reduce".split(), write_along_one),
}
