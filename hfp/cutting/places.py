"""Which channels stay, told by where they stand: the indices of tensors, and not the numbers of a channel table.

Numbers are those of one table. Another version of hfp may find more channels to prune, another head has more or fewer
classes: then the table is another, but what was cut has the same places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.labels import FIXED

Places = dict[str, list[str]]
"""`10110`, which indices of an axis stay -> the axes that are cut so, `conv1.weight/0`; those that stay whole are not
told."""
Shapes = Mapping[str, Sequence[int]]
"""Tensor -> its lengths."""
T = TypeVar("T")


def places_of(table: ChannelTable, keep: Tensor) -> Places:
    """Where the channels in `keep` (channels,), a boolean vector, stay, and others go.

    >>> from torch import nn
    >>> from hfp.trace import trace
    >>> table = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 8, 8))
    >>> places_of(table, torch.tensor([True, False, True, True]))
    {'1011': ['0.weight/0', '0.bias/0', '1.weight/1']}
    """
    found: Places = {}
    stays = table.extended(keep)
    known: dict[int, str] = {}  # by identity, since a weight and its bias have one vector
    for name, axes in table.axes.items():
        for dim, vector in enumerate(axes):
            if id(vector) not in known:
                known[id(vector)] = (stays[vector].byte() + ord("0")).numpy().tobytes().decode("ascii")
            if "0" in known[id(vector)]:
                found.setdefault(known[id(vector)], []).append(f"{name}/{dim}")
    return found


def keep_at(table: ChannelTable, places: Places, shapes: Shapes | None = None) -> Tensor:
    """(channels,) bool: the inverse of `places_of`.

    `shapes`: of the tensors in the file that tells the places, if parts of its network may have been replaced since it
    was cut. What has gone, or has not the length that the cut has left, tells nothing any more; and what is new may be
    cut as its channels are elsewhere, if it is in the file.

    Raises:
        ValueError: no channels of this table stand in these places.
    """
    told = {place: bits for bits, axes in places.items() for place in axes}
    if len(told) < sum(map(len, places.values())):
        raise ValueError("an axis is told to be cut in two ways")
    if shapes is not None:
        told = {place: bits for place, bits in told.items() if _still_tells(place, bits, shapes, table)}
    there = torch.zeros(2, table.channels + len(table.products) + 1, dtype=torch.bool)
    gone, live = there
    for place, bits in told.items():
        stays = torch.tensor([bit == "1" for bit in bits])
        vector = _at(place, table.axes)
        if vector is None or len(vector) != len(stays):
            here = "no such axis" if vector is None else f"a length of {len(vector)}"
            raise ValueError(f"{place} (tensor/dim) was cut from a length of {len(stays)}, here it has {here}")
        gone[vector[~stays]] = True
        live[vector[stays]] = True
    # What belongs to several channels goes if any of them does: one that goes has nothing left anywhere.
    for row in there:
        row[table.products[row[table.channels : -1]].flatten()] = True
    keep = live[: table.channels] | ~gone[: table.channels]
    found = {place: bits for bits, axes in places_of(table, keep).items() for place in axes}
    new = {place for place in found.keys() - told.keys() if _at(place, shapes or {}) == found[place].count("1")}
    if wrong := sorted(place for place in (found.keys() | told.keys()) - new if found.get(place) != told.get(place)):
        vector = _at(wrong[0], table.axes)
        whole = vector is not None and bool((vector == FIXED).all())
        here = "they stay whole, as all do that come out of the network" if whole else "its channels go with others"
        raise ValueError(f"{wrong[0]} (tensor/dim) cannot be cut as it was: here {here}")
    return keep


def _still_tells(place: str, bits: str, shapes: Shapes, table: ChannelTable) -> bool:
    """Plain attributes are in no file."""
    name = place.rpartition("/")[0]
    return _at(place, shapes) == bits.count("1") if name in shapes else name in table.axes


def _at(place: str, axes: Mapping[str, Sequence[T]]) -> T | None:
    """What `axes` (tensor -> something for each of its dims) has for a place, if it has it."""
    name, _, dim = place.rpartition("/")
    found = axes.get(name, ())
    return found[int(dim)] if dim.isdecimal() and len(dim) < 4 and int(dim) < len(found) else None


def are_places(value: Any) -> bool:
    """Whether what a file says is of the right form."""
    return isinstance(value, Mapping) and all(
        set(bits) <= {"0", "1"} and isinstance(axes, list) and all(isinstance(place, str) for place in axes)
        for bits, axes in value.items()
    )
