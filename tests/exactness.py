"""Promise 4 as a check: a budget is met, and no removed channel could come back. Tests and benchmarks call it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.cost import Cost

Limits = list[tuple[Cost, int]]


def limits_of(table: ChannelTable, share: float, which: str) -> Limits:
    """The budgets for `share` of the dense counts ("macs", "params" or "both"), but never below what can be reached."""
    costs = {"macs": [table.macs], "params": [table.params], "both": [table.macs, table.params]}[which]
    least = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        least[group.channels[: group.least]] = True
    return [(cost, max(int(share * cost.dense()), cost.count(least))) for cost in costs]


def fits(keep: Tensor, limits: Limits) -> bool:
    return all(cost.count(keep) <= most for cost, most in limits)


def removed(keep: Tensor, table: ChannelTable, brute_force: bool) -> Iterator[int]:
    """Removed channels: all of them, or one of each group, since channels of a group cost the same."""
    for group in table.groups:
        gone = group.channels[~keep[group.channels]].tolist()
        yield from gone if brute_force else gone[:1]


def check_exact(keep: Tensor, table: ChannelTable, limits: Limits, brute_force: bool = True) -> None:
    """Never above a target; putting back any one removed channel exceeds one; no group is empty."""
    assert fits(keep, limits)
    assert all(int(keep[group.channels].sum()) >= group.least for group in table.groups)
    for channel in removed(keep, table, brute_force):
        more = keep.clone()
        more[channel] = True
        assert not fits(more, limits), f"channel {channel} could be put back"


def scores_of(kind: str, channels: int, seed: int = 0) -> Tensor:
    """Scores that a ranking may meet: random, all equal, few distinct, of extreme ratios, negative, zero."""
    draw = torch.rand(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kinds = {
        "random": draw,
        "equal": torch.ones(channels),
        "few": (3 * draw).floor(),
        "extreme": 10.0 ** (600 * draw - 300),
        "negative": -draw,
        "zero": torch.zeros(channels),
        "ascending": torch.arange(channels, dtype=torch.float64),
    }
    return kinds[kind]
