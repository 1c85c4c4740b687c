"""One global threshold: scores + costs + targets -> the channels that stay, exactly within the budget.

The channels with the highest scores stay, as many as the budget allows, whatever layer they are in. The result is
maximal: putting back any one removed channel would exceed a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.cost import Cost

Limits = Sequence[tuple[Cost, int]]
"""(cost, the most that it may be) for each budget."""


def threshold(scores: Tensor, table: ChannelTable, limits: Limits, *, round_to: int = 1) -> Tensor:
    """(channels,) bool: which channels stay, for scores (channels,).

    Channels come in *blocks* of `round_to` (a single one by default), the best of a group first, so that widths are
    multiples of it; the rest of a width that is no multiple is the last block. The first block of a group always stays.
    ValueError if even those exceed a target.
    """
    scores = scores.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(
            "the scores of the channels are not finite; has the training diverged? (a lower learning rate helps)"
        )
    ranking = _ranked(scores, table, round_to)
    for cost, most in limits:
        least = cost.count(ranking.best(0))
        if least > most:
            raise ValueError(f"the target {most:,} is below the smallest count that this network can reach, {least:,}")

    low, high = 0, len(ranking.groups)  # invariant: the best `low` blocks fit, the best `high + 1` do not
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(ranking.best(middle), limits):
            low = middle
        else:
            high = middle - 1
    return _filled(ranking, low, limits)


def smallest(table: ChannelTable, cost: Cost, round_to: int = 1) -> int:
    """The least that `cost` can be: one block in every group."""
    return cost.count(_ranked(torch.zeros(table.channels), table, round_to).best(0))


@dataclass(frozen=True)
class _Ranking:
    """All blocks that may go, the best first."""

    rank: Tensor
    """(channels,) the number of the block that each channel is in; -1 for those that always stay."""
    groups: list[int]
    """The group that each block belongs to."""

    def best(self, blocks: int) -> Tensor:
        """(channels,) bool: the channels that always stay, and those of the best so many blocks."""
        return self.rank < blocks


def _ranked(scores: Tensor, table: ChannelTable, size: int) -> _Ranking:
    """The channels in blocks of `size`, valued by their mean; blocks of a group are always taken in their order."""
    best = scores.argsort(descending=True, stable=True)
    best = best[table.group_of[best].argsort(stable=True)]  # group by group, the best of each first
    group = table.group_of[best]
    widths = group.bincount(minlength=len(table.groups))
    always = torch.tensor([math.ceil(g.least / size) * size for g in table.groups], dtype=torch.long)
    position = torch.arange(len(best)) - (widths.cumsum(0) - widths + always)[group]

    best, group, position = (vector[position >= 0] for vector in (best, group, position))
    first = position % size == 0
    block = first.cumsum(0) - 1  # its number in this order
    owner = group[first]
    values = torch.zeros(len(owner), dtype=scores.dtype).index_add_(0, block, scores[best]) / block.bincount()
    # By their values groups get their turns, and in its turns a group gives its blocks in their order (means of equal
    # scores may differ by rounding).
    turns = owner[values.argsort(descending=True, stable=True)]
    rank = torch.full((table.channels,), -1)
    rank[best] = turns.argsort(stable=True)[block]
    return _Ranking(rank, turns.tolist())


def _fits(keep: Tensor, limits: Limits) -> bool:
    return all(cost.count(keep) <= most for cost, most in limits)


def _filled(ranking: _Ranking, blocks: int, limits: Limits) -> Tensor:
    """The channels of the best so many blocks, and then, best first, of every block that still fits.

    A channel costs the more the more others are live, and channels of a group cost the same. So a group of which one
    block did not fit is full, and one pass leaves nothing that could be put back.
    """
    keep = ranking.best(blocks)
    full: set[int] = set()
    for block, group in enumerate(ranking.groups[blocks:], start=blocks):
        if group not in full:
            larger = keep | (ranking.rank == block)
            if _fits(larger, limits):
                keep = larger
            else:
                full.add(group)
    return keep
