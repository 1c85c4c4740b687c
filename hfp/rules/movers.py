"""Movers put elements somewhere else.

Whether a size in the model's code is a literal or follows the channels cannot be seen here: `x.view(b, 4, c // 4)` and
`x.view(b, 4, 16)` are the same call. So movers suppose the likely (the parts of an even split are cut alike, slot by
slot; both factors of an axis that a view splits can be cut), and the trial cut (`hfp.trial`) pins whatever does not
follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from hfp.labels import ANY, FIXED, Labels, Ledger, anything
from hfp.rules.call import Call, Rule, labelled, lies_at, stays_whole
from hfp.rules.slices import along_one, glu, index, select, slice_, split, unbind, unfold
from hfp.rules.spatial import SPATIAL
from hfp.rules.views import view


def permuted(order: Callable[[Call], Sequence[int]]) -> Rule:
    """A rule for operators that put axes into another order."""

    def rule(ledger: Ledger, call: Call) -> Labels:
        labels = call.labels(call.args[0])
        return tuple(labels[axis] for axis in order(call)) if labels else ()

    return rule


def _swapped(call: Call) -> Sequence[int]:
    rank = call.args[0].dim()
    axes = list(range(rank))
    if rank > 1:
        a, b = (call.args[1] % rank, call.args[2] % rank) if len(call.args) > 2 else (rank - 2, rank - 1)
        axes[a], axes[b] = axes[b], axes[a]
    return axes


def _moved(call: Call) -> Sequence[int]:
    rank = call.args[0].dim()
    source, target = ([a] if isinstance(a, int) else a for a in call.args[1:3])
    rest = [axis for axis in range(rank) if axis not in {s % rank for s in source}]
    for to, axis in sorted(zip((t % rank for t in target), (s % rank for s in source), strict=True)):
        rest.insert(to, axis)
    return rest


def same(ledger: Ledger, call: Call) -> Labels:
    return call.labels(call.args[0])


def flip(ledger: Ledger, call: Call) -> Labels:
    labels = call.labels(call.args[0])
    axes = {axis % len(labels) for axis in call.args[1]} if labels else set()
    return tuple(ids.flip(0) if ids is not None and axis in axes else ids for axis, ids in enumerate(labels))


def restrided(ledger: Ledger, call: Call) -> Labels:
    """`as_strided` that leaves all as it is; with other strides it may be anything."""
    x, out = call.args[0], call.out
    strides = [[each for each, length in zip(t.stride(), t.shape, strict=True) if length > 1] for t in (x, out)]
    alike = x.shape == out.shape and strides[0] == strides[1] and x.storage_offset() == out.storage_offset()
    return call.labels(x) if alike else stays_whole(ledger, call)


def repeat(ledger: Ledger, call: Call) -> Labels:
    """`(input, repeats)`: axes are tiled, new ones come first."""
    source, repeats = call.args[0], call.args[1]
    lead = call.out.dim() - source.dim()
    labels = (None,) * lead + (call.labels(source) or (None,) * source.dim())
    lengths = zip(labels, (1,) * lead + tuple(source.shape), repeats, strict=True)
    return tuple(
        anything(times) if length == 1 and times > 1 else None if ids is None else ids.repeat(times)
        for ids, length, times in lengths
    )


def unsqueeze(ledger: Ledger, call: Call) -> Labels:
    labels = list(call.labels(call.args[0]))
    if not labels and call.args[0].dim():
        return ()
    labels.insert(call.args[1] % call.out.dim(), None)
    return tuple(labels)


def squeeze(ledger: Ledger, call: Call) -> Labels:
    """An axis of length 1 goes; a labelled one must not get there."""
    source, labels = call.args[0], call.labels(call.args[0])
    dims = call.argument(1, "dim", list(range(source.dim())))
    axes = {axis % max(source.dim(), 1) for axis in ([dims] if isinstance(dims, int) else dims)}
    ledger.wide += [ids for axis, ids in labelled(labels) if axis in axes]
    return tuple(ids for axis, ids in enumerate(labels) if axis not in axes or source.shape[axis] != 1)


def squeeze_(ledger: Ledger, call: Call) -> Labels:
    """In place, along axes that are named: the input has its new shape already, but still the labels of the old one."""
    labels, dims = call.labels(call.args[0]), call.argument(1, "dim")
    gone = len(labels) - call.out.dim()
    if not labels or dims is None or gone not in (0, 1 if isinstance(dims, int) else len(dims)):
        return stays_whole(ledger, call)
    axes = {axis % len(labels) for axis in ([dims] if isinstance(dims, int) else dims)}
    ledger.wide += [ids for axis, ids in labelled(labels) if axis in axes]
    return tuple(ids for axis, ids in enumerate(labels) if gone == 0 or axis not in axes)


def unsqueeze_(ledger: Ledger, call: Call) -> Labels:
    labels = list(call.labels(call.args[0]))
    labels.insert(call.args[1] % call.out.dim(), None)
    return tuple(labels) if len(labels) == call.out.dim() else ()


def roll(ledger: Ledger, call: Call) -> Labels:
    """`(input, shifts, dims)`: a shift by a number of channels means others once some are gone."""
    labels = call.labels(call.args[0])
    axes = {axis % max(call.out.dim(), 1) for axis in call.argument(2, "dims", ()) or range(call.out.dim())}
    for axis, ids in labelled(labels):
        if axis in axes:
            ledger.pin(ids, "is rolled along the channels", call.place)
    return labels


def pad(ledger: Ledger, call: Call) -> Labels:
    """Padding a labelled axis adds indices of no channel; padding any other adds to every channel alike."""
    labels, widths = list(call.labels(call.args[0])), list(call.args[1])
    for number in range(len(widths) // 2):
        axis = call.out.dim() - 1 - number
        before_after = widths[2 * number : 2 * number + 2]
        if labels and labels[axis] is not None:
            labels[axis] = torch.nn.functional.pad(labels[axis], before_after, value=FIXED)
    return tuple(labels)


def cat(ledger: Ledger, call: Call) -> Labels:
    """Along the joined axis labels follow one another; along every other axis the parts are tied to each other."""
    tensors = [tensor for tensor in call.args[0] if tensor.shape != (0,)]
    joined = call.argument(1, "dim", 0) % call.out.dim()
    every = [call.labels(tensor) or (None,) * tensor.dim() for tensor in tensors]
    labels: list[Tensor | None] = []
    for axis in range(call.out.dim()):
        ids = [own[axis] for own in every]
        if axis != joined:
            labels.append(_tied(ledger, call, ids))
        elif all(vector is None for vector in ids):
            repeats = call.out.shape[joined] == len(tensors) and _repeats(tensors)
            labels.append(anything(len(tensors)) if repeats else None)
        else:
            parts = [
                torch.full((tensor.shape[axis],), FIXED) if vector is None else vector
                for tensor, vector in zip(tensors, ids, strict=True)
            ]
            together = torch.cat(parts)
            if bool((together == ANY).any()) and not bool((together == ANY).all()):
                parts = [ledger.constant(part) if bool((part == ANY).all()) else part for part in parts]
                together = torch.cat(parts)
            labels.append(together)
    return tuple(labels)


def _tied(ledger: Ledger, call: Call, ids: Sequence[Tensor | None]) -> Tensor | None:
    """The common labels of parts that lie beside each other; a part without any pins the others."""
    labelled = [vector for vector in ids if vector is not None]
    if len(labelled) == len(ids):
        return reduce(lambda one, other: ledger.meet(one, other, call.place), labelled)
    for vector in labelled:
        ledger.pin(vector, "is joined to a tensor of its own, fixed size", call.place)
    return None


def stack(ledger: Ledger, call: Call) -> Labels:
    """A new axis; along every other axis the parts are tied to each other."""
    every = [call.labels(tensor) or (None,) * tensor.dim() for tensor in call.args[0]]
    labels = [_tied(ledger, call, ids) for ids in zip(*every, strict=True)]
    repeats = _repeats(call.args[0])
    labels.insert(call.argument(1, "dim", 0) % call.out.dim(), anything(len(every)) if repeats else None)
    return tuple(labels)


def _repeats(tensors: Sequence[Tensor]) -> bool:
    """Whether these are several times the same numbers: `[kernel] * c`, `[kernels[0] for _ in range(c)]`."""
    strided = all(x.layout == torch.strided for x in tensors)
    return len(tensors) > 1 and strided and len(set(map(lies_at, tensors))) == 1


def expand(ledger: Ledger, call: Call) -> Labels:
    """Axes that become longer, and new ones, hold one value all along."""
    source, labels = call.args[0].shape, call.labels(call.args[0])
    lead = call.out.dim() - len(source)
    every = (None,) * lead + (labels or (None,) * len(source))
    before = (1,) * lead + tuple(source)
    lengths = zip(every, before, call.out.shape, strict=True)
    return tuple(anything(after) if before == 1 and after > 1 else ids for ids, before, after in lengths)


def as_pairs(ledger: Ledger, call: Call) -> Labels:
    """`view_as_complex`: the last axis, two numbers, becomes one."""
    ledger.pin(call.ids(call.args[0], -1), "is reinterpreted as another type", call.place)
    return call.labels(call.args[0])[:-1]


def as_real(ledger: Ledger, call: Call) -> Labels:
    labels = call.labels(call.args[0])
    return (*labels, None) if labels else ()


def pack(ledger: Ledger, call: Call) -> Labels:
    """`_pack_padded_sequence(input, lengths, batch_first)`: the axes of batch and time become one."""
    labels = call.labels(call.args[0])
    for ids in labels[:2]:
        ledger.pin(ids, "is packed, as the time of a sequence", call.place)
    return (None, *labels[2:]) if labels else ()


_VIEWS = "view _unsafe_view reshape _reshape_alias"
_SPLITS = "split split_with_sizes unsafe_split chunk"

MOVERS_IN_PLACE: dict[str, Rule] = {"squeeze_": squeeze_, "unsqueeze_": unsqueeze_}

MOVERS: dict[str, Rule] = {
    **SPATIAL,
    **dict.fromkeys("t numpy_T adjoint mT transpose swapaxes".split(), permuted(_swapped)),
    "permute": permuted(lambda call: [axis % call.out.dim() for axis in call.args[1]]),
    "movedim": permuted(_moved),
    "alias": same,
    "as_strided": restrided,
    "flip": flip,
    "repeat": repeat,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "roll": roll,
    **dict.fromkeys(_VIEWS.split(), view),
    **dict.fromkeys(_SPLITS.split(), split),
    "unbind": unbind,
    "slice": slice_,
    "select": select,
    "constant_pad_nd": pad,
    "cat": cat,
    "stack": stack,
    "expand": expand,
    "glu": glu,
    "view_as_complex": as_pairs,
    "view_as_real": as_real,
    "index": index,
    "index_select": along_one,
    "gather": along_one,
    "unfold": unfold,
    "bucketize": same,
    "_pack_padded_sequence": pack,
}
