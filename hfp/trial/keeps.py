"""Which channels are left in the trials of a cut network: random parts of every group, and the fewest."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, groupby

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.labels import FIXED, unique_rows

SMALL = 3  # groups of so few channels are told apart by which of them are cut at all
MOST_PARTS = 4


def keeps(table: ChannelTable) -> Iterator[Tensor]:
    """The keep vectors of all trials: random parts, and the fewest channels.

    Groups of the same width keep different numbers of channels, so that a length that follows another group does not
    look right by chance. Where there are more groups than numbers, it takes several parts to tell them apart. The last
    of these is spared where the fewest channels, and one or two more of some groups, tell apart what is left.

    Where the gated network is scaled by the share of some channels, these stay whole in one part: a factor that the
    code reckons from others changes all the same. Where most groups are such, there is a part of other numbers as well:
    the shares of two that are concatenated come to that of a third by chance.
    """
    parts = _parts(table)
    more = _more(table, parts - 1) if parts > 1 else None
    for number in range(parts if more is None else parts - 1):
        yield random_part(table, number)
    scaled = _scaled(table)
    if bool(scaled.any()):
        yield random_part(table) | scaled
        if len(table.group_of[scaled].unique()) > len(table.groups) / 2:
            yield random_part(table, None)
    yield smallest_cut(table, more)


def random_part(table: ChannelTable, number: int | None = 0) -> Tensor:
    """(channels,) bool: about half of every group, the same at every call; other groups differ in other `number`s.

    None: any numbers of channels.
    """
    generator = torch.Generator().manual_seed(number or 0)
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
    reckons from one width (half of its heads) is not taken for one reckoned from another (half of each head). Above the
    half first: code checks that two equal parts together are more than one of them was.
    """
    # Two at least, where that is a cut: a single channel is not followed by name (see `hfp.trial.cut`).
    least = max(least, 2 if width > 2 else 1)
    numbers = range(least, width + 1 if width <= SMALL else max(least + 1, width))
    return sorted(numbers, key=lambda n: (not _is_better(n, width), n < width / 2, abs(n - width / 2)))[:64]


def _is_better(number: int, width: int) -> bool:
    return number > 1 and width % number != 0 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _counts(table: ChannelTable, number: int | None) -> list[int]:
    """How many channels of each group are left in a random part."""
    if number is None:
        draw = random.Random(0)
        return [draw.choice(_numbers(group.width, group.least)) for group in table.groups]
    widths, factors = [group.width for group in table.groups], _factors(table)
    counts = [0 for _ in widths]
    for width, groups in groupby(sorted(range(len(widths)), key=widths.__getitem__), key=widths.__getitem__):
        chance = _shared_by_chance(width, list(zip(widths, counts, strict=True)), factors)
        for met, group in enumerate(groups):
            numbers = sorted(
                _numbers(width, table.groups[group].least), key=lambda n: (not _is_better(n, width), n in chance)
            )
            counts[group] = numbers[met // len(numbers) ** number % len(numbers)]
    return counts


def _shared_by_chance(width: int, left: Sequence[tuple[int, int]], factors: list[list[int]]) -> set[int]:
    """How many channels of this width, shared out (`width // heads`), look as many as are left of narrower groups.

    `left`: of each group its width, and how many are left, 0 if that is not known yet. There may be a fixed number of
    heads, or a group of them: `factors` are the groups that make up products.
    """
    found = set[int]()
    for narrow, some in set(left):
        shares = width // narrow
        if some and narrow * shares == width:
            found.update(range(some * shares, some * shares + shares))
    for a, b in (pair for groups in factors for pair in combinations(groups, 2)):
        if left[a][0] * left[b][0] == width:
            found.update(range(product := left[a][1] * left[b][1], product + max(left[a][1], left[b][1])))
    return found


def _factors(table: ChannelTable) -> list[list[int]]:
    """Of each kind of product (a head and a place in it), the groups of its factors."""
    rows, _ = unique_rows(torch.where(table.products == FIXED, FIXED, table.group_of[table.products]))
    return [[group for group in row if group != FIXED] for row in rows.tolist()]


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
