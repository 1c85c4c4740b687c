"""Pointwise operators: they pass labels on and tie the labels of their operands, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from hfp.labels import FIXED, Ledger, Planes, align, varying
from hfp.rules.call import Call, Rule


def pointwise(ledger: Ledger, call: Call) -> Planes:
    """Planes that vary along a common axis become one; those that do not pass side by side."""
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    operands = [tensor for tensor in call.tensors() if tensor.numel() != 1]
    merged: list[Tensor] = []
    for tensor in operands:
        for plane in call.planes_of(tensor):
            plane = align(plane, out.dim())
            apart = [other for other in merged if not varying(other) & varying(plane)]
            for other in merged:
                if varying(other) & varying(plane):
                    ledger.tie(other, plane, call.place)
                    plane = torch.where(other != FIXED, other, plane)
            merged = [*apart, plane]
    return tuple(plane for plane in merged if not _meets_unlabelled(ledger, call, plane, operands))


def _meets_unlabelled(ledger: Ledger, call: Call, plane: Tensor, operands: list[Tensor]) -> bool:
    """Whether an operand has an unlabelled extent along the plane: it would not follow, so the plane is pinned."""
    axes = varying(plane)
    for tensor in operands:
        lead = plane.dim() - tensor.dim()
        labelled = set().union(*(varying(align(own, plane.dim())) for own in call.planes_of(tensor)))
        if any(axis >= lead and tensor.shape[axis - lead] > 1 and axis not in labelled for axis in axes):
            ledger.pin(plane, "is combined with a tensor of its own, fixed size", call.place)
            return True
    return False


def factory(ledger: Ledger, call: Call) -> Planes:
    """`x.new_zeros(shape)`: a shape that agrees with that of `x` is taken to come from it (the trial tells)."""
    source = call.args[0] if call.args and isinstance(call.args[0], Tensor) else None
    if source is None or source.dim() != call.out.dim():
        return ()
    same = {axis for axis in range(source.dim()) if source.shape[axis] == call.out.shape[axis]}
    return tuple(plane for plane in call.planes_of(source) if varying(plane) <= same)


NAMES = """
abs acos acosh add addcdiv addcmul alias_copy angle asin asinh atan atan2 atanh bernoulli bitwise_and bitwise_not
bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip clone contiguous copy copysign cos cosh deg2rad
detach digamma div dropout elu empty_like eq erf erfc erfinv exp exp2 expm1 exponential fill floor floor_divide fmax
fmin fmod frac full_like gcd ge gelu gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot isfinite isinf
isnan le leaky_relu lerp lgamma lift lift_fresh log log10 log1p log2 log_sigmoid_forward logaddexp logaddexp2
logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num
native_dropout ne neg nextafter normal normal_functional ones_like polar positive pow prelu _prelu_kernel rad2deg
rand_like randn_like reciprocal relu relu6 remainder round rrelu rrelu_with_noise rsqrt rsub selu sgn sigmoid sign
signbit silu sin sinc sinh softplus softshrink special_expit sqrt square sub tan tanh threshold _to_copy to trunc
uniform where xlogy zero zeros_like resolve_conj resolve_neg real conj
""".split()

FACTORIES = """
arange empty eye full linspace new_empty new_empty_strided new_full new_ones new_zeros ones rand randint randn
randperm scalar_tensor tril_indices triu_indices zeros empty_strided
""".split()

POINTWISE: dict[str, Rule] = {**dict.fromkeys(NAMES, pointwise), **dict.fromkeys(FACTORIES, factory)}
