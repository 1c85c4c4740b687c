"""The channel table: for every named tensor, the channels along each of its dims. Everything else reads this table.

A *channel* is what can be removed as one: all the slices, of all the tensors, that go together. A *channel group* is
the channels that stand in the same places (the width of a layer, or of a residual stage): its members are
interchangeable in cost, and at least one of them always stays (`hfp.groups`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hfp.cost import Cost, Factor, build
from hfp.groups import Group, grouped
from hfp.labels import FIXED, NO_IDS, Ledger, Place, extended, prunable, unique_rows
from hfp.model.names import Names
from hfp.resolve import Numbering, resolve
from hfp.tracing.operands import Operand, with_periods


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
    written: frozenset[str]
    """Names of the tensors that a forward writes to: statistics, caches, weights that are clipped there."""
    inputs: dict[str, Any]
    """Description of the example inputs, see `hfp.model.inputs`."""
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

    def costs(self, counter: str) -> dict[str, Cost]:
        """The two costs that can be budgeted, by the name of their target. `counter`: "macs" or "ptflops"."""
        macs = self.ptflops if counter == "ptflops" else self.macs
        assert macs is not None, "traced without ptflops=True"
        return {"macs": macs, "params": self.params}

    def __str__(self) -> str:
        from hfp.explain import table_text

        return table_text(self)

    __repr__ = __str__  # what a notebook shows


def build_table(ledger: Ledger, operands: list[Operand], names: Names, inputs: dict[str, Any]) -> ChannelTable:
    """The table that a ledger amounts to."""
    numbering = resolve(ledger)
    count, products = numbering.channels, numbering.products
    of = torch.cat([numbering.of, torch.tensor([FIXED, FIXED])])  # ANY and FIXED look up the last two entries
    row = _in_a_row(ledger, of)
    free = row.prunable()
    readers = [(name, dim) for name, dims in ledger.readers.items() for dim in sorted(dims)]
    # By identity, since the ids live as long as the ledger: most axes that are counted are those of a tensor.
    known = {key: Factor(row.lengths[n], NO_IDS, NO_IDS) for key, n in row.number.items() if n not in free}
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
    # Constants that stay whole are no part of what makes the network this one: a table, a mask may come at any time.
    idle = {name for name in names.constants if free.isdisjoint(row.number[id(ids)] for ids in ledger.axes[name])}
    return ChannelTable(
        axes={name: own for name, own in row.by_name(ledger).items() if name not in idle},
        products=products,
        groups=grouped(row.channels, row.axis, row.places, count, products, of[torch.cat([NO_IDS, *ledger.wide])]),
        pinned=_pinned(row, ledger, numbering),
        readers=tuple((name, dim) for name, dim in readers if row.number[id(ledger.axes[name][dim])] in free),
        operands=tuple(_left(with_periods(hidden))),
        attributes={where: channels for where, channels in attributes.items() if prunable(channels)},
        macs=cost((term.coefficient, term.factors) for term in ledger.macs),
        params=cost((1, ledger.axes[name]) for name in names.parameters),
        ptflops=None if ledger.ptflops is None else cost((term.coefficient, term.factors) for term in ledger.ptflops),
        notes=tuple(ledger.notes),
        written=frozenset(ledger.written),
        inputs=inputs,
        channel_of=numbering.of,
    )


def _left(operands: list[Operand]) -> Iterator[Operand]:
    """Those of channels that can be removed. Where their line of code has others, only its number tells a call."""
    left = [operand for operand in operands if prunable(operand.channels)]
    sites = {operand.site for operand in left}
    others = {_line(operand) for operand in operands if operand.site not in sites}
    for operand in left:
        yield replace(operand, line=None) if _line(operand) in others else operand


def _line(operand: Operand) -> tuple[bool, str, str, str | None]:
    """A line of code, and the function that it calls, or takes apart."""
    return operand.training, re.sub(r"#\d+", "", operand.site.inside), operand.site.function, operand.line


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
    row = torch.cat([NO_IDS, *vectors])
    axis = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return _Row(number, places, lengths, axis, row, of.index_select(0, row))


def _pinned(row: _Row, ledger: Ledger, numbering: Numbering) -> tuple[Pinned, ...]:
    """For every axis that a mixer makes and that stays whole, in all or in part: the first reason met.

    Of axes with the same ids (a weight and its bias), the first tells.
    """
    whole = torch.zeros(ledger.size, dtype=torch.bool)
    whole[torch.cat([NO_IDS, *ledger.produced])] = True
    whole &= numbering.of == FIXED
    here = whole[row.ids]
    pairs, kind = unique_rows(torch.stack([row.axis[here], numbering.why[row.ids[here]]], 1))
    found = []
    for (axis, number), times in zip(pairs.tolist(), kind.bincount().tolist(), strict=True):
        (_, name, dim), pin = row.places[axis][0], numbering.pins[number]
        found.append(Pinned(name, dim, times, pin.reason, pin.place))
    return tuple(found)
