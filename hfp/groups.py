"""Channel groups: the channels that stand in the same places, found by what all the axes of a model say at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from hfp.labels import FIXED, unique_rows

TensorDim = tuple[int, str, int]
"""Its number among all dims of all tensors of the model, the tensor, and which of its dims it is."""


@dataclass(frozen=True)
class Group:
    """Channels that stand in the same places."""

    channels: Tensor
    """Their numbers, ascending."""
    least: int
    """How many always stay: 2 where a squeeze in the model's code would swallow an axis of length 1."""
    standing: tuple[tuple[Sequence[TensorDim], int], ...]
    """(places; how many indices a channel takes up there)."""

    @cached_property
    def members(self) -> tuple[tuple[str, int], ...]:
        """(tensor name, dim) of every place, in the order of the model."""
        return tuple((name, dim) for _, name, dim, _ in self._places)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many indices one channel takes up in each place (49 for a linear layer behind a 7x7 map, say)."""
        return tuple(size for *_, size in self._places)

    @cached_property
    def _places(self) -> list[tuple[int, str, int, int]]:
        return sorted((*place, size) for places, size in self.standing for place in places)

    @property
    def width(self) -> int:
        return len(self.channels)


def grouped(
    channels: Tensor, axis: Tensor, places: list[list[TensorDim]], count: int, products: Tensor, wide: Tensor
) -> tuple[Group, ...]:
    """Channels with the same places, and the same partners in products, in the order of their first channel.

    `channels`: at every index of every axis, one of `count`, or of `products` from there on, or FIXED; `axis`: on which
    of the axes that is; `places`: where each of these is in the model; `wide`: channels that a squeeze would swallow.
    """
    free = channels != FIXED
    axis, number = axis.masked_select(free), channels.masked_select(free)
    # Equal sums of random numbers of the axes, 128 bits of them, mean equal sizes in all places.
    random = torch.randint(-(2**62), 2**62, (2, len(places)), generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(count + len(products), dtype=torch.long)
    sums = torch.stack([zeros.index_add(0, number, half[axis]) for half in random], 1)  # a column at a time is quicker
    signature = with_products(sums, count, products)
    if len(products):
        together = sums[count:] + torch.cat([signature, signature.new_zeros(1, 2)])[products].sum(1)
        whole = together * together.flip(1)  # a sum of squares tells partners apart, where a plain sum does not
        signature = with_products(torch.cat([signature, whole]), count, products)
    same = _apart(_equal_rows(signature), count, products)
    lonely = torch.zeros(count + 1, dtype=torch.bool)  # the last entry is for FIXED
    lonely[wide.clamp_max(count)] = True
    sizes = _sizes([int(channels[0]) for channels in same], axis, number, count, products)
    return tuple(
        Group(
            own,
            least=2 if len(own) > 1 and bool(lonely[own].any()) else 1,
            standing=tuple((places[number], size) for number, size in mine.items()),
        )
        for own, mine in zip(same, sizes, strict=True)
    )


def _apart(groups: list[Tensor], count: int, products: Tensor) -> list[Tensor]:
    """Partners are of one group only if all of it are partners, as of a Gram matrix, which has every channel along both
    of its axes; but 4 heads of 4 stand in the same places as the 4 places in each of them.
    """
    number = torch.full((count + 1,), FIXED)  # the last entry is for FIXED
    for row, channels in enumerate(groups):
        number[channels] = row
    ordered = number[products].sort(1).values
    mixed = ordered[:, 1:][(ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != FIXED)].unique().tolist()
    mixed = [row for row in mixed if not _all_partners(groups[row], products)]
    apart = [channels for row, channels in enumerate(groups) if row not in mixed]
    for row in mixed:
        rest = groups[row]
        while len(rest):
            beside = products[(products == rest[0]).any(1)]
            partner = torch.isin(rest, beside[beside != rest[0]])
            apart.append(rest[~partner])
            rest = rest[partner]
    return sorted(apart, key=lambda channels: int(channels[0]))


def _all_partners(channels: Tensor, products: Tensor) -> bool:
    """Whether every two of them are partners, and they are too many to be one along each axis."""
    inside = products.masked_fill(~torch.isin(products, channels), FIXED)
    pairs = torch.cat(
        [inside[:, list(columns)].sort(1).values for columns in combinations(range(products.shape[1]), 2)]
    )
    met = pairs[(pairs[:, 0] != FIXED) & (pairs[:, 0] != pairs[:, 1])].unique(dim=0)
    return len(channels) > products.shape[1] and len(met) == len(channels) * (len(channels) - 1) // 2


def _equal_rows(rows: Tensor) -> list[Tensor]:
    """The numbers of the rows that are equal, ascending; in the order of the first of each."""
    kind = unique_rows(rows)[1]
    order = kind.argsort(stable=True)
    parts = order.split(kind.bincount().tolist())
    return sorted(parts, key=lambda part: int(part[0]))


def _sizes(channels: list[int], axis: Tensor, number: Tensor, count: int, products: Tensor) -> list[dict[int, int]]:
    """For each of `channels`: axis -> how many of its indices the channel takes up, alone and in products."""
    factors = torch.full((count + len(products), max(products.shape[1], 1)), FIXED)  # of every number
    factors[:count, 0] = torch.arange(count)
    factors[count:, : products.shape[1]] = products
    asked = torch.full((count + 1,), FIXED)  # the last entry is for FIXED
    asked[channels] = torch.arange(len(channels))
    sizes: list[dict[int, int]] = [defaultdict(int) for _ in channels]
    for column in asked[factors].unbind(1):
        rows = column.index_select(0, number)
        here = rows != FIXED
        for row, where in zip(rows.masked_select(here).tolist(), axis.masked_select(here).tolist(), strict=True):
            sizes[row][where] += 1
    return sizes


def with_products(values: Tensor, count: int, products: Tensor) -> Tensor:
    """(count, ...) for every channel the sum of `values` (count + products, ...), its own and those of its products."""
    total = values[:count].clone()
    for column in products.unbind(1):
        total.index_add_(0, column[column != FIXED], values[count:][column != FIXED])
    return total
