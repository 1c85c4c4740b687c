"""Which channels are left in the trials of a cut network: random parts of every group, and the fewest."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from hfp.channels import ChannelTable

SMALL = 3  # groups of so few channels are told apart by which of them are cut at all
MOST_PARTS = 4


def keeps(table: ChannelTable) -> Iterator[Tensor]:
    """The keep vectors of all trials: random parts, and the fewest channels.

    Groups of the same width keep different numbers of channels, so that a length that follows another group does not
    look right by chance. Where there are more groups than numbers, it takes several parts to tell them apart. The last
    of these is spared where the fewest channels, and one or two more of some groups, tell apart what is left.

    Nor is an equal share of a width (`width // heads`) to be as long as each head by chance: where it is so in all of
    these parts, there is another one.

    Where the gated network is scaled by the share of some channels, these stay whole in one part: a factor that the
    code reckons from others changes all the same.
    """
    parts = _parts(table)
    more = _more(table, parts - 1) if parts > 1 else None
    numbers = [*range(parts if more is None else parts - 1)]
    if all(_shared_by_chance(table, number) for number in numbers):
        others = range(parts, parts + MOST_PARTS)
        numbers += [number for number in others if not _shared_by_chance(table, number)][:1]
    for number in numbers:
        yield random_part(table, number)
    scaled = _scaled(table)
    if bool(scaled.any()):
        yield random_part(table) | scaled
    yield smallest_cut(table, more)


def random_part(table: ChannelTable, number: int = 0) -> Tensor:
    """(channels,) bool: about half of every group, the same at every call; other groups differ in other `number`s."""
    generator = torch.Generator().manual_seed(number)
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group, some in zip(table.groups, _counts(table, number), strict=True):
        keep[group.channels[torch.randperm(group.width, generator=generator)[:some]]] = True
    return keep


def smallest_cut(table: ChannelTable, more: dict[int, int] | None = None) -> Tensor:
    """(channels,) bool: the last channel of every group (the last two where one is not enough).

    `more`: number of a group -> how many of it, instead.
    """
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for number, group in enumerate(table.groups):
        keep[group.channels[-(more or {}).get(number, group.least) :]] = True
    return keep


def _scaled(table: ChannelTable) -> Tensor:
    """(channels,) bool: by the share of which the gated network is scaled; of a product all the factors."""
    found = torch.zeros(table.channels + len(table.products) + 1, dtype=torch.bool)
    for operand in table.operands:
        if operand.how == "power":
            found[operand.channels] = True
    found[table.products[found[table.channels : -1]].flatten()] = True
    return found[: table.channels]


@cache
def _numbers(width: int, least: int) -> list[int]:
    """How many channels of a group may be left in a random part, the best first: primes, the nearest to half of them.

    A prime over a width that it does not divide is no power of another such share: so a factor that the model's code
    reckons from one width (half of its heads) is not taken for one reckoned from another (half of each head).
    """
    # Two at least, where that is a cut: a single channel is not followed by name (see `hfp.trial.cut`).
    least = max(least, 2 if width > 2 else 1)
    numbers = range(least, width + 1 if width <= SMALL else max(least + 1, width))
    return sorted(numbers, key=lambda n: (not _is_prime(n) or width % n == 0, abs(n - width / 2)))[:64]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _counts(table: ChannelTable, number: int) -> list[int]:
    """How many channels of each group are left in a random part."""
    met: Counter[int] = Counter()
    counts = []
    for group in table.groups:
        numbers = _numbers(group.width, group.least)
        counts.append(numbers[met[group.width] // len(numbers) ** number % len(numbers)])
        met[group.width] += 1
    return counts


def _shared_by_chance(table: ChannelTable, number: int) -> bool:
    """Whether a width that is shared out (`width // heads`) looks as long as each head, though it does not follow."""
    counts = _counts(table, number)
    left = defaultdict[int, set[int]](set)
    for group, count in zip(table.groups, counts, strict=True):
        left[group.width].add(count)
    # The groups that make up products, such as heads and the places in each.
    factors = {tuple(pair) for pair in table.group_of[table.products].tolist()} if len(table.products) else set()
    return any(
        count // counts[heads] == counts[places]
        for pair in factors
        for heads, places in permutations(pair, 2)
        for count in left.get(table.groups[heads].width * table.groups[places].width, ())
    )


def _parts(table: ChannelTable) -> int:
    """How many random parts tell all groups of a width apart: rarely more than one."""
    widths = Counter(group.width for group in table.groups)
    most = 1
    for group in table.groups:
        choices = len(_numbers(group.width, group.least))
        whole = group.width <= SMALL  # none is to be whole in all the parts
        while most < MOST_PARTS and choices > 1 and choices**most - whole < widths[group.width]:
            most += 1
    return most


def _more(table: ChannelTable, parts: int) -> dict[int, int] | None:
    """How many of the groups that so many parts do not tell apart would have to stay for that; None if it cannot be.

    Never one, with which any length would seem right where it meets others, since an axis of one is spread over them.
    """
    alike = defaultdict[tuple[int, ...], list[int]](list)
    every = zip(*(_counts(table, number) for number in range(parts)), strict=True)
    for number, (group, counts) in enumerate(zip(table.groups, every, strict=True)):
        alike[(group.width, *counts)].append(number)
    more: dict[int, int] = {}
    # Of every such width, some are to be left with the fewest.
    single = {width for (width, *_), numbers in alike.items() if len(numbers) == 1}
    for numbers in alike.values():
        if len(numbers) > 1:
            first = table.groups[numbers[0]]
            choices = range(max(2, *(table.groups[number].least for number in numbers)), first.width)
            if first.width <= SMALL or first.width not in single or len(numbers) > len(choices):
                return None
            more |= dict(zip(numbers, choices, strict=False))
    return more
