"""The channel table: for every named tensor, the channels along each of its dims. Everything else reads this table.

A *channel* is what can be removed as one: all the slices, of all the tensors, that go together. A *channel group* is
the
channels that stand in the same places (the width of a layer, or of a residual stage): its members are interchangeable
in cost, and at least one of them always stays.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hfp.cost import Cost, Factor, build
from hfp.labels import FIXED, Ledger, Place, Term, extended, prunable, unique_rows
from hfp.operands import Operand
from hfp.resolve import Numbering, resolve


@dataclass(frozen=True)
class Group:
    """Channels that stand in the same places."""

    channels: Tensor
    """Their numbers, ascending."""
    members: tuple[tuple[str, int], ...]
    """(tensor name, dim) of every place, in the order of the model."""
    sizes: tuple[int, ...]
    """How many indices one channel takes up in each place (49 for a linear layer behind a 7x7 map, say)."""
    least: int = 1
    """How many always stay: 2 where a squeeze in the model's code would swallow an axis of length 1."""

    @property
    def width(self) -> int:
        return len(self.channels)


@dataclass(frozen=True)
class Pinned:
    """A layer, or part of it, that stays whole, and why."""

    tensor: str
    dim: int
    count: int
    reason: str
    place: Place


@dataclass(frozen=True)
class ChannelTable:
    """Which channels a model has and where each of them stands. Printing it explains groups and what is pinned."""

    axes: dict[str, tuple[Tensor, ...]]
    """Tensor name -> for each of its dims the channel number at every index; FIXED where nothing can be removed.
    Numbers from `channels` on stand for rows of `products`."""
    products: Tensor
    """(n, factors) channels: an index that belongs to several (a head, and a place in it) lives if all of them do."""
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    readers: tuple[tuple[str, int], ...]
    """(tensor name, dim) where channels are read: the places of the gates."""
    operands: tuple[Operand, ...]
    """Arguments in which removed channels have to be hidden, of functions that work across channels."""
    attributes: dict[tuple[str, str], Tensor]
    """(module, attribute) of an integer that no tensor tells, such as groups -> the channel of each that it counts."""
    macs: Cost
    params: Cost
    ptflops: Cost | None
    """What ptflops' default backend counts; None where it gives no number (`notes` tell why)."""
    notes: tuple[str, ...]
    inputs: dict[str, Any]
    """Description of the example inputs, see `hfp.inputs`."""
    channel_of: Tensor
    """Id in the ledger -> channel number."""

    @property
    def channels(self) -> int:
        return sum(group.width for group in self.groups)

    @cached_property
    def group_of(self) -> Tensor:
        """Channel number -> number of its group."""
        numbers = torch.empty(self.channels, dtype=torch.long)
        for number, group in enumerate(self.groups):
            numbers[group.channels] = number
        return numbers

    def extended(self, values: Tensor) -> Tensor:
        """What holds for channels (channels,), looked up by the numbers in `axes`: also for products and FIXED."""
        return extended(values, self.products.to(values.device))

    def fingerprint(self) -> str:
        """A hash of names, shapes and channel numbers: with equal ones, the same keep vector cuts alike."""
        digest = hashlib.sha256()
        for name, ids in self.axes.items():
            digest.update(name.encode())
            for vector in ids:
                digest.update(b"|" + vector.numpy().astype("<i8").tobytes())
        digest.update(self.products.numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def __str__(self) -> str:
        from hfp.explain import table_text

        return table_text(self)


def build_table(ledger: Ledger, operands: list[Operand], parameters: list[str], inputs: dict[str, Any]) -> ChannelTable:
    """The table that a ledger amounts to. `parameters`: names of the tensors that count as parameters."""
    numbering = resolve(ledger)
    count, products = numbering.channels, numbering.products

    of = torch.cat([numbering.of, torch.tensor([FIXED, FIXED])])  # ANY and FIXED look up the last two entries

    def channel(ids: Tensor) -> Tensor:
        return of[ids]

    factors: dict[bytes, Factor] = {}

    def factor(vector: Tensor) -> Factor:
        key = vector.numpy().tobytes()
        if key not in factors:
            factors[key] = Factor.of(vector)
        return factors[key]

    def cost(terms: list[Term]) -> Cost:
        return build(
            count,
            [(term.coefficient, tuple(factor(channel(ids)) for ids in term.factors)) for term in terms],
            products,
        )

    axes = {name: tuple(map(channel, ids)) for name, ids in ledger.axes.items()}
    wide = channel(torch.cat(ledger.wide)) if ledger.wide else torch.empty(0, dtype=torch.long)
    whole = build(count, [(1, tuple(map(factor, axes[name]))) for name in parameters], products)
    hidden = [replace(operand, channels=channel(operand.channels)) for operand in operands]
    return ChannelTable(
        axes=axes,
        products=products,
        groups=_groups(axes, count, products, wide),
        pinned=_pinned(ledger, numbering),
        readers=tuple(
            (name, dim) for name, dims in ledger.readers.items() for dim in sorted(dims) if prunable(axes[name][dim])
        ),
        operands=tuple(operand for operand in hidden if prunable(operand.channels)),
        attributes={where: channel(ids) for where, ids in ledger.attributes.items() if prunable(channel(ids))},
        macs=cost(ledger.macs),
        params=whole,
        ptflops=None if ledger.ptflops is None else cost(ledger.ptflops),
        notes=tuple(ledger.notes),
        inputs=inputs,
        channel_of=numbering.of,
    )


def _groups(axes: dict[str, tuple[Tensor, ...]], count: int, products: Tensor, wide: Tensor) -> tuple[Group, ...]:
    """Channels with the same places, and the same partners in products, in the order of their first channel."""
    places = [(name, dim) for name, ids in axes.items() for dim, vector in enumerate(ids) if prunable(vector)]
    numbers = count + len(products)
    # (place, number) as one number, for every pair that there is, and how many indices of the place have that number.
    vectors = [axes[name][dim] for name, dim in places]
    pairs = [vector[vector != FIXED] + numbers * row for row, vector in enumerate(vectors)]
    met, times = torch.cat([torch.empty(0, dtype=torch.long), *pairs]).unique(return_counts=True)
    place, number = met // max(numbers, 1), met % max(numbers, 1)
    # Equal sums of sizes times random numbers, 128 bits of them, mean equal sizes in all places.
    random = torch.randint(-(2**62), 2**62, (len(places), 2), generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(numbers, 2, dtype=torch.long).index_add_(0, number, times[:, None] * random[place])
    signature = with_products(sums, count, products)
    if len(products):
        together = sums[count:] + torch.cat([signature, signature.new_zeros(1, 2)])[products].sum(1)
        whole = together * together.flip(1)  # a sum of squares tells partners apart, where a plain sum does not
        signature = with_products(torch.cat([signature, whole]), count, products)
    same = _apart(_equal_rows(signature), count, products)
    lonely = torch.zeros(count + 1, dtype=torch.bool)  # the last entry is for FIXED
    lonely[wide.clamp_max(count)] = True
    sizes = _sizes([int(channels[0]) for channels in same], place, number, times, count, products)
    return tuple(
        Group(
            channels,
            members=tuple(places[row] for row in sorted(mine)),
            sizes=tuple(mine[row] for row in sorted(mine)),
            least=2 if len(channels) > 1 and bool(lonely[channels].any()) else 1,
        )
        for channels, mine in zip(same, sizes, strict=True)
    )


def _apart(groups: list[Tensor], count: int, products: Tensor) -> list[Tensor]:
    """Partners are never of one group: 4 heads of 4 stand in the same places as the 4 places in each of them."""
    number = torch.full((count + 1,), FIXED)  # the last entry is for FIXED
    for row, channels in enumerate(groups):
        number[channels] = row
    ordered = number[products].sort(1).values
    mixed = ordered[:, 1:][(ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != FIXED)].unique().tolist()
    apart = [channels for row, channels in enumerate(groups) if row not in mixed]
    for row in mixed:
        rest = groups[row]
        while len(rest):
            beside = products[(products == rest[0]).any(1)]
            partner = torch.isin(rest, beside[beside != rest[0]])
            apart.append(rest[~partner])
            rest = rest[partner]
    return sorted(apart, key=lambda channels: int(channels[0]))


def _equal_rows(rows: Tensor) -> list[Tensor]:
    """The numbers of the rows that are equal, ascending; in the order of the first of each."""
    kind = unique_rows(rows)[1]
    order = kind.argsort(stable=True)
    parts = order.split(kind.bincount().tolist())
    return sorted(parts, key=lambda part: int(part[0]))


def _sizes(
    channels: list[int], place: Tensor, number: Tensor, times: Tensor, count: int, products: Tensor
) -> list[Counter[int]]:
    """For each of `channels`: place -> how many of its indices the channel takes up, alone and in products."""
    factors = torch.full((count + len(products), max(products.shape[1], 1)), FIXED)  # of every number
    factors[:count, 0] = torch.arange(count)
    factors[count:, : products.shape[1]] = products
    asked = torch.full((count + 1,), FIXED)  # the last entry is for FIXED
    asked[channels] = torch.arange(len(channels))
    sizes: list[Counter[int]] = [Counter() for _ in channels]
    for column in asked[factors[number]].unbind(1):
        here = column != FIXED
        for row, where, size in zip(*(x[here].tolist() for x in (column, place, times)), strict=True):
            sizes[row][where] += size
    return sizes


def with_products(values: Tensor, count: int, products: Tensor) -> Tensor:
    """(count, ...) for every channel the sum of `values` (count + products, ...), its own and those of its products."""
    total = values[:count].clone()
    for column in products.unbind(1):
        total.index_add_(0, column[column != FIXED], values[count:][column != FIXED])
    return total


def _pinned(ledger: Ledger, numbering: Numbering) -> tuple[Pinned, ...]:
    """For every axis that a mixer makes and that stays whole, in all or in part: the first reason met."""
    made = torch.zeros(ledger.size, dtype=torch.bool)
    for vector in ledger.produced:
        made[vector] = True
    whole = made & (numbering.of == FIXED)
    places = [(name, dim) for name, ids in ledger.axes.items() for dim in range(len(ids))]
    vectors = [vector for ids in ledger.axes.values() for vector in ids]
    flat = torch.cat([torch.empty(0, dtype=torch.long), *vectors])
    owner = torch.repeat_interleave(torch.tensor([len(vector) for vector in vectors], dtype=torch.long))
    pairs, kind = unique_rows(torch.stack([owner, numbering.why[flat]], 1)[whole[flat]])
    rows = []
    for (place, number), times in zip(pairs.tolist(), kind.bincount().tolist(), strict=True):
        (name, dim), pin = places[place], numbering.pins[number]
        rows.append(Pinned(name, dim, times, pin.reason, pin.place))
    return tuple(rows)
