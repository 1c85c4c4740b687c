"""Views lay the same elements out on other axes: some merge into one, one is spread over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from hfp.labels import ANY, Labels, Ledger, anything
from hfp.rules.call import Call, labelled


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
