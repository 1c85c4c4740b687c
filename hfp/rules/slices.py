"""Slices take some of the indices of an axis: equal parts, every index by itself, windows, those that are looked up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hfp.labels import Labels, Ledger
from hfp.rules.call import Call, labelled, looked_up, stays_whole


def split(ledger: Ledger, call: Call) -> list[Labels]:
    """Parts of equal length are cut alike, slot by slot; unequal ones for themselves, if their lengths follow."""
    source, labels, parts = call.args[0], call.labels(call.args[0]), list(call.out)
    axis = call.argument(2, "dim", 0) % source.dim()
    if not labels:
        return [() for _ in parts]
    ids = labels[axis]
    pieces: list[Tensor | None] = [None for _ in parts]
    if ids is not None and len(parts) == 1:
        pieces = [ids]
    elif ids is not None and len({part.shape[axis] for part in parts}) > 1:
        pieces = [part if len(part) > 1 else None for part in ids.split([part.shape[axis] for part in parts])]
    elif ids is not None:
        slots = ledger.once([ids], ("split", len(parts)), lambda: _slots(ledger, call, ids, len(parts)))
        pieces = [slot if len(slot) > 1 else None for slot in slots]
    return [(*labels[:axis], piece, *labels[axis + 1 :]) for piece in pieces]


def _slots(ledger: Ledger, call: Call, ids: Tensor, parts: int) -> Sequence[Tensor]:
    slots = ids.reshape(parts, -1)
    ledger.tie(slots[:1], slots, call.place)
    return slots.unbind()


def unbind(ledger: Ledger, call: Call) -> list[Labels]:
    """Every index of an axis by itself: there must be as many as before."""
    labels, axis = call.labels(call.args[0]), call.argument(1, "dim", 0) % call.args[0].dim()
    ledger.pin(call.ids(call.args[0], axis), "is cut at fixed positions", call.place)
    return [labels[:axis] + labels[axis + 1 :] for _ in call.out]


def slice_(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim, start, end, step)`: a slice that is one of several equal parts is cut like the others.

    Where its bounds are attributes, which follow, it is cut for itself. Of every second index, from the first or from
    the next one on, both of a pair stay, or neither.
    """
    source, labels = call.args[0], list(call.labels(call.args[0]))
    axis, size = call.argument(1, "dim", 0) % source.dim(), source.shape[call.argument(1, "dim", 0)]
    length, first, end = call.out.shape[axis], call.argument(2, "start", 0) or 0, call.argument(3, "end", None)
    start = min(first + size if first < 0 else first, size)
    step = call.argument(4, "step", 1)
    if labels and labels[axis] is not None and length < size:
        ids = labels[axis]
        bounds = [first] if end is None or end >= size else [first, end]
        by_itself = step == 1 and all(call.follows.get(bound) for bound in bounds if bound)
        if step == 1 and length > 1 and size % length == 0 and start % length == 0 and not by_itself:
            parts = ids.reshape(-1, length)
            ledger.tie(parts[:1], parts, call.place)
        elif step > 1 and length > 1 and start < step and size % step == 0 and length == size // step:
            pairs = ids.reshape(-1, step)
            ledger.tie(pairs[:, :1], pairs, call.place)
        else:
            fixed = [_counted(ids, bound) for bound in bounds if bound not in call.follows] if step == 1 else [ids]
            for own in fixed:
                ledger.pin(own, "is cut at fixed positions", call.place)
        labels[axis] = ids[start::step][:length] if length > 1 else None
    return tuple(labels)


def _counted(ids: Tensor, bound: int) -> Tensor:
    """What has to stay so that a position stays where it is: all before it, or, if counted from the end, all behind."""
    return ids[:bound] if bound >= 0 else ids[bound:]


def select(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim, index)`: one channel, picked by its position."""
    labels, axis = call.labels(call.args[0]), call.argument(1, "dim", 0) % call.args[0].dim()
    ids, index = labels[axis] if labels else None, call.argument(2, "index", 0)
    if ids is not None:
        ledger.pin(_counted(ids, index + 1 if index >= 0 else index), "is cut at fixed positions", call.place)
    return labels[:axis] + labels[axis + 1 :]


def glu(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim)`: one half times the sigmoid of the other; they are cut alike."""
    labels = list(call.labels(call.args[0]))
    axis = call.argument(1, "dim", -1)
    if labels and labels[axis] is not None:
        halves = labels[axis].reshape(2, -1)
        ledger.tie(halves[0], halves[1], call.place)
        labels[axis] = halves[0] if halves.shape[1] > 1 else None
    return tuple(labels)


def index(ledger: Ledger, call: Call) -> Labels:
    """`(input, indices)`: axes that are indexed may have any of their entries looked up; the others are kept."""
    labels, indices = call.labels(call.args[0]), call.args[1]
    if not labels:
        return ()
    looked = looked_up(indices)
    for axis, ids in labelled(labels):
        if axis in looked:
            ledger.pin(ids, "is looked up by index", call.place)
    if looked and looked != list(range(looked[0], looked[-1] + 1)):
        new = call.out.dim() - (len(labels) - len(looked))  # indices apart from each other: their axes come first
        return (None,) * new + tuple(ids for axis, ids in enumerate(labels) if axis not in looked)
    new = call.out.dim() - (len(labels) - len(looked))
    return labels[: looked[0]] + (None,) * new + labels[looked[-1] + 1 :] if looked else labels


def along_one(ledger: Ledger, call: Call) -> Labels:
    """`index_select`, `gather`, `(input, dim, index)`: the axis `dim` is looked up, the others are kept."""
    labels = call.labels(call.args[0])
    if not labels:
        return ()
    if call.out.dim() != len(labels):  # an empty index may have any rank
        return stays_whole(ledger, call)
    axis = call.argument(1, "dim", 0) % len(labels)
    ledger.pin(labels[axis], "is looked up by index", call.place)
    kept = [None if a == axis else ids for a, ids in enumerate(labels)]
    for a, ids in enumerate(kept):
        if ids is not None and call.out.shape[a] != len(ids):
            ledger.pin(ids, "is looked up by index", call.place)
            kept[a] = None
    return tuple(kept)


def unfold(ledger: Ledger, call: Call) -> Labels:
    """`x.unfold(dim, size, step)`: windows along `dim`, whose places become the last axis."""
    labels = list(call.labels(call.args[0]))
    axis = call.argument(1, "dimension")
    if labels and labels[axis] is not None:
        ledger.pin(labels[axis], "is seen through windows along the channels", call.place)
        labels[axis] = None
    return (*labels, None) if labels else ()
