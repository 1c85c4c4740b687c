"""Sites: which operands the call of a function has that a forward is about to make.

A call is told by its number, as in the trace; where a loop takes another number of turns, by its line of code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar

from hfp.model.source import Caller, caller, line_at
from hfp.tracing.operands import Operand
from hfp.tracing.position import Site

T = TypeVar("T")
Numbered = Mapping[int, Operand]
"""The operands of one mode of a model, by their numbers among all."""


class Sites:
    """Where the operands of a model are in one of its modes."""

    def __init__(self, operands: Sequence[Operand], training: bool) -> None:
        self.operands = operands
        self.own = {number: operand for number, operand in enumerate(operands) if operand.training == training}
        self.at, self.opened, self.by_line = _by_site(self.own), _opened(self.own), _by_line(self.own)
        self.counted = self._counted()

    def operands_at(self, site: Site, otherwise: Caller) -> list[int]:
        """The numbers of the operands of the function that is called there; `otherwise`: by whom, if nobody is seen."""
        exact = self.at.get(site) or self.at.get(site._replace(call=0))
        lines = {self.operands[exact[0]].line} if exact else set()
        return _at_line(site, otherwise, exact, lines, self.by_line.get((site.inside, site.function))) or []

    def _counted(self) -> dict[Site, int]:
        """Site without number -> calls there, at least, where nothing but the number tells one from the other."""
        found: dict[Site, int] = {}
        for operand in self.own.values():
            lines = self.by_line.get((operand.site.inside, operand.site.function), {})
            if operand.line is not None and lines[operand.line] is None:
                site = operand.site._replace(number=0)
                found[site] = max(found.get(site, 0), operand.site.number)
        return found

    def frame_at(self, site: Site, otherwise: Caller) -> str | None:
        """What runs inside of the function that is called there, if that is taken apart, and has operands."""
        frames, by_line = self.opened
        exact = site.frame if site.frame in frames else None
        lines = by_line.get((site.inside, site.function))
        return _at_line(site, otherwise, exact, frames.get(site.frame, set()), lines)


def _at_line(
    site: Site, otherwise: Caller, exact: T | None, own: Set[str | None], lines: Mapping[str, T | None] | None
) -> T | None:
    """`exact`, found in the trace at lines of its `own`; unless a loop takes another number of turns than there.

    `lines`: what stands at lines of code by which this function is called; None where that is not always the same.
    """
    if lines is None or (exact is not None and None in own):
        return exact
    here = line_at(caller(otherwise))
    if exact is not None and here in own:
        return exact
    if here in lines and lines[here] is None:
        raise another_path(site)
    return lines.get(here)


def another_path(site: Site) -> RuntimeError:
    return RuntimeError(
        f"the forward takes another path than on the example inputs: {site.function} in {site.inside or 'the network'} "
        "is called another number of times, on other channels each time; wrap the model with inputs like these, or let "
        "it take the same path always, with no layers that are dropped at random"
    )


def _what(operand: Operand) -> tuple[Any, ...]:
    """What is hidden, and how, wherever that is."""
    return operand.argument, operand.axis, operand.how, operand.power, operand.channels.numpy().tobytes()


def _by_line(own: Numbered) -> dict[tuple[str, str], dict[str, list[int] | None]]:
    """(inside, function) -> line -> the operands there."""
    found: dict[tuple[str, str], dict[str, list[int] | None]] = defaultdict(dict)
    sites: dict[Site, list[int]] = defaultdict(list)
    for number, operand in own.items():
        if operand.line is not None:
            sites[operand.site].append(number)
    for site, numbers in sites.items():
        lines, line = found[site.inside, site.function], str(own[numbers[0]].line)
        known = lines.setdefault(line, numbers)
        here, there = ([_what(own[number]) for number in some] for some in (numbers, known or ()))
        lines[line] = known if here == there else None
    return dict(found)


def _opened(own: Numbered) -> tuple[dict[str, set[str | None]], dict[tuple[str, str], dict[str, str | None]]]:
    """Of functions that are taken apart: frame -> lines; (inside, function) -> line -> a frame that runs there."""
    parts: dict[str, list[Any]] = defaultdict(list)
    frames: dict[str, set[str | None]] = defaultdict(set)
    for operand in own.values():
        inside = operand.site.inside
        if "|" in inside:
            parts[inside].append((operand.site.function, operand.site.number, *_what(operand)))
            frames[inside].add(operand.line)
    found: dict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
    for frame, every in frames.items():
        owner, _, call = frame.rpartition("|")
        lines = found[owner, call.partition("#")[0]]
        for line in every - {None}:
            known = lines.setdefault(str(line), frame)
            lines[str(line)] = known if known is not None and parts[known] == parts[frame] else None
    return dict(frames), dict(found)


def _by_site(own: Numbered) -> dict[Site, list[int]]:
    """Site -> operands. Under call 0 those of a function whose module was called any number of times, always alike."""
    exact: dict[Site, list[int]] = defaultdict(list)
    for number, operand in own.items():
        exact[operand.site].append(number)
    alike: dict[Site, list[tuple[Any, list[int]]]] = defaultdict(list)
    for site, numbers in exact.items():
        every = [own[n] for n in numbers]
        what = tuple(map(_what, every))
        alike[site._replace(call=0)].append((what, numbers))
    for site, ways in alike.items():
        (what, numbers), *others = ways
        if len(ways) == own[numbers[0]].calls and all(other == what for other, _ in others):
            exact[site] = numbers
    return exact
