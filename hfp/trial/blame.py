"""What is to blame where a cut network does something else: the lengths that do not follow, or the labels that meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice, product
from typing import Any

import torch
from torch import Tensor

from hfp.cutting.surgery import live
from hfp.labels import ANY, FIXED, Labels, Ledger, prunable
from hfp.rules.call import values_in
from hfp.rules.mixers import MIXERS
from hfp.rules.pointwise import POINTWISE
from hfp.tracing.position import Site
from hfp.tracing.run import Called
from hfp.tracing.told import ASKING, Reckoned, asked, parts_asked
from hfp.tracing.watcher import Step
from hfp.trial import scaling
from hfp.trial.cut import Cut
from hfp.trial.misfit import Extent, Misfit


class Blame:
    """Looks into the record of a dense run for what is to blame in a cut one."""

    def __init__(self, cut: Cut, dense: Sequence[Step], ledger: Ledger) -> None:
        self.cut, self.dense, self.ledger = cut, dense, ledger
        self.met: dict[tuple[int, int], dict[int, Tensor]] = defaultdict(dict)
        """(length, how many are left) -> such labels of the first `known` steps, by identity, those met last last."""
        self.known = 0

    def meeting(self, at: int) -> tuple[Tensor, ...]:
        """The labels at this step, or the last one before it, at which some can still be cut."""
        channels = self.cut.table.channel_of
        for step in reversed(self.dense[: at + 1]):
            touched = tuple(ids for ids in reversed(step.touched) if prunable(channels[ids[ids >= 0]]))
            if touched:
                return touched
        return ((channels != FIXED).nonzero().flatten(),)

    def read(self, at: int, labels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The axes whose labels, in the cut network, are these, and the ids of their whole groups."""
        table = self.cut.table
        dense = [ids for step in reversed(self.dense[:at]) for ids in reversed(step.touched)]
        axes = (next((ids for ids in dense if torch.equal(self.cut.left(ids), own)), None) for own in reversed(labels))
        left = {channel for ids in labels for row in self.cut.sets.rows(ids.tolist()) for channel in row}
        channels = [table.groups[number].channels for number in table.group_of[sorted(left)].unique().tolist()]
        whole = ((torch.isin(table.channel_of, torch.cat(channels)).nonzero().flatten()),) if channels else ()
        return (*(ids for ids in axes if ids is not None), *whole)

    def by_length(
        self, misfit: Misfit, at: int, site: Site, called: Called, args: Any, kwargs: dict[str, Any]
    ) -> list[Misfit]:
        """The same misfit of a function, one for each length that the call asks for and that does not follow."""
        if misfit.scalings:
            return [replace(misfit, key=(site, misfit.scalings[0].power == scaling.NOT_AT_ALL))]
        if (parts := parts_asked(site.function, args, kwargs, len(called.outs))) is not None:
            return [
                replace(misfit, key=(site, number, extent.axis), extent=extent, asked=True)
                for number, extent in self._parts(called, at, *parts)
            ] or [replace(misfit, key=(site,))]
        mixes = at < len(self.dense) and self.dense[at].operator in MIXERS  # given strides, not sizes
        sizes = len(called.outs) == 1 and (site.function in ASKING or not mixes)
        shape, labels = called.outs[0][:2]
        given = asked(site.function, args) if sizes else []
        extents = self.extents(at, shape, labels, self.cut.shape(shape, labels), given)
        known = extents or ([misfit.extent] if misfit.extent else self._alike(at, shape, labels, args))
        return [replace(misfit, key=(site, e.axis), extent=e, asked=bool(extents)) for e in known] or [
            replace(misfit, key=(site,))
        ]

    def _alike(self, at: int, shape: Sequence[int], labels: Labels, args: Any) -> list[Extent]:
        """Lengths of what is given to a function that computes index by index: zeros(b, c), with the c of a tensor."""
        if at >= len(self.dense) or self.dense[at].operator not in POINTWISE:
            return []
        left = self.cut.shape(shape, labels)
        for x in values_in(args):
            if isinstance(x, Tensor) and 0 < x.dim() <= len(left):
                own = [left[axis] if n == 1 else n for axis, n in enumerate(x.shape, -x.dim())]
                if extents := self.extents(at, shape, labels, left, [*left[: -x.dim()], *own]):
                    return extents
        return []

    def _parts(self, called: Called, at: int, sizes: Sequence[int], axis: int) -> list[tuple[int, Extent]]:
        """(part, length) of a split for which other sizes were asked than are left of its parts."""
        axis %= len(called.outs[0][0])
        found = []
        for number, ((shape, labels, *_), size) in enumerate(zip(called.outs, sizes, strict=False)):
            wanted = [*self.cut.shape(shape, labels)]
            given = [*wanted[:axis], size, *wanted[axis + 1 :]]
            found += [(number, extent) for extent in self.extents(at, shape, labels, wanted, given)]
        return found

    def extents(
        self,
        at: int,
        dense: Sequence[int],
        labels: Labels,
        predicted: Sequence[int],
        found: Sequence[int],
        counted: bool = False,
    ) -> list[Extent]:
        """The labelled lengths that are not the predicted ones; -1 stands for whatever is left."""
        if not (len(dense) == len(labels) == len(predicted) == len(found)):
            return []
        extents = [
            extent
            for axis, (ids, length, want, got) in enumerate(zip(labels, dense, predicted, found, strict=True))
            if ids is not None and got not in (want, -1) and (counted or not bool((ids == ANY).all()))
            for extent in self._constants(axis, ids, got - want) or [self._extent(at, axis, ids, length, want, got)]
        ]
        return [extent for extent in extents if extent.found == extent.dense] or extents  # the others may follow these

    def _extent(self, at: int, axis: int, ids: Tensor, dense: int, predicted: int, found: int) -> Extent:
        if not isinstance(found, Reckoned) and found == dense:  # a number in the code
            return Extent(axis, ids, dense, predicted, found, ())
        attributes = found.of if isinstance(found, Reckoned) else ()
        counted = {attribute: self.cut.table.attributes.get(attribute) for attribute in attributes}
        counts = {attribute: len(live(ids, self.cut.stays)) for attribute, ids in counted.items() if ids is not None}
        followed, shared = self._followed(at, ids, found), self._shared(at, ids, predicted, found)
        return Extent(axis, ids, dense, predicted, found, followed, counts, shared)

    def _constants(self, axis: int, ids: Tensor, more: int) -> list[Extent]:
        """The constants along an axis that is longer than predicted, if that is since they are as long as before."""
        within = [own for own in self.ledger.constants if bool(torch.isin(own, ids).all())]
        extents = [Extent(axis, own, len(own), self.cut.length(own), len(own), ()) for own in within]
        return extents if sum(extent.found - extent.predicted for extent in extents) == more else []

    def _followed(self, at: int, ids: Tensor, found: int) -> tuple[Tensor, ...]:
        """Labels that are as many as `ids`, and of which `found` are left; those met last come first.

        Then those that are so as often as they fit into `ids`: `view(b, n, 3 * c)`, with the c of what is projected.
        """
        for step in self.dense[self.known : at + 1]:
            for other in reversed(step.touched):
                same = self.met[self._size(other)]
                same.pop(id(other), None)
                same[id(other)] = other
        self.known = max(self.known, at)  # the next step may be met again
        size = len(ids), found
        met = (other for other in reversed(self.met[size].values()) if other is not ids)
        # A length may be reckoned (as one head's share of a width) that stands on an axis of its own later on, there.
        later = (o for o in self._beside(at) if self._size(o) == size and id(o) not in self.met[size] and o is not ids)
        several = (
            other[places]
            for (length, left), others in self.met.items()
            if 0 < length < len(ids) and len(ids) % length == 0 and left * (len(ids) // length) == found
            for places in self._repeated(length, ids)
            for other in reversed(others.values())
        )
        return tuple(islice(chain(met, later, several), 4))

    def _repeated(self, length: int, ids: Tensor) -> Iterator[Tensor]:
        """Which of `length` places each of `ids` may be at, where these are so many places several times over.

        All after the other, or each by itself. Where `ids` have factors, such as (which of three, head, place), one of
        these has to say which time it is.
        """
        times, factors = len(ids) // length, self.ledger.factors_of(ids)
        for places in (torch.arange(length).repeat(times), torch.arange(length).repeat_interleave(times)):
            if factors is not None:
                rows = factors[places.argsort(stable=True)].reshape(length, times, -1)
                differ = (rows != rows[:, :1]).flatten(0, 1).any(0)
                if any(len(column.unique()) != times for column in factors.T[differ]):
                    continue
            yield places

    def _shared(self, at: int, ids: Tensor, predicted: int, found: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Widths of which `found` is an equal share, each with the labels that `predicted` is such a share of."""
        pairs = (
            (width, other)
            for (length, left), widths in self.met.items()
            if (shares := {parts for parts in self._parts_of(length, left, len(ids)) if left // parts == found})
            for width in reversed(widths.values())
            for other in self._beside(at)
            if len(other) == length and self.cut.length(other) in {parts * predicted for parts in shares}
        )
        return tuple(islice(pairs, 4))

    def reckoned(self, at: int, factor: float) -> Extent | None:
        """The width from an equal share of which a factor was reckoned, such as `(width // heads) ** -0.5`.

        Only where the module has an axis as long as the share, and what is left of another one is shared out evenly.
        """
        beside = [*{self.cut.key(ids): ids for ids in self._beside(at)}.values()]
        for share, width in product(beside, beside):
            for parts in self._parts_of(*self._size(width), len(share)):
                length = self.cut.length(width) // parts
                even = self.cut.length(share) * parts
                others = [ids for ids in beside if len(ids) == len(width) and self.cut.length(ids) == even]
                if others and length and scaling.is_power(factor, length / len(share)):
                    left, pairs = self.cut.length(width), tuple((width, ids) for ids in others)
                    return Extent(-1, width, len(width), left, left, (), shared=pairs)
        return None

    def _parts_of(self, length: int, left: int, share: int) -> set[int]:
        """In how many parts of the length of a share a width may be divided in the cut network; in none if whole."""
        parts, rest = divmod(length, max(share, 1))
        return set() if parts < 2 or rest or left == length else {parts, *self._counted[parts]} - {0}

    def _size(self, ids: Tensor) -> tuple[int, int]:
        """How many there are, and how many are left."""
        return len(ids), self.cut.length(ids)

    @cached_property
    def _counted(self) -> dict[int, set[int]]:
        """What attributes count -> what they count in the cut network."""
        counted: dict[int, set[int]] = defaultdict(set)
        for ids in self.cut.table.attributes.values():
            counted[len(ids)].add(len(live(ids, self.cut.stays)))
        return counted

    def _beside(self, at: int) -> Iterable[Tensor]:
        """The labels that the module meets whose operator is step `at`."""
        return self._in_module[self.dense[at].place.module if at < len(self.dense) else ""].values()

    @cached_property
    def _in_module(self) -> dict[str, dict[int, Tensor]]:
        """Module -> the labels that its operators meet, by identity."""
        found: dict[str, dict[int, Tensor]] = defaultdict(dict)
        for step in self.dense:
            found[step.place.module] |= {id(ids): ids for ids in step.touched}
        return found
