"""Mixers read one vector of channels on their input axis and make a new one on their output axis.

The channels of a mixer are the dims of its weight: the input's labels are tied to the dim that reads, the output takes
the labels of the other one. Whoever reads is written down (`Ledger.readers`), for that is where gates sit, and so is
the number of multiply-adds, as a product of live counts. A product of two activations (the scores of attention) reads
without a weight: there removed channels have to be hidden from the operator itself.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hfp.labels import ANY, Labels, Ledger, Term, prunable
from hfp.rules.call import Call, Rule, unknown


def _labels(rank: int, axes: dict[int, Tensor | None]) -> Labels:
    labels: list[Tensor | None] = [None] * rank
    for axis, ids in axes.items():
        labels[axis] = ids
    return tuple(labels)


def read_by(
    ledger: Ledger, call: Call, x: Tensor | None, weight: Tensor, ids: Tensor | None, axis: Tensor | None = None
) -> None:
    """The labels `x` of an input are read by the labels `ids` of `weight`: tie them, note the reader.

    `axis`: the labels of the input's whole axis, where each index of `weight` reads several of them.
    """
    name = call.name_of(weight)
    if x is None and ids is not None:
        ledger.pin(ids, "reads values that belong to no channel (the network's input, say)", call.place)
    elif ids is None and x is not None:
        ledger.pin(x, "is read by a weight that has no labels", call.place)
    elif x is not None and ids is not None:
        ledger.meet(x, ids, call.place)
        dims = [dim for dim, own in enumerate(ledger.axes[name]) if own is ids or torch.equal(own, ids)] if name else []
        if name and dims:
            ledger.readers.setdefault(name, set()).update(dims)
        else:  # a gate on the parameter behind a computed weight is not a gate on the weight
            hidden = x if axis is None else axis
            ledger.ask(hidden, "zero", "is read by a weight that is computed, not stored", call.place)


def convolution(ledger: Ledger, call: Call) -> Labels:
    """`(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)`.

    The weight is (O, I/g, *K) or, transposed, (I, O/g, *K).
    """
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    if transposed and groups > 1:
        return _transposed_groups(ledger, call)
    for kernel in call.labels(weight)[2:]:
        ledger.pin(kernel, "is the kernel of a convolution", call.place)
    beside = _beside(ledger, call)
    read, made = call.ids(x, 1), call.ids(weight, 1 if transposed else 0)
    alone = bias is None and groups == x.shape[1] == weight.shape[0]
    if alone and read is not None and made is not None and bool((made == ANY).all()):
        # One filter for all (a blur): each makes what it reads.
        ledger.groups_told = True
        count_macs(ledger, call, prod(weight.shape[2:]) * call.out[:, :1].numel(), [(x, 1)])
        return _labels(call.out.dim(), {1: read, **beside})
    if groups > 1:
        _group(ledger, call, read, made)
    else:
        read_by(ledger, call, read, weight, call.ids(weight, 0 if transposed else 1))
    ledger.makes(made)
    if bias is not None:
        _add_bias(ledger, call, made, bias)
    grid = x if transposed else call.out  # every weight is used once at each position of it
    positions = prod(n for axis, n in enumerate(grid.shape) if axis != 1 and axis not in beside)
    axes = [(weight, 0), (weight, 1), *((x, axis) for axis in beside)]
    count_macs(ledger, call, positions * prod(weight.shape[2:]), axes)
    return _labels(call.out.dim(), {1: made, **beside})


def _beside(ledger: Ledger, call: Call) -> dict[int, Tensor | None]:
    """Axis -> labels of axes of the input that a convolution leaves alone: of the batch, or its kernel is 1 there."""
    x, weight = call.args[:2]
    beside: dict[int, Tensor | None] = {}
    for axis, ids in enumerate(call.labels(x)):
        if ids is None or axis == 1:
            continue
        if axis == 0 or (weight.shape[axis] == 1 and call.out.shape[axis] == x.shape[axis]):
            beside[axis] = ids
        else:
            ledger.pin(ids, "is convolved along the channels", call.place)
    return beside


def _group(ledger: Ledger, call: Call, read: Tensor | None, made: Tensor | None) -> None:
    """Groups that are many and narrow (depthwise, ResNeXt) are removed whole, others thinned slot by slot.

    So are those that read the same channels each, being examples of a batch.
    """
    x, weight, groups = call.args[0], call.args[1], call.args[8]
    if read is None and made is not None and len(made) > groups:  # of the network's input, say
        outputs = made.reshape(groups, -1)
        ledger.tie(outputs[:1], outputs, call.place)
        read_by(ledger, call, read, weight, call.ids(weight, 1))
        return
    if read is None or made is None:
        for ids in (read, made):
            ledger.pin(
                ids,
                "is in a grouped convolution that reads, or makes, values that belong to no channel",
                call.place,
            )
        return
    outputs, inputs = made.reshape(groups, -1), read.reshape(groups, -1)
    if x.shape[1] // groups < groups and not _alike(inputs):
        ledger.tie(outputs[:, :1], outputs, call.place)
        ledger.tie(outputs[:, :1], inputs, call.place)
        if isinstance(call.module, _ConvNd) and call.module.groups == groups:
            ledger.attributes[call.place.module, "groups"] = outputs[:, 0]
        else:  # a trial shows whether the model's code follows
            ledger.groups_told = True
    else:
        ledger.tie(inputs[:1], inputs, call.place)
        ledger.tie(outputs[:1], outputs, call.place)
        read_by(ledger, call, inputs[0], weight, call.ids(weight, 1), read)


def _transposed_groups(ledger: Ledger, call: Call) -> Labels:
    """Groups are removed whole: their inputs, which are rows of the weight, and their outputs.

    Those that read the same channels each, being examples of a batch, are cut slot by slot.
    """
    x, weight, bias, groups = *call.args[:3], call.args[8]
    read, rows, columns = call.ids(x, 1), call.ids(weight, 0), call.ids(weight, 1)
    made = None
    for tensor, kept in ((x, (1,)), (weight, (0, 1))):
        for axis, ids in enumerate(call.labels(tensor)):
            if axis not in kept:
                ledger.pin(ids, "is beside the channels of a grouped convolution", call.place)
    if read is not None and rows is not None and _alike(read.reshape(groups, -1)):
        read_by(ledger, call, read, weight, rows)
        ledger.makes(columns)
        made = None if columns is None else columns.repeat(groups)
    else:
        ledger.pin(columns, "is beside the channels of a grouped convolution", call.place)
        if read is None or rows is None or not isinstance(call.module, _ConvNd) or call.module.groups != groups:
            for ids in (read, rows):
                ledger.pin(ids, "is in a grouped convolution that reads values that belong to no channel", call.place)
        else:
            ledger.tie(read, rows, call.place)
            members = rows.reshape(groups, -1)
            ledger.tie(members[:, :1], members, call.place)
            ledger.attributes[call.place.module, "groups"] = members[:, 0]
            ledger.makes(rows)
            made = members[:, 0].repeat_interleave(weight.shape[1])
    if bias is not None:
        _add_bias(ledger, call, made, bias)
    count_macs(ledger, call, x.shape[0] * prod(x.shape[2:]) * prod(weight.shape[2:]), [(weight, 0), (weight, 1)])
    return _labels(call.out.dim(), {1: made})


def _alike(groups: Tensor) -> bool:
    """Whether all groups (g, n) have the same channels."""
    return bool(((groups == groups[:1]) & (groups != ANY)).all())


def convolution_backward(ledger: Ledger, call: Call) -> Labels:
    """`(gradient, input, weight, ...)` -> the input's gradient, of models whose output is a gradient: dim 0 reads."""
    gradient, _, weight = call.args[:3]
    transposed, groups, wanted = call.args[7], call.args[9], call.args[10]
    if transposed or groups > 1 or any(wanted[1:]):
        return unknown(ledger, call)
    read_by(ledger, call, call.ids(gradient, 1), weight, call.ids(weight, 0))
    positions = gradient.shape[0] * prod(gradient.shape[2:])
    count_macs(ledger, call, positions * prod(weight.shape[2:]), [(weight, 0), (weight, 1)])
    return _labels(gradient.dim(), {1: call.ids(weight, 1)})


def deform_conv2d(ledger: Ledger, call: Call) -> Labels:
    """`(input, weight, offset, mask, bias, ..., groups, offset_groups, use_mask)`, of torchvision.

    Nothing that PyTorch's own counter knows: it comes to no multiply-adds here either.
    """
    x, weight, offset, mask, bias = call.args[:5]
    groups, offset_groups = call.args[11:13]
    read, made = call.ids(x, 1), call.ids(weight, 0)
    for tensor in (offset, mask, x):
        for axis, ids in enumerate(call.labels(tensor)):
            if tensor is not x or axis != 1:
                ledger.pin(ids, "says where a convolution looks", call.place)
    if groups > 1:
        for ids in (read, made):
            ledger.pin(ids, "is in a grouped deformable convolution", call.place)
    else:
        if read is not None and offset_groups > 1:  # each has as many channels
            slots = read.reshape(offset_groups, -1)
            ledger.tie(slots[:1], slots, call.place)
        read_by(ledger, call, read, weight, call.ids(weight, 1))
    ledger.makes(made)
    _add_bias(ledger, call, made, bias)
    return _labels(call.out.dim(), {1: made})


def _add_bias(ledger: Ledger, call: Call, made: Tensor | None, bias: Tensor, axis: int = -1) -> None:
    """Tie what is added to what was made, along one axis."""
    if bias.dim() < -axis or bias.shape[axis] == 1:
        return
    own = call.ids(bias, axis)
    if made is not None and own is not None:
        ledger.meet(made, own, call.place)
    elif made is not None:
        ledger.pin(made, "has a bias without labels", call.place)
    else:
        ledger.pin(own, "is added to values that belong to no channel", call.place)


def count_macs(
    ledger: Ledger, call: Call, fixed: int, axes: list[tuple[Tensor, int]], factors: tuple[Tensor, ...] = ()
) -> None:
    """Multiply-adds: `fixed` times the live length of each axis, and of each of the `factors`, vectors of ids."""
    for tensor, axis in axes:
        ids = call.ids(tensor, axis)
        if ids is None:
            fixed *= tensor.shape[axis]
        else:
            factors = (*factors, ids)
    ledger.macs.append(Term(fixed, factors, call.place.module))


def addmm(ledger: Ledger, call: Call) -> Labels:
    """`addmm(bias, a, b)`, and `baddbmm` of batches: a product, and what is added to it."""
    labels = matmul(ledger, call)
    if len(call.args) == 3:
        for axis in range(-call.out.dim(), 0):
            _add_bias(ledger, call, labels[axis], call.args[0], axis)
    return labels


def sparse_addmm(ledger: Ledger, call: Call) -> Labels:
    """`torch.sparse.mm`, of which `FlopCounterMode` counts no multiply-adds."""
    labels = addmm(ledger, call)
    ledger.macs.pop()
    return labels


def matmul(ledger: Ledger, call: Call) -> Labels:
    """`mm`, `bmm`, `matmul` of a (..., M, K) and b (..., K, N), the last two arguments; the axes before broadcast."""
    a, b = call.args[-2:]
    left, right = call.ids(a, -1), call.ids(b, -2)
    _read(ledger, call, a, left, b, right)
    batch = {axis: batch_labels(ledger, call, a, b, axis) for axis in range(-call.out.dim(), -2)}
    rows, columns = call.ids(a, -2), call.ids(b, -1)
    for ids, weight, x in ((rows, a, b), (columns, b, a)):
        if is_weight(call, weight, x):
            ledger.makes(ids)
    fixed = prod(call.out.shape[axis] for axis, ids in batch.items() if ids is None)
    factors = tuple(ids for ids in batch.values() if ids is not None)
    count_macs(ledger, call, fixed, [(a, -2), _read_along(call, a, (b, -2)), (b, -1)], factors)
    return _labels(call.out.dim(), {**batch, -2: rows, -1: columns})


def grouped_mm(ledger: Ledger, call: Call) -> Labels:
    """`(a, b, offs, bias)`: each row of a (M, K) times the matrix (K, N) in b of the expert that it was sent to."""
    a, b = call.args[:2]
    bias = call.argument(3, "bias", None)
    if a.dim() != 2 or b.dim() != 3:
        return unknown(ledger, call)
    left, right, made = call.ids(a, 1), call.ids(b, 1), call.ids(b, 2)
    for ids in (call.ids(a, 0), call.ids(b, 0)):
        ledger.pin(ids, "is looked up by index", call.place)
    for ids in (left, right, made if b.stride(2) == 1 else None):  # what lies side by side in memory
        if ids is not None:
            _aligned(ledger, call, ids, a.element_size())
    _read(ledger, call, a, left, b, right)
    if is_weight(call, b, a):
        ledger.makes(made)
    if bias is not None:
        _add_bias(ledger, call, made, bias)
    count_macs(ledger, call, a.shape[0], [_read_along(call, a, (b, 1)), (b, 2)])
    return (None, made)


def _aligned(ledger: Ledger, call: Call, ids: Tensor, bytes_each: int) -> None:
    """Grouped products take rows of whole 16 bytes only: channels go by the eight, which suits half precision as well.

    Where there are no whole eights, by as many as fill 16 bytes.
    """
    run = 8 if len(ids) % 8 == 0 else 16 // bytes_each
    if len(ids) % run:
        ledger.pin(ids, "would no longer be whole 16 bytes", call.place)
    else:
        runs = ids.reshape(-1, run)
        ledger.tie(runs[:, :1], runs, call.place)


def grouped_flop(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Floating-point operations of a grouped product of such shapes, which `FlopCounterMode` has no formula for."""
    return 2 * prod(a) * b[-1] if (len(a), len(b)) == (2, 3) else 0


GROUPED = {torch.ops.aten._grouped_mm: grouped_flop} if hasattr(torch.ops.aten, "_grouped_mm") else {}
"""To count them: `FlopCounterMode(custom_mapping=GROUPED)`."""


def linear(ledger: Ledger, call: Call) -> Labels:
    """`(x, weight, bias)`: as one operator, not the views and the product that PyTorch makes of it."""
    x, weight, *bias = call.args
    made = call.ids(weight, 0)
    _read(ledger, call, x, call.ids(x, -1), weight, call.ids(weight, 1))
    ledger.makes(made)
    places = (call.labels(x) or (None,) * x.dim())[:-1]
    if call.name_of(x) is not None:
        ledger.produced += [ids for ids in places if ids is not None]
    if bias and bias[0] is not None:
        _add_bias(ledger, call, made, bias[0])
    rows = [(x, axis) for axis in range(x.dim() - 1)]
    count_macs(ledger, call, 1, [*rows, _read_along(call, x, (weight, 1)), (weight, 0)])
    return (*places, made)


def matrix_vector(ledger: Ledger, call: Call) -> Labels:
    """`mv(a, b)` of a (M, K) and b (K), `addmv` with a bias, `dot` of two (K); `FlopCounterMode` counts none."""
    a, b = call.args[-2:]
    _read(ledger, call, a, call.ids(a, -1), b, call.ids(b, 0))
    rows = call.ids(a, 0) if a.dim() == 2 else None
    if call.name_of(a) is not None:
        ledger.makes(rows)
    if len(call.args) == 3:
        _add_bias(ledger, call, rows, call.args[0])
    return (rows,) if a.dim() == 2 else ()


def _read_along(call: Call, x: Tensor, other: tuple[Tensor, int]) -> tuple[Tensor, int]:
    """The axis that is summed over: that of the other operand, where x has no channels, or is alike all along.

    As zeros are, the first hidden state of an LSTM.
    """
    ids = call.ids(x, -1)
    return other if ids is None or not prunable(ids) else (x, -1)


def _read(ledger: Ledger, call: Call, a: Tensor, left: Tensor | None, b: Tensor, right: Tensor | None) -> None:
    """Products of a, along its labels `left`, and b, along `right`, are summed: if either is a weight, it reads."""
    if call.name_of(b) is not None:
        read_by(ledger, call, left, b, right)
    elif call.name_of(a) is not None:
        read_by(ledger, call, right, a, left)
    elif left is not None and right is not None:
        ledger.tie(left, right, call.place)
        ledger.ask(left, "zero", "is read by another activation", call.place)
        ledger.ask(right, "again", "is read by another activation", call.place)
    else:
        for ids in (left, right):
            ledger.pin(ids, "is multiplied by a tensor of its own, fixed size", call.place)


def solve_triangular(ledger: Ledger, call: Call) -> Labels:
    """`(a, b, upper, left)`: each column of b (or each row) is solved for by itself; `FlopCounterMode` counts none."""
    a, b = call.args[:2]
    kept, solved = (-1, -2) if call.argument(3, "left", True) else (-2, -1)
    for ids in (call.ids(a, -1), call.ids(a, -2), call.ids(b, solved)):
        ledger.pin(ids, "is solved for along the channels", call.place)
    batch = {axis: batch_labels(ledger, call, a, b, axis) for axis in range(-call.out.dim(), -2)}
    return _labels(call.out.dim(), {**batch, kept: call.ids(b, kept)})


def is_weight(call: Call, weight: Tensor, x: Tensor) -> bool:
    """Whether of two tensors that are multiplied this one is the weight: stored, or computed from what is."""
    return call.name_of(weight) is not None or (call.is_stored(weight) and not call.is_stored(x))


def batch_labels(ledger: Ledger, call: Call, a: Tensor, b: Tensor, axis: int) -> Tensor | None:
    """The labels along an axis of a batch of products (the heads of attention): those of both batches, one by one."""
    there = [tensor for tensor in (a, b) if tensor.dim() >= -axis and tensor.shape[axis] > 1]
    ids = [call.ids(tensor, axis) for tensor in there]
    if len(ids) == 1:  # the other is broadcast
        return ids[0]
    if ids and ids[0] is not None and ids[1] is not None:
        ledger.tie(ids[0], ids[1], call.place)
        return ids[1] if not prunable(ids[0]) else ids[0]
    for own in ids:
        ledger.pin(own, "is combined with a tensor of fixed size (the network's input, say)", call.place)
    return None


def embedding(ledger: Ledger, call: Call) -> Labels:
    """`(weight, indices)`, also bags of them: every row may be looked up, and stays; the columns make channels."""
    rows, columns = (call.ids(call.args[0], axis) for axis in (0, 1))
    ledger.pin(rows, "is looked up by index", call.place)
    ledger.makes(columns)
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    return _labels(out.dim(), {-1: columns})


MIXERS: dict[str, Rule] = {
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    "torchvision::deform_conv2d": deform_conv2d,
    **dict.fromkeys("mm bmm matmul".split(), matmul),
    **dict.fromkeys("addmm baddbmm".split(), addmm),
    "_sparse_addmm": sparse_addmm,
    "_grouped_mm": grouped_mm,
    "linear": linear,
    "linalg_solve_triangular": solve_triangular,
    **dict.fromkeys("mv addmv dot vdot".split(), matrix_vector),
    **dict.fromkeys("embedding _embedding_bag _embedding_bag_forward_only".split(), embedding),
}
