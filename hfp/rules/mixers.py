"""Mixers read one vector of channels on their input axis and make a new one on their output axis.

The channels of a mixer are the dims of its weight: the input's labels are tied to the dim that reads, the output takes
the labels of the other one. Whoever reads is written down (`Ledger.readers`), for that is where gates sit, and so is
the number of multiply-adds, as a product of live counts.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hfp.labels import Ledger, Planes, Term, align, along, varying
from hfp.rules.call import Call, Rule, unknown


def _ids(ledger: Ledger, call: Call, tensor: Tensor, axis: int) -> Tensor | None:
    """The labels along one axis of a tensor; None where there are none."""
    plane = call.plane(tensor, axis)
    return None if plane is None else ledger.vector(plane, axis % tensor.dim(), call.place)


def _labels(ids: Tensor | None, out: Tensor, axis: int) -> Planes:
    return () if ids is None else (along(ids, axis, out.dim()),)


def _read(ledger: Ledger, call: Call, x: Tensor | None, weight: Tensor, ids: Tensor | None) -> None:
    """The labels `x` of an input are read by the labels `ids` of `weight`: tie them, note the reader."""
    name = call.name_of(weight)
    if x is None and ids is not None:
        ledger.pin(ids, "reads values that belong to no channel (the network's input, say)", call.place)
    elif ids is None and x is not None:
        ledger.pin(x, "is read by a weight that has no labels", call.place)
    elif x is not None and ids is not None:
        ledger.tie(x, ids, call.place)
        dims = [dim for dim, own in enumerate(ledger.axes[name]) if torch.equal(own, ids)] if name else []
        if name and dims:
            ledger.readers.setdefault(name, set()).update(dims)
        else:  # a gate on the parameter behind a computed weight is not a gate on the weight
            ledger.pin(ids, "is read by a weight that is computed, not stored", call.place)


def convolution(ledger: Ledger, call: Call) -> Planes:
    """`(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)`.

    The weight is (O, I/g, *K) or, transposed, (I, O/g, *K).
    """
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    if transposed and groups > 1:
        return unknown(ledger, call)
    for plane in call.planes_of(x):
        if varying(plane) - {1}:
            ledger.pin(plane, "is convolved along the channels", call.place)
    read, made = _ids(ledger, call, x, 1), _ids(ledger, call, weight, 1 if transposed else 0)
    if groups > 1:
        _group(ledger, call, read, made)
    else:
        _read(ledger, call, read, weight, _ids(ledger, call, weight, 0 if transposed else 1))
    planes = _labels(made, call.out, 1)
    if made is not None:
        ledger.produced.append(made)
    if bias is not None:
        _add_bias(ledger, call, _bias_along(call, bias, 1), planes)
    grid = x if transposed else call.out  # every weight is used once at each position of it
    _count(ledger, call, grid.shape[0] * prod(grid.shape[2:]) * prod(weight.shape[2:]), [(weight, 0), (weight, 1)])
    return planes


def _group(ledger: Ledger, call: Call, read: Tensor | None, made: Tensor | None) -> None:
    """Groups that are many and narrow (depthwise, ResNeXt) are removed whole, others thinned slot by slot."""
    x, weight, groups = call.args[0], call.args[1], call.args[8]
    if read is None or made is None:
        for ids in (read, made):
            if ids is not None:
                ledger.pin(
                    ids,
                    "is in a grouped convolution that reads, or makes, values that belong to no channel",
                    call.place,
                )
        return
    outputs, inputs = made.reshape(groups, -1), read.reshape(groups, -1)
    if x.shape[1] // groups < groups:
        ledger.tie(outputs[:, :1], outputs, call.place)
        ledger.tie(outputs[:, :1], inputs, call.place)
        if isinstance(call.module, _ConvNd) and call.module.groups == groups:
            ledger.attributes[call.place.module, "groups"] = outputs[:, 0]
        else:
            ledger.pin(made, "is in a grouped convolution whose number of groups is written into the code", call.place)
    else:
        ledger.tie(inputs[:1], inputs, call.place)
        ledger.tie(outputs[:1], outputs, call.place)
        _read(ledger, call, inputs[0], weight, _ids(ledger, call, weight, 1))


def _bias_along(call: Call, bias: Tensor, axis: int) -> tuple[Planes, tuple[int, ...]]:
    """Planes and shape of a vector, as if it lay along `axis`."""
    return tuple(plane.reshape((1,) * axis + (-1,)) for plane in call.planes_of(bias)), (1,) * axis + tuple(bias.shape)


def _add_bias(ledger: Ledger, call: Call, bias: tuple[Planes, tuple[int, ...]], made: Planes) -> None:
    """Tie what is added to what was made, axis by axis."""
    planes, shape = bias
    for plane in made:
        (axis,) = varying(plane) or {0}
        own = next((p for p in planes if axis in varying(p)), None)
        if own is not None:
            ledger.tie(plane.flatten(), own.flatten(), call.place)
        elif axis < len(shape) and shape[axis] > 1:
            ledger.pin(plane, "has a bias without labels", call.place)


def _count(ledger: Ledger, call: Call, fixed: int, axes: list[tuple[Tensor, int]]) -> None:
    """Multiply-adds: `fixed` times the live length of each axis."""
    factors = []
    for tensor, axis in axes:
        ids = _ids(ledger, call, tensor, axis)
        if ids is None:
            fixed *= tensor.shape[axis]
        else:
            factors.append(ids)
    ledger.macs.append(Term(fixed, tuple(factors), call.place.module))


def matmul(ledger: Ledger, call: Call) -> Planes:
    """`mm(a, b)` of a (M, K) and b (K, N), and `addmm(bias, a, b)`: one of the two is a weight."""
    a, b = call.args[-2:]
    left, right = _ids(ledger, call, a, 1), _ids(ledger, call, b, 0)
    if call.name_of(b) is not None:
        _read(ledger, call, left, b, right)
    else:
        _read(ledger, call, right, a, left)
    rows, columns = _ids(ledger, call, a, 0), _ids(ledger, call, b, 1)
    for ids, weight in ((rows, a), (columns, b)):
        if ids is not None and call.name_of(weight) is not None:
            ledger.produced.append(ids)
    planes = _labels(rows, call.out, 0) + _labels(columns, call.out, 1)
    if len(call.args) == 3:
        bias = call.args[0]
        lead = (1,) * (2 - bias.dim())
        _add_bias(ledger, call, (tuple(align(p, 2) for p in call.planes_of(bias)), lead + tuple(bias.shape)), planes)
    _count(ledger, call, 1, [(a, 0), (a, 1), (b, 1)])
    return planes


def embedding(ledger: Ledger, call: Call) -> Planes:
    """`(weight, indices)`: every row may be looked up, so rows stay whole; the columns are channels of the output."""
    weight = call.args[0]
    columns = _ids(ledger, call, weight, 1)
    rows = _ids(ledger, call, weight, 0)
    if rows is not None:
        ledger.pin(rows, "is looked up by index", call.place)
    if columns is not None:
        ledger.produced.append(columns)
    return _labels(columns, call.out, -1)


MIXERS: dict[str, Rule] = {"convolution": convolution, "mm": matmul, "addmm": matmul, "embedding": embedding}
