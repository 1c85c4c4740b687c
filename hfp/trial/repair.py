"""What can be done about a misfit: a module says a number that has to change, or two lengths have to be the same.

A model's code states sizes in three ways. Some it reads off tensors, and they follow. Some it keeps as attributes of
modules (`num_heads`, `hidden_size`, `normalized_shape`): those can be set, as soon as it is known which. And some it
takes from another tensor (`reshape(b, n, c)` after attention, with the `c` of its input): then the two axes have to
lose the same channels. Which it is, is found by trying.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.labels import FIXED, Ledger, Pin
from hfp.tracing.attributes import get_size
from hfp.tracing.operands import Operand
from hfp.tracing.play import Subject
from hfp.tracing.position import Site
from hfp.tracing.run import Called, Run
from hfp.tracing.told import Attribute, Reckoned, Told, sizes
from hfp.trial.misfit import Extent, Misfit
from hfp.trial.scaling import NOT_AT_ALL
from hfp.trial.trial import asked_from, still_other

MOST = 6  # repairs that are tried for one misfit
Near = Callable[[str], list[Tensor]]
"""A module's path -> the prunable axes of what is touched in it."""


@dataclass(frozen=True, eq=False)
class Repair:
    """Set an attribute to the number of these ids that live, or tie them to others, or scale by their number."""

    ids: Tensor
    attribute: tuple[str, str] | None = None
    others: Tensor | None = None
    scaling: Operand | None = None
    sure: bool = False
    """Whether the attribute was seen to be asked for there."""

    def key(self) -> tuple[Any, ...]:
        others = None if self.others is None else tuple(self.others.tolist())
        scaling = None if self.scaling is None else (self.scaling.site, self.scaling.power)
        return self.attribute, tuple(self.ids.tolist()), others, scaling


class Repairs:
    """Goes through the repairs of every misfit, one at a time, and keeps those that help."""

    def __init__(self, subject: Subject, seen: Run) -> None:
        self.subject, self.seen = subject, seen
        self.asked: dict[str, set[Any]] = defaultdict(set)
        """Attribute -> the misfits that it makes where it is larger by one."""
        self.enlarged: dict[str, set[str]] = defaultdict(set)
        """Attribute -> the modules for which that is known."""
        self.refused: set[tuple[str, str]] = set()
        self.unscaled: set[Any] = set()
        """Misfits in numbers that no scaling has made up for."""
        self.modules = {path: module for module, path in subject.names.modules.items()}
        told = {(id(ids), attribute): Repair(ids, attribute, sure=True) for ids, attribute in seen.told}
        self.kept = list(told.values())
        self.trying: dict[tuple[Any, ...], tuple[Misfit, Repair]] = {}
        self.left: dict[tuple[Any, ...], Iterator[Repair]] = {}
        self.looked_at: set[tuple[Any, ...]] = set()
        """Misfits, and the lengths found there."""
        self.apart: list[dict[tuple[Any, ...], tuple[Misfit, Repair]]] = []
        """What is to be tried again, one after the other, since of what was tried at once something ended the run."""
        self.earlier: set[tuple[Any, ...]] = set()
        """The keys of all misfits so far."""
        self.sites: dict[bool, dict[Any, list[Site]]] = {mode: defaultdict(list) for mode in (False, True)}
        """Training or not -> a place of the code -> the calls there, in their order."""
        for mode, calls in seen.calls.items():
            for site, called in calls.items():
                self.sites[mode][_code(site, called)].append(site)

    def next(self, found: Sequence[Misfit], table: ChannelTable) -> bool:
        """Take note of what is still wrong, and choose what to try next. Whether there is anything to try."""
        new = [misfit for misfit in found if misfit.key not in self.earlier]
        tried, before = len(self.trying), len(self.kept)
        hidden = self._keep(found, new)
        if hidden or self.apart:
            self.trying = self.apart.pop() if self.apart else {}
            return True
        spoilt = len(self.kept) < before + tried
        self.earlier |= {misfit.key for misfit in found}
        # Where it is known which length does not follow, a repair is no guess: those first. The others may follow them.
        lengths = [misfit for misfit in found if misfit.extent is not None]
        self._look_for_repairs(lengths, table)
        self.trying = self._choice(lengths)
        if not self.trying:
            others = [misfit for misfit in found if misfit.extent is None]
            self._look_for_repairs(others, table)
            self.trying = self._choice(others)
            scaled = {key for key, (_, repair) in self.trying.items() if repair.scaling is not None}
            self.unscaled |= {misfit.key for misfit in others if misfit.scalings} - scaled
            if self._refuse(found, table):
                return True
        return bool(self.trying) or spoilt  # what went wrong for a try that was no help is no reason to pin anything

    def _look_for_repairs(self, found: Sequence[Misfit], table: ChannelTable) -> None:
        """For those of the misfits that are new, or of which another length was found since something else follows."""
        new = [misfit for misfit in found if _with_length(misfit) not in self.looked_at]
        # The same axis may be met in several ways; as different tries, they would use up the few that there are.
        near = cache(partial(self._seen_in, table))
        candidates = {}
        for m in new:
            every = {r.key(): r for r in self._candidates(m, table, near)}.values()
            candidates[m.key] = [repair for repair in every if not _is_idle(repair, table)]
        unsure = [m.key for m in new if _asks_for_a_guess(m) and not any(repair.sure for repair in candidates[m.key])]
        informed = self._informed({key: candidates[key] for key in unsure}, table)
        scalings = {m.key: [Repair(scaling.channels, scaling=scaling) for scaling in m.scalings] for m in new}
        left = {**candidates, **informed}
        self.left |= {key: iter(scalings[key][:MOST] + some[:MOST]) for key, some in left.items()}
        self.looked_at |= {_with_length(misfit) for misfit in new}

    def _keep(self, found: Sequence[Misfit], new: Sequence[Misfit]) -> bool:
        """Keep those tried repairs that were asked for, or that helped and broke nothing.

        Whether the run ended before one of the guesses could be judged.
        """
        wrong, sites = {misfit.key for misfit in found}, {key[0] for key in self.trying}
        unseen: dict[str | None, dict[tuple[Any, ...], tuple[Misfit, Repair]]] = defaultdict(dict)
        for key, (tried, repair) in self.trying.items():
            if not repair.sure and any(misfit.ends and misfit.at < tried.at for misfit in new):
                unseen[repair.attribute[1] if repair.attribute else None][key] = tried, repair
                continue
            further = tried.ends and all(misfit.at > tried.at for misfit in new)
            lengths = [misfit for misfit in new if tried.extent is None or not misfit.numbers]  # numbers come later
            # Another length of a call for which something was tried as well was hidden behind what that has mended.
            lengths = [misfit for misfit in lengths if misfit.key[0] == key[0] or misfit.key[0] not in sites]
            alone = not any(_within(misfit.place.module, tried.place.module) for misfit in lengths)
            if repair.sure or (key not in wrong and (further or alone or repair.scaling is not None)):
                self.kept.append(repair)
        if len(unseen) > 1:
            self.apart += unseen.values()
        return bool(unseen)

    def _choice(self, found: Sequence[Misfit]) -> dict[tuple[Any, ...], tuple[Misfit, Repair]]:
        """The next repair of each misfit that has one left."""
        kept, used = {repair.key() for repair in self.kept}, set()
        told = self.refused | {r.attribute for r in self.kept if r.sure and r.attribute is not None}
        chosen: dict[tuple[Any, ...], tuple[Misfit, Repair]] = {}
        setting: set[Attribute | None] = set()
        for misfit in sorted(found, key=lambda misfit: len(_reckoned_from(misfit))):
            if not setting.isdisjoint(_reckoned_from(misfit)):
                continue  # it may be right as soon as these are
            left = (r for r in self.left[misfit.key] if r.sure or r.attribute is None or r.attribute not in told)
            repair = next((repair for repair in left if repair.key() not in kept), None)
            if repair is not None and repair.key() not in used:  # else wait for what it does for another misfit
                used.add(repair.key())
                chosen[misfit.key] = misfit, repair
                setting |= {repair.attribute} if repair.sure else set()
                self.kept = [other for other in self.kept if not _same_scaling(other, repair)]
        return chosen

    def _refuse(self, found: Sequence[Misfit], table: ChannelTable) -> bool:
        """Pin what attributes count that have to stay as they are. Whether there are any."""
        refused = self._refused(found, table)
        self.seen.ledger.pins += [
            Pin(repair.ids, f"does not follow when channels go: the cut network {misfit.how}", misfit.place)
            for misfit, repair in refused
        ]
        self.refused |= {repair.attribute for _, repair in refused if repair.attribute is not None}
        if refused:
            self.kept = [r for r in self.kept if r.attribute is None or r.attribute not in self.refused]
            for key, (_, repair) in self.trying.items():  # later: what is right without these comes first
                self.left[key] = chain([repair], self.left[key])
            self.trying = {}
        return bool(refused)

    def _informed(self, candidates: dict[Any, list[Repair]], table: ChannelTable) -> dict[Any, list[Repair]]:
        """For each misfit its candidates; only those that are asked for there, if any are seen to be."""
        for name, paths in _modules_of(repair for some in candidates.values() for repair in some):
            self._asks(name, paths, table)
        return {
            key: [
                replace(repair, sure=True)
                for repair in some
                if repair.attribute is not None and key in self.asked[repair.attribute[1]]
            ]
            or some
            for key, some in candidates.items()
        }

    def _asks(self, name: str, paths: set[str], table: ChannelTable) -> set[Any]:
        """The misfits that an attribute makes where it is larger by one, in these modules at least."""
        if not paths <= self.enlarged[name]:
            self.asked[name] |= asked_from(self.subject, table, self.seen, name, paths)
            self.enlarged[name] |= paths
        return self.asked[name]

    def _refused(self, found: Sequence[Misfit], table: ChannelTable) -> list[tuple[Misfit, Repair]]:
        """Attributes that have to stay, and why.

        A length is reckoned from them that nothing has made right; or they stand in arithmetic, which is right again if
        they stay.
        """
        scaled = {misfit.key for misfit in found if misfit.scalings} - self.unscaled
        arithmetic = {misfit.key: misfit for misfit in found if misfit.numbers and misfit.key not in scaled}
        refused = [
            (misfit, repair)
            for misfit in found
            if misfit.extent is not None and isinstance(misfit.extent.found, Reckoned)
            for repair in self.kept
            if repair.attribute in misfit.extent.found.of
        ]
        for name, paths in _modules_of(repair for repair in self.kept if arithmetic and repair.sure):
            right = self._asks(name, paths, table) & set(arithmetic)
            if right:
                right -= still_other(self.subject, table, self.seen, name, paths)
            refused += [
                (arithmetic[key], repair)
                for key in arithmetic
                if key in right
                for repair in self.kept
                if repair.attribute is not None
                and repair.attribute[1] == name
                and _within(arithmetic[key].place.module, repair.attribute[0])
            ]
        return refused

    def doubtful(self) -> Iterator[list[Repair]]:
        """Once nothing is wrong: the repairs of one attribute, as long as others would be left; and so on."""
        self.kept, self.trying = self._in_force(), {}
        for name, _ in _modules_of(repair for repair in self.kept if not repair.sure):
            setting = [repair for repair in self.kept if repair.attribute is not None]
            of_name = [repair for repair in setting if repair.attribute and repair.attribute[1] == name]
            if len(of_name) < len(setting):
                yield of_name

    def _in_force(self) -> list[Repair]:
        """Those that are kept or being tried."""
        return [*self.kept, *(repair for _, repair in self.trying.values())]

    def applied(self) -> Ledger:
        """The ledger, with the repairs that are kept or being tried."""
        ledger = self.seen.ledger
        repaired = Ledger(**{**vars(ledger), "ties": list(ledger.ties), "attributes": dict(ledger.attributes)})
        for repair in self._in_force():
            if repair.attribute in repaired.attributes:  # it says the length of both
                repaired.tie(repair.ids, repaired.attributes[repair.attribute], self.seen.steps[False][0].place)
            elif repair.attribute is not None:
                repaired.attributes[repair.attribute] = repair.ids
            elif repair.others is not None:
                repaired.tie(repair.ids, repair.others, self.seen.steps[False][0].place)
        return repaired

    def operands(self) -> list[Operand]:
        """Those of the runs, and the scalings that are kept or being tried."""
        return self.seen.operands + [
            twin
            for repair in self._in_force()
            if repair.scaling is not None and repair.scaling.power != NOT_AT_ALL
            for twin in self._in_both_modes(repair.scaling)
        ]

    def _in_both_modes(self, operand: Operand) -> Iterator[Operand]:
        """The same for the same place of the code in the other mode."""
        operand = replace(operand, calls=self.seen.entered[operand.training][operand.site.inside])
        yield operand
        if (not operand.training) not in self.seen.calls:
            yield replace(operand, training=not operand.training)
            return
        here = _code(operand.site, self.seen.calls[operand.training][operand.site])
        others = self.sites[not operand.training][here]
        rank = self.sites[operand.training][here].index(operand.site)
        if rank < len(others):
            calls = self.seen.entered[not operand.training][others[rank].inside]
            yield replace(operand, site=others[rank], training=not operand.training, calls=calls)

    def _candidates(self, misfit: Misfit, table: ChannelTable, near: Near) -> Iterator[Repair]:
        extent = misfit.extent
        ties = () if extent is None else [Repair(extent.ids, others=others) for others in extent.followed]
        if extent is None:
            yield from self._attributes(misfit.place.module, (*misfit.touched, *near(misfit.place.module)))
        elif isinstance(extent.found, Told) and extent.found.of:
            yield Repair(extent.ids, extent.found.of[0], sure=True)
        elif extent.found == extent.dense:
            if isinstance(extent.found, Reckoned):
                yield from self._made_of(extent.found, misfit, near)
                yield from ties
                yield from self._multiples(extent.found, extent)
            yield from self._attributes(misfit.place.module, (extent.ids,))
        else:
            for repair in self.kept:  # an attribute that was changed is asked for here as well
                if repair.attribute is None or len(repair.ids) != extent.dense:
                    continue
                if extent.counts.get(repair.attribute, extent.found) != extent.found:
                    continue  # the length is made of it
                path, name = repair.attribute
                if _within(misfit.place.module, path) and misfit.key in self._asks(name, {path}, table):
                    yield Repair(extent.ids, repair.attribute, sure=True)
            if isinstance(extent.found, Reckoned):
                yield from self._made_of(extent.found, misfit, near)
            yield from ties
            if isinstance(extent.found, Reckoned):
                yield from self._multiples(extent.found, extent)
            yield from self._shares(extent)

    def _shares(self, extent: Extent) -> Iterator[Repair]:
        """`width // heads`: the width is to lose what the heads do, unless it is another attribute's."""
        attributes = extent.found.of if isinstance(extent.found, Reckoned) else ()
        widths = {get_size(self.modules[path], name) for path, name in attributes}
        for width, others in extent.shared:
            if len(width) not in widths:
                yield Repair(width, others=others)

    def _made_of(self, number: Reckoned, misfit: Misfit, near: Near) -> Iterator[Repair]:
        """The axes that one of the attributes may count of which a number is made."""
        known = {repair.attribute: repair.ids for repair in self.kept}
        # What an axis has several times over (`batch * heads`) is counted once.
        once = () if misfit.extent is None else (misfit.extent.ids.unique(),)
        for path, name in number.of:
            value = get_size(self.modules[path], name)
            for ids in (*once, *misfit.touched, *near(misfit.place.module)):
                if len(ids) == value and (path, name) not in known:
                    yield Repair(ids, (path, name))
                elif len(ids) == value:
                    yield Repair(ids, others=known[path, name])

    def _multiples(self, number: Reckoned, extent: Extent) -> Iterator[Repair]:
        """`2 * width`, `width // 2`: the shorter axis as often as it fits into the longer one.

        Of a length that is so many times what an attribute counts, the cut network has as many times.
        """
        known = {repair.attribute: repair.ids for repair in self.kept}
        for attribute in number.of:
            if attribute not in known or attribute not in extent.counts:
                continue
            ends = (extent.ids, int(number)), (known[attribute], extent.counts[attribute])
            (shorter, few), (longer, many) = sorted(ends, key=lambda end: len(end[0]))
            times, rest = divmod(len(longer), len(shorter))
            asked = many == times * few if longer is extent.ids else few == many // times
            if times > 1 and not rest and asked:
                yield Repair(longer, others=shorter.repeat(times))

    def _attributes(self, path: str, axes: Sequence[Tensor]) -> Iterator[Repair]:
        """Integers of the module, and then of those around it, that are as large as one of the lengths is."""
        while True:
            module = self.modules.get(path)
            numbers = [] if module is None else list(sizes(module))
            yield from (Repair(ids, (path, name)) for ids in axes for name, value in numbers if value == len(ids))
            if not path:
                return
            path = path.rpartition(".")[0]

    def _seen_in(self, table: ChannelTable, path: str) -> list[Tensor]:
        """The prunable axes of what the operators of a module touch, the last first."""
        found: list[Tensor] = []
        known: set[tuple[int, ...]] = set()
        for step in reversed(self.seen.steps[False]):
            if step.place.module == path or step.place.module.startswith(f"{path}."):
                for ids in step.touched:
                    channels = torch.where(ids < 0, FIXED, table.channel_of[ids])
                    key = tuple(channels.tolist())
                    if key not in known and bool((channels != FIXED).any()):
                        known.add(key)
                        found.append(ids)
        return found


def _code(site: Site, called: Called) -> tuple[Site, Any]:
    """The place of the code that makes a call, which may come by again."""
    return site._replace(number=0), called.caller


def _modules_of(repairs: Iterable[Repair]) -> list[tuple[str, set[str]]]:
    """(attribute, the modules of which it is set), by name."""
    paths: dict[str, set[str]] = defaultdict(set)
    for path, name in (repair.attribute for repair in repairs if repair.attribute is not None):
        paths[name].add(path)
    return sorted(paths.items())


def _is_idle(repair: Repair, table: ChannelTable) -> bool:
    """Whether it ties what is the same already."""
    channels = [table.channel_of[ids] for ids in (repair.ids, repair.others) if ids is not None]
    return len(channels) == 2 and torch.equal(*channels)


def _asks_for_a_guess(misfit: Misfit) -> bool:
    """Whether a length is asked for that does not tell what it is made of."""
    return misfit.asked and not (misfit.extent is not None and isinstance(misfit.extent.found, Reckoned))


def _reckoned_from(misfit: Misfit) -> tuple[Attribute, ...]:
    """The attributes that the length which is asked for is made of; none where it is just what one of them says."""
    number = None if misfit.extent is None else misfit.extent.found
    return number.of if isinstance(number, Reckoned) and not isinstance(number, Told) else ()


def _with_length(misfit: Misfit) -> tuple[Any, ...]:
    """What was found there: other axes are as long as that when something else has been repaired."""
    return misfit.key, None if misfit.extent is None else misfit.extent.found


def _same_scaling(a: Repair, b: Repair) -> bool:
    """Whether they scale by one factor or another at the same place."""
    return a.scaling is not None and b.scaling is not None and a.scaling.site == b.scaling.site


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.") or module.startswith(f"{path}.")
