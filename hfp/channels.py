"""The channel table: for every named tensor, the channels along each of its dims. Everything else reads this table.

A *channel* is what can be removed as one: all the slices, of all the tensors, that go together. A *channel group* is
the
channels that stand in the same places (the width of a layer, or of a residual stage): its members are interchangeable
in cost, and at least one of them always stays.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from hfp.cost import Cost, Factor, build
from hfp.labels import FIXED, Ledger, Place, Term, components, prunable


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
    """Tensor name -> for each of its dims the channel number at every index; FIXED where nothing can be removed."""
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    readers: tuple[tuple[str, int], ...]
    """(tensor name, dim) where channels are read: the places of the gates."""
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

    def fingerprint(self) -> str:
        """A hash of names, shapes and channel numbers: with equal ones, the same keep vector cuts alike."""
        digest = hashlib.sha256()
        for name, ids in self.axes.items():
            digest.update(name.encode())
            for vector in ids:
                digest.update(b"|" + vector.numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def __str__(self) -> str:
        from hfp.explain import table_text

        return table_text(self)


def build_table(ledger: Ledger, parameters: list[str], inputs: dict[str, Any]) -> ChannelTable:
    """The table that a ledger amounts to. `parameters`: names of the tensors that count as parameters."""
    root = components(ledger.size, ledger.ties)
    free = torch.zeros(ledger.size, dtype=torch.bool)
    for made in ledger.produced:
        free[root[made]] = True
    for pin in ledger.pins:
        free[root[pin.ids]] = False
    # Channels are numbered in the order of their smallest id, which is the order of the model's own tensors.
    number = torch.full((ledger.size,), FIXED)
    number[free] = torch.arange(int(free.sum()))
    channel = number[root]
    axes = {name: tuple(channel[vector] for vector in ids) for name, ids in ledger.axes.items()}

    @cache  # a tensor is looked up by identity
    def factor(vector: Tensor) -> Factor:
        return Factor.of(channel[vector])

    count = int(free.sum())

    def cost(terms: list[Term]) -> Cost:
        return build(count, [(term.coefficient, tuple(map(factor, term.factors))) for term in terms])

    wide = channel[torch.cat(ledger.wide)] if ledger.wide else torch.empty(0, dtype=torch.long)
    return ChannelTable(
        axes=axes,
        groups=_groups(axes, count, wide),
        pinned=_pinned(ledger, root, channel),
        readers=tuple(
            (name, dim) for name, dims in ledger.readers.items() for dim in sorted(dims) if prunable(axes[name][dim])
        ),
        attributes={where: channel[ids] for where, ids in ledger.attributes.items() if prunable(channel[ids])},
        macs=cost(ledger.macs),
        params=build(count, [(1, tuple(Factor.of(vector) for vector in axes[name])) for name in parameters]),
        ptflops=None if ledger.ptflops is None else cost(ledger.ptflops),
        notes=tuple(ledger.notes),
        inputs=inputs,
        channel_of=channel,
    )


def _groups(axes: dict[str, tuple[Tensor, ...]], count: int, wide: Tensor) -> tuple[Group, ...]:
    """Channels with the same places, in the order of their first channel."""
    places = []  # (tensor name, dim, how many indices of it each channel takes up)
    for name, ids in axes.items():
        for dim, vector in enumerate(ids):
            if prunable(vector):
                places.append((name, dim, vector[vector != FIXED].bincount(minlength=count)))
    # Equal sums of sizes times random numbers, 128 bits of them, mean equal sizes in all places.
    random = torch.randint(-(2**62), 2**62, (len(places), 2), generator=torch.Generator().manual_seed(0))
    signature = torch.zeros(count, 2, dtype=torch.long)
    for (_, _, sizes), numbers in zip(places, random, strict=True):
        signature += sizes[:, None] * numbers
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for channel, (a, b) in enumerate(signature.tolist()):
        members[a, b].append(channel)
    lonely = set(wide.tolist())
    groups = []
    for channels in members.values():
        where = [(name, dim, int(sizes[channels[0]])) for name, dim, sizes in places if sizes[channels[0]]]
        groups.append(
            Group(
                torch.tensor(channels),
                members=tuple((name, dim) for name, dim, _ in where),
                sizes=tuple(size for *_, size in where),
                least=2 if len(channels) > 1 and not lonely.isdisjoint(channels) else 1,
            )
        )
    return tuple(groups)


def _pinned(ledger: Ledger, root: Tensor, channel: Tensor) -> tuple[Pinned, ...]:
    """For every axis that a mixer makes and that stays whole, in all or in part: the first reason met."""
    first: dict[int, int] = {}
    for number, pin in enumerate(ledger.pins):
        for component in root[pin.ids].unique().tolist():
            first.setdefault(component, number)
    made = torch.zeros(ledger.size, dtype=torch.bool)
    for vector in ledger.produced:
        made[vector] = True
    rows = []
    for name, ids in ledger.axes.items():
        for dim, vector in enumerate(ids):
            whole = vector[made[vector] & (channel[vector] == FIXED)]
            reasons: dict[int, int] = defaultdict(int)
            for component in root[whole].tolist():
                reasons[first[component]] += 1
            rows += [
                Pinned(name, dim, count, ledger.pins[pin].reason, ledger.pins[pin].place)
                for pin, count in reasons.items()
            ]
    return tuple(rows)
