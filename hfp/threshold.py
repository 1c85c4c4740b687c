"""One global threshold: scores + costs + targets -> the channels that stay, exactly within the budget.

The channels with the highest scores stay, as many as the budget allows, whatever layer they are in. The result is
maximal: putting back any one removed channel would exceed a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.cost import Cost

Limits = Sequence[tuple[Cost, int]]
"""(cost, the most that it may be) for each budget."""


def threshold(
    scores: Tensor, table: ChannelTable, limits: Limits, *, round_to: int = 1, whole_blocks: bool = False
) -> Tensor:
    """(channels,) bool: which channels stay, for scores (channels,).

    Channels come in *blocks* of `round_to` (a single one by default), the best of a group first, so that widths are
    multiples of it; the rest of a width that is no multiple is the last block, which with `whole_blocks` goes in any
    case. The first block of a group always stays. ValueError if even those exceed a target.
    """
    scores = scores.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(
            "the scores of the channels are not finite; has the training diverged? (a lower learning rate helps)"
        )
    ranking = _ranked(scores, table, round_to, whole_blocks)
    for cost, most in limits:
        least = cost.count(ranking.keep(ranking.counts(0)))
        if least > most:
            raise ValueError(f"the target {most:,} is below the smallest count that this network can reach, {least:,}")

    fits = _fitting(ranking, limits)
    low, high = 0, len(ranking.turns)  # invariant: the best `low` blocks fit, the best `high + 1` do not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(ranking.counts(middle)):
            low = middle
        else:
            high = middle - 1
    return ranking.keep(_filled(ranking, low, fits))


def smallest(table: ChannelTable, cost: Cost, round_to: int = 1) -> int:
    """The least that `cost` can be: one block in every group."""
    ranking = _ranked(torch.zeros(table.channels), table, round_to)
    return cost.count(ranking.keep(ranking.counts(0)))


@dataclass(frozen=True)
class _Ranking:
    """In which order channels stay. How many of each group do says which: the best of it."""

    place: Tensor
    """(channels,) how many of its group are better."""
    group_of: Tensor
    widths: Tensor
    """(groups,) how many can stay."""
    always: Tensor
    """(groups,) how many stay in any case."""
    size: int
    """Of a block; the last of a group may be smaller."""
    turns: Tensor
    """(blocks,) the group of each block, the best block first; a group gives its blocks in their order."""

    def counts(self, blocks: int) -> Tensor:
        """(groups,) how many channels are live, of the best so many blocks."""
        given = self.turns[:blocks].bincount(minlength=len(self.widths))
        return (self.always + self.size * given).minimum(self.widths)

    def keep(self, counts: Tensor) -> Tensor:
        """(channels,) bool: the best so many of each group."""
        return self.place < counts[self.group_of]


def _ranked(scores: Tensor, table: ChannelTable, size: int, whole_blocks: bool = False) -> _Ranking:
    """The channels in blocks of `size`, valued by their mean; blocks of a group are always taken in their order."""
    best = scores.argsort(descending=True, stable=True)
    best = best[table.group_of[best].argsort(stable=True)]  # group by group, the best of each first
    group = table.group_of[best]
    widths = group.bincount(minlength=len(table.groups))
    always = torch.tensor([math.ceil(g.least / size) * size for g in table.groups], dtype=torch.long)
    position = torch.arange(len(best)) - (widths.cumsum(0) - widths)[group]
    place = torch.empty_like(position).index_copy_(0, best, position)
    if whole_blocks:
        widths = torch.where(widths < size, widths, widths // size * size)

    spare = (position >= always[group]) & (position < widths[group])
    best, group, position = best[spare], group[spare], (position - always[group])[spare]
    first = position % size == 0
    block = first.cumsum(0) - 1  # its number in this order
    owner = group[first]
    values = torch.zeros(len(owner), dtype=scores.dtype).index_add_(0, block, scores[best]) / block.bincount()
    # By their values groups get their turns, and in its turns a group gives its blocks in their order (means of equal
    # scores may differ by rounding).
    turns = owner[values.argsort(descending=True, stable=True)]
    return _Ranking(place, table.group_of, widths, always, size, turns)


def _fitting(ranking: _Ranking, limits: Limits) -> Callable[[Tensor], bool]:
    """Tells of counts (groups,) whether they are within the limits."""
    short = [(cost.by_group(ranking.group_of, len(ranking.widths)), cost, most) for cost, most in limits]

    def fits(counts: Tensor) -> bool:
        return all(
            (cost.count(ranking.keep(counts)) if few is None else round(few(counts.double()).item())) <= most
            for few, cost, most in short
        )

    return fits


def _filled(ranking: _Ranking, blocks: int, fits: Callable[[Tensor], bool]) -> Tensor:
    """(groups,) how many are live of the best so many blocks, and then, best first, of every block that still fits.

    A channel costs the more the more others are live, and channels of a group cost the same. So a group of which one
    block did not fit is full, and one pass leaves nothing that could be put back.
    """
    counts = ranking.counts(blocks)
    full: set[int] = set()
    for group in ranking.turns[blocks:].tolist():
        if group not in full:
            larger = counts.clone()
            larger[group] = min(int(counts[group]) + ranking.size, int(ranking.widths[group]))
            if fits(larger):
                counts = larger
            else:
                full.add(group)
    return counts
