"""One global threshold: scores + costs + targets -> the channels that stay, exactly within the budget.

The channels with the highest scores stay, as many as the budget allows, whatever layer they are in. The result is
maximal: putting back any one removed channel would exceed a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hfp.channels import ChannelTable, Group
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
    blocks, first = _blocks(scores, table.groups, round_to)
    keep = _with(torch.zeros(table.channels, dtype=torch.bool), first)
    for cost, most in limits:
        if cost.count(keep) > most:
            raise ValueError(
                f"the target {most:,} is below the smallest count that this network can reach, {cost.count(keep):,}"
            )

    low, high = 0, len(blocks)  # invariant: the best `low` blocks fit, the best `high + 1` do not
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(_with(keep, blocks[:middle]), limits):
            low = middle
        else:
            high = middle - 1
    keep = _with(keep, blocks[:low])
    return _fill(keep, blocks[low:], table, limits)


def smallest(table: ChannelTable, cost: Cost, round_to: int = 1) -> int:
    """The least that `cost` can be: one block in every group."""
    _, first = _blocks(torch.zeros(table.channels), table.groups, round_to)
    return cost.count(_with(torch.zeros(table.channels, dtype=torch.bool), first))


def _blocks(scores: Tensor, groups: tuple[Group, ...], size: int) -> tuple[list[Tensor], list[Tensor]]:
    """All blocks but the first of each group, best first; and these first ones.

    Blocks are valued by their mean, and a block never above a better one of its group (means of equal scores may differ
    by rounding): so blocks of a group are always taken in their order.
    """
    ranked: list[Tensor] = []
    values: list[Tensor] = []
    first: list[Tensor] = []
    for group in groups:
        order = group.channels[scores[group.channels].argsort(descending=True, stable=True)]
        head = math.ceil(group.least / size) * size
        first.append(order[:head])
        rest = order[head:].split(size) if len(order) > head else ()
        ranked += rest
        if rest:
            values.append(torch.stack([scores[block].mean() for block in rest]).cummin(0).values)
    if not ranked:
        return [], first
    order = torch.cat(values).argsort(descending=True, stable=True)
    return [ranked[i] for i in order.tolist()], first


def _with(keep: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    keep = keep.clone()
    if blocks:
        keep[torch.cat(list(blocks))] = True
    return keep


def _fits(keep: Tensor, limits: Limits) -> bool:
    return all(cost.count(keep) <= most for cost, most in limits)


def _fill(keep: Tensor, blocks: Sequence[Tensor], table: ChannelTable, limits: Limits) -> Tensor:
    """Put back, best first, every block that still fits.

    A channel costs the more the more others are live, and channels of a group cost the same. So a group of which one
    block did not fit is full, and one pass leaves nothing that could be put back.
    """
    full: set[int] = set()
    for block in blocks:
        group = int(table.group_of[block[0]])
        if group in full:
            continue
        larger = _with(keep, [block])
        if _fits(larger, limits):
            keep = larger
        else:
            full.add(group)
    return keep
