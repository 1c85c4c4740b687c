"""The channel table: for every named tensor, the channels along each of its dims. Everything else reads this table.

A *channel* is what can be removed as one: all the slices, of all the tensors, that go together. A *channel group* is
the
channels that stand in the same places (the width of a layer, or of a residual stage): its members are interchangeable
in cost, and at least one of them always stays.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hfp.cost import Cost, Factor, build
from hfp.labels import FIXED, Ledger, Place, extended, prunable, unique_rows
from hfp.resolve import Numbering, resolve
from hfp.tracing.operands import Operand


@dataclass(frozen=True)
class Group:
    """Channels that stand in the same places."""

    channels: Tensor
    """Their numbers, ascending."""
    least: int
    """How many always stay: 2 where a squeeze in the model's code would swallow an axis of length 1."""
    standing: tuple[tuple[Sequence[tuple[int, str, int]], int], ...]
    """(places, each with its number in the model, its tensor and dim; how many indices a channel takes up there)."""

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
    """What ptflops' default backend counts; None unless asked for, and where it gives no number (`notes` tell why)."""
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
    row = _in_a_row(ledger, of)
    free = row.prunable()
    readers = [(name, dim) for name, dims in ledger.readers.items() for dim in sorted(dims)]
    # By identity, since the ids live as long as the ledger: most axes that are counted are those of a tensor.
    known = {key: Factor(row.lengths[n], _EMPTY, _EMPTY) for key, n in row.number.items() if n not in free}
    alike: dict[bytes, Factor] = {}

    def factor(ids: Tensor) -> Factor:
        if id(ids) not in known:
            vector = of[ids]
            key = vector.numpy().tobytes()
            known[id(ids)] = alike[key] if key in alike else alike.setdefault(key, Factor.of(vector))
        return known[id(ids)]

    def cost(terms: Iterable[tuple[int, Iterable[Tensor]]]) -> Cost:
        return build(count, [(fixed, tuple(map(factor, vectors))) for fixed, vectors in terms], products)

    hidden = [replace(operand, channels=of[operand.channels]) for operand in operands]
    attributes = {where: of[ids] for where, ids in ledger.attributes.items()}
    return ChannelTable(
        axes=row.by_name(ledger),
        products=products,
        groups=_groups(row, count, products, of[torch.cat([_EMPTY, *ledger.wide])]),
        pinned=_pinned(row, ledger, numbering),
        readers=tuple((name, dim) for name, dim in readers if row.number[id(ledger.axes[name][dim])] in free),
        operands=tuple(operand for operand in hidden if prunable(operand.channels)),
        attributes={where: channels for where, channels in attributes.items() if prunable(channels)},
        macs=cost((term.coefficient, term.factors) for term in ledger.macs),
        params=cost((1, ledger.axes[name]) for name in parameters),
        ptflops=None if ledger.ptflops is None else cost((term.coefficient, term.factors) for term in ledger.ptflops),
        notes=tuple(ledger.notes),
        inputs=inputs,
        channel_of=numbering.of,
    )


_EMPTY = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class _Row:
    """The axes of all tensors, one behind the other; those that have the same ids, as a weight and its bias, once."""

    number: dict[int, int]
    """By the identity of the ids: the number of their axis."""
    places: list[list[tuple[int, str, int]]]
    """Of each axis the places where it is: (place in the order of the model, tensor, dim)."""
    lengths: list[int]
    axis: Tensor
    """(indices,) the number of the axis that an index is on."""
    ids: Tensor
    channels: Tensor

    def by_name(self, ledger: Ledger) -> dict[str, tuple[Tensor, ...]]:
        vectors = self.channels.split(self.lengths)
        return {name: tuple(vectors[self.number[id(ids)]] for ids in own) for name, own in ledger.axes.items()}

    def prunable(self) -> set[int]:
        """The axes on which any index can be removed."""
        return set(self.axis.masked_select(self.channels != FIXED).unique_consecutive().tolist())


def _in_a_row(ledger: Ledger, of: Tensor) -> _Row:
    number: dict[int, int] = {}
    vectors: list[Tensor] = []
    places: list[list[tuple[int, str, int]]] = []
    every = ((name, dim, ids) for name, own in ledger.axes.items() for dim, ids in enumerate(own))
    for place, (name, dim, ids) in enumerate(every):
        if number.setdefault(id(ids), len(vectors)) == len(vectors):
            vectors.append(ids)
            places.append([])
        places[number[id(ids)]].append((place, name, dim))
    lengths = [len(vector) for vector in vectors]
    row = torch.cat([_EMPTY, *vectors])
    axis = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return _Row(number, places, lengths, axis, row, of.index_select(0, row))


def _groups(row: _Row, count: int, products: Tensor, wide: Tensor) -> tuple[Group, ...]:
    """Channels with the same places, and the same partners in products, in the order of their first channel."""
    free = row.channels != FIXED
    axis, number = row.axis.masked_select(free), row.channels.masked_select(free)
    # Equal sums of random numbers of the axes, 128 bits of them, mean equal sizes in all places.
    random = torch.randint(-(2**62), 2**62, (2, len(row.places)), generator=torch.Generator().manual_seed(0))
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
            channels,
            least=2 if len(channels) > 1 and bool(lonely[channels].any()) else 1,
            standing=tuple((row.places[number], size) for number, size in mine.items()),
        )
        for channels, mine in zip(same, sizes, strict=True)
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


def _pinned(row: _Row, ledger: Ledger, numbering: Numbering) -> tuple[Pinned, ...]:
    """For every axis that a mixer makes and that stays whole, in all or in part: the first reason met.

    Of axes with the same ids (a weight and its bias), the first tells.
    """
    whole = torch.zeros(ledger.size, dtype=torch.bool)
    whole[torch.cat([_EMPTY, *ledger.produced])] = True
    whole &= numbering.of == FIXED
    here = whole[row.ids]
    pairs, kind = unique_rows(torch.stack([row.axis[here], numbering.why[row.ids[here]]], 1))
    found = []
    for (axis, number), times in zip(pairs.tolist(), kind.bincount().tolist(), strict=True):
        (_, name, dim), pin = row.places[axis][0], numbering.pins[number]
        found.append(Pinned(name, dim, times, pin.reason, pin.place))
    return tuple(found)
