"""Movers put elements somewhere else.

Whether a size in the model's code is a literal or follows the channels cannot be seen here: `x.view(b, 4, c // 4)` and
`x.view(b, 4, 16)` are the same call. So movers suppose the likely (the parts of an even split are cut alike, slot by
slot; both factors of an axis that a view splits can be cut), and the trial cut (`hfp.trial`) pins whatever does not
follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from hfp.labels import ANY, FIXED, Labels, Ledger, anything, prunable
from hfp.rules.call import Call, Rule, labelled, looked_up, stays_whole
from hfp.rules.spatial import SPATIAL


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
    """`as_strided` that leaves the shape as it is: another order in memory."""
    return (
        call.labels(call.args[0])
        if list(call.out.shape) == list(call.args[1]) == list(call.args[0].shape)
        else stays_whole(ledger, call)
    )


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


def roll(ledger: Ledger, call: Call) -> Labels:
    """`(input, shifts, dims)`: a shift by a number of channels means others once some are gone."""
    labels = call.labels(call.args[0])
    axes = {axis % max(call.out.dim(), 1) for axis in call.argument(2, "dims", ()) or range(call.out.dim())}
    for axis, ids in labelled(labels):
        if axis in axes:
            ledger.pin(ids, "is rolled along the channels", call.place)
    return labels


def view(ledger: Ledger, call: Call) -> Labels:
    """Axes may merge and split: block by block of source axes and target axes that hold the same elements."""
    source, target, labels = call.args[0].shape, call.out.shape, call.labels(call.args[0])
    if prod(source) != prod(target) or call.args[0].dtype != call.out.dtype:
        for _, ids in labelled(labels):
            ledger.pin(ids, "is reinterpreted as another type", call.place)
        return ()
    found: list[Tensor | None] = [None for _ in target]
    for old, new in _blocks(source, target) if labels else ():
        here = {position: own for position, axis in enumerate(old) if (own := labels[axis]) is not None}
        vectors = tuple(here.values())
        before, after = tuple(source[axis] for axis in old), tuple(target[axis] for axis in new)
        if len(vectors) == 1 and prod(before) == len(vectors[0]) and len(vectors[0]) in after:
            found[new[after.index(len(vectors[0]))]] = vectors[0]  # as it was, but for axes of length 1
        elif here:
            for place, ids in _viewed(ledger, call, here, before, after):
                found[new[place]] = ids
    return tuple(found)


def _viewed(
    ledger: Ledger, call: Call, here: dict[int, Tensor], source: tuple[int, ...], target: tuple[int, ...]
) -> list[tuple[int, Tensor]]:
    """(axis, ids along it) of one block of axes, of which `here` have labels; in every run the same."""
    how = "view", tuple(here), source, target
    return ledger.once(tuple(here.values()), how, lambda: _spread(ledger, call, here, source, target))


def _spread(
    ledger: Ledger, call: Call, here: dict[int, Tensor], source: tuple[int, ...], target: tuple[int, ...]
) -> list[tuple[int, Tensor]]:
    if len(target) == 1 and len(here) > 1 and all(bool((ids != ids[0]).any()) for ids in here.values()):
        return [(0, _merged(ledger, here, source))]
    found: dict[int, list[Tensor]] = {}
    for position, ids in here.items():
        block = _along(ids, position, source).expand(source).reshape(target)
        for axis, factor in _factors(ledger, call, block):
            found.setdefault(axis, []).append(factor)
    return [(axis, ledger.merge(vectors)) for axis, vectors in found.items()]


def _along(vector: Tensor, position: int, shape: Sequence[int]) -> Tensor:
    """A vector that lies along one axis of a shape."""
    return vector.reshape([-1 if axis == position else 1 for axis in range(len(shape))])


def _merged(ledger: Ledger, labels: Mapping[int, Tensor], shape: Sequence[int]) -> Tensor:
    """(n,) the ids of the axis into which axes of this shape merge, some of which have labels.

    Ids that repeat along an axis (anchors at every pixel) are merged once.
    """
    own, ranks = zip(*(ids.unique(return_inverse=True) for ids in labels.values()), strict=True)
    grid = ledger.merge(torch.cartesian_prod(*own).unbind(1)).reshape([len(values) for values in own])
    for axis, rank in enumerate(ranks):
        grid = grid.index_select(axis, rank)
    grid = grid.reshape([length if axis in labels else 1 for axis, length in enumerate(shape)])
    return grid.expand(list(shape)).flatten()


def _blocks(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Blocks of adjacent axes with equal numbers of elements, `[([0], [0]), ([1, 2], [1])]` for a flatten."""
    if prod(source) == 0:  # no boxes found, say: as if there were one
        source, target = ([max(length, 1) for length in shape] for shape in (source, target))
        if prod(source) != prod(target):
            return [(list(range(len(source))), list(range(len(target))))]
    blocks: list[tuple[list[int], list[int]]] = []
    sides = [list(enumerate(source))[::-1], list(enumerate(target))[::-1]]  # what is left, next axis last
    while any(sides):
        block: tuple[list[int], list[int]] = ([], [])
        sizes = [1, 1]
        takers = [side for side in (0, 1) if sides[side]]
        while takers:
            for side in takers:
                axis, length = sides[side].pop()
                block[side].append(axis)
                sizes[side] *= length
            takers = [] if sizes[0] == sizes[1] else [int(sizes[0] > sizes[1])]
        blocks.append(block)
    return blocks


def _factors(ledger: Ledger, call: Call, block: Tensor) -> list[tuple[int, Tensor]]:
    """(axis, ids along it) for each axis on which a block of ids varies: factors of it, where there are several."""
    axes, lengths = [], list(block.shape)
    for axis, length in enumerate(lengths):
        first = block.narrow(axis, 0, 1) if length else block
        if length > 1 and not bool((block == first).all()):
            axes.append(axis)
        else:
            block = first
    if len(axes) > 1:
        return list(
            zip(axes, ledger.split(block.reshape([block.shape[axis] for axis in axes]), call.place), strict=True)
        )
    if not axes and bool((block == ANY).all()):
        return [(axis, anything(length)) for axis, length in enumerate(lengths) if length > 1]
    if not axes:
        ledger.pin(block, "is reshaped into an axis of length 1", call.place)
    return [(axis, block.flatten()) for axis in axes]


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
    if labels and labels[axis] is not None:
        ledger.pin(labels[axis], "is cut at fixed positions", call.place)
    return [labels[:axis] + labels[axis + 1 :] for _ in call.out]


def slice_(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim, start, end, step)`: a slice that is one of several equal parts is cut like the others."""
    source, labels = call.args[0], list(call.labels(call.args[0]))
    axis, size = call.argument(1, "dim", 0) % source.dim(), source.shape[call.argument(1, "dim", 0)]
    length, start = call.out.shape[axis], call.argument(2, "start", 0) or 0
    start = min(start + size if start < 0 else start, size)
    step = call.argument(4, "step", 1)
    if labels and labels[axis] is not None and length < size:
        ids = labels[axis]
        if step == 1 and length > 1 and size % length == 0 and start % length == 0:
            parts = ids.reshape(-1, length)
            ledger.tie(parts[:1], parts, call.place)
        else:
            ledger.pin(ids, "is cut at fixed positions", call.place)
        labels[axis] = ids[start::step][:length] if length > 1 else None
    return tuple(labels)


def select(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim, index)`: one channel, picked by its position, pins them all."""
    labels, axis = call.labels(call.args[0]), call.argument(1, "dim", 0) % call.args[0].dim()
    if labels and labels[axis] is not None:
        ledger.pin(labels[axis], "is cut at fixed positions", call.place)
    return labels[:axis] + labels[axis + 1 :]


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
            labels.append(None)
        else:
            parts = [
                torch.full((tensor.shape[axis],), FIXED) if vector is None else vector
                for tensor, vector in zip(tensors, ids, strict=True)
            ]
            beside_channels = any(map(prunable, parts))
            alike = [beside_channels and bool((part == ANY).all()) for part in parts]
            labels.append(
                torch.cat([ledger.constant(part) if a else part for part, a in zip(parts, alike, strict=True)])
            )
    return tuple(labels)


def _tied(ledger: Ledger, call: Call, ids: Sequence[Tensor | None]) -> Tensor | None:
    """The common labels of parts that lie beside each other; a part without any pins the others."""
    labelled = [vector for vector in ids if vector is not None]
    if len(labelled) == len(ids):
        for vector in labelled[1:]:
            ledger.tie(labelled[0], vector, call.place)
        return labelled[0]
    for vector in labelled:
        ledger.pin(vector, "is joined to a tensor of its own, fixed size", call.place)
    return None


def stack(ledger: Ledger, call: Call) -> Labels:
    """A new axis; along every other axis the parts are tied to each other."""
    every = [call.labels(tensor) or (None,) * tensor.dim() for tensor in call.args[0]]
    labels = [_tied(ledger, call, ids) for ids in zip(*every, strict=True)]
    labels.insert(call.argument(1, "dim", 0) % call.out.dim(), None)
    return tuple(labels)


def expand(ledger: Ledger, call: Call) -> Labels:
    """Axes that become longer, and new ones, hold one value all along."""
    source, labels = call.args[0].shape, call.labels(call.args[0])
    lead = call.out.dim() - len(source)
    every = (None,) * lead + (labels or (None,) * len(source))
    before = (1,) * lead + tuple(source)
    lengths = zip(every, before, call.out.shape, strict=True)
    return tuple(anything(after) if before == 1 and after > 1 else ids for ids, before, after in lengths)


def glu(ledger: Ledger, call: Call) -> Labels:
    """`(input, dim)`: one half times the sigmoid of the other; they are cut alike."""
    labels = list(call.labels(call.args[0]))
    axis = call.argument(1, "dim", -1)
    if labels and labels[axis] is not None:
        halves = labels[axis].reshape(2, -1)
        ledger.tie(halves[0], halves[1], call.place)
        labels[axis] = halves[0] if halves.shape[1] > 1 else None
    return tuple(labels)


def as_pairs(ledger: Ledger, call: Call) -> Labels:
    """`view_as_complex`: the last axis, two numbers, becomes one."""
    labels = call.labels(call.args[0])
    if labels and labels[-1] is not None:
        ledger.pin(labels[-1], "is reinterpreted as another type", call.place)
    return labels[:-1]


def as_real(ledger: Ledger, call: Call) -> Labels:
    labels = call.labels(call.args[0])
    return (*labels, None) if labels else ()


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
    axis = call.argument(1, "dim", 0) % len(labels)
    if labels[axis] is not None:
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


def pack(ledger: Ledger, call: Call) -> Labels:
    """`_pack_padded_sequence(input, lengths, batch_first)`: the axes of batch and time become one."""
    labels = call.labels(call.args[0])
    for ids in labels[:2]:
        if ids is not None:
            ledger.pin(ids, "is packed, as the time of a sequence", call.place)
    return (None, *labels[2:]) if labels else ()


_VIEWS = "view _unsafe_view reshape _reshape_alias"
_SPLITS = "split split_with_sizes unsafe_split chunk"

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
