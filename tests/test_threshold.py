"""Promise 4: the budget is met exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from exactness import check_exact, fits, limits_of, scores_of
from torch import nn
from zoo import ZOO

import models
from hfp import trace
from hfp.channels import ChannelTable
from hfp.threshold import smallest, threshold

SHARES = (0.1, 0.25, 0.4, 0.6, 0.9)
NETWORKS = ("chain", "dense_block", "squeeze_and_excite", "flattened", "few_wide_groups", "many_narrow_groups")
ROUNDED = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def table_of(name: str) -> ChannelTable:
    return trace(ZOO[name].model(), ZOO[name].inputs())


@pytest.fixture(scope="module")
def resnet() -> ChannelTable:
    return trace(models.build("resnet20"))


@pytest.fixture(scope="module")
def rounded() -> ChannelTable:
    return trace(ROUNDED, torch.zeros(1, 3, 12, 12))


@pytest.mark.parametrize("which", ["macs", "params", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_channel_could_come_back(name: str, which: str) -> None:
    table = table_of(name)
    for share, kind in itertools.product(SHARES, ("random", "equal", "few", "extreme", "negative")):
        limits = limits_of(table, share, which)
        check_exact(threshold(scores_of(kind, table.channels), table, limits), table, limits)


@pytest.mark.parametrize("which", ["macs", "params", "both"])
def test_no_channel_could_come_back_in_a_resnet(resnet: ChannelTable, which: str) -> None:
    for share, kind in itertools.product(SHARES, ("random", "equal", "extreme")):
        limits = limits_of(resnet, share, which)
        check_exact(threshold(scores_of(kind, resnet.channels), resnet, limits), resnet, limits, brute_force=False)


def test_channels_of_a_group_cost_the_same(resnet: ChannelTable) -> None:
    """What lets the test above try one channel of each group."""
    keep = torch.rand(resnet.channels) < 0.5
    for group in resnet.groups:
        costs = set()
        for channel in group.channels.tolist():
            others = keep.clone()
            others[group.channels] = group.channels == channel
            costs.add((resnet.macs.count(others), resnet.params.count(others)))
        assert len(costs) == 1


def test_every_reachable_target_of_a_small_network() -> None:
    """Exhaustively: for each target the result is maximal, and larger targets never keep fewer multiply-adds."""
    table = table_of("dense_block")
    scores, before = scores_of("random", table.channels), 0
    for target in range(smallest(table, table.macs), table.macs.dense() + 1, 97):
        keep = threshold(scores, table, [(table.macs, target)])
        check_exact(keep, table, [(table.macs, target)])
        before = max(before, table.macs.count(keep))
    assert bool(threshold(scores, table, [(table.macs, table.macs.dense())]).all())


def test_the_best_channels_of_a_group_stay(resnet: ChannelTable) -> None:
    scores = scores_of("random", resnet.channels)
    keep = threshold(scores, resnet, limits_of(resnet, 0.4, "macs"))
    for group in resnet.groups:
        mine, kept = scores[group.channels], keep[group.channels]
        assert bool(kept.all()) or mine[kept].min() > mine[~kept].max()


def test_one_threshold_for_all_groups(resnet: ChannelTable) -> None:
    """But for the few that filled the rest of the budget, what stays scores more than what goes, whatever the layer."""
    scores = scores_of("random", resnet.channels)
    keep = threshold(scores, resnet, limits_of(resnet, 0.4, "macs"))
    first = torch.cat([group.channels[scores[group.channels].argmax()].reshape(1) for group in resnet.groups])
    ranked = [c for c in scores.argsort(descending=True).tolist() if c not in set(first.tolist())]
    count = next(i for i, channel in enumerate(ranked) if not keep[channel])
    later = sum(bool(keep[channel]) for channel in ranked[count:])
    assert later <= 0.05 * resnet.channels


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["random", "equal", "few", "extreme"])
def test_widths_are_multiples(rounded: ChannelTable, size: int, kind: str) -> None:
    """Multiples of `round_to` or the dense width, and no whole block could come back."""
    scores = scores_of(kind, rounded.channels)
    low, high = smallest(rounded, rounded.macs, size), rounded.macs.dense()
    for target in range(low, high + 1, max(1, (high - low) // 40)):
        limits = [(rounded.macs, target)]
        keep = threshold(scores, rounded, limits, round_to=size)
        assert fits(keep, limits)
        for group in rounded.groups:
            gone = group.channels[~keep[group.channels]]
            live = group.width - len(gone)
            assert live % size == 0 or live == group.width
            if len(gone):
                more = keep.clone()
                more[gone[:size]] = True
                assert not fits(more, limits)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("kind", ["random", "equal", "few", "extreme"])
def test_whole_blocks_alone(rounded: ChannelTable, size: int, kind: str) -> None:
    """Multiples of `round_to`, or all that is less than one; the best stay, and no whole block could come back."""
    scores = scores_of(kind, rounded.channels)
    low, high = smallest(rounded, rounded.macs, size), rounded.macs.dense()
    for target in [*range(low, high, max(1, (high - low) // 40)), high]:
        limits = [(rounded.macs, target)]
        keep = threshold(scores, rounded, limits, round_to=size, whole_blocks=True)
        assert fits(keep, limits)
        for group in rounded.groups:
            live, gone = (group.channels[mask] for mask in (keep[group.channels], ~keep[group.channels]))
            assert len(live) % size == 0 or (len(live) == group.width < size)
            assert not len(gone) or scores[live].min() >= scores[gone].max()
            if len(gone) >= size:
                more = keep.clone()
                more[gone[:size]] = True
                assert not fits(more, limits)


def test_same_scores_same_result(resnet: ChannelTable) -> None:
    limits = limits_of(resnet, 0.3, "both")
    twice = [threshold(scores_of("few", resnet.channels), resnet, limits) for _ in range(2)]
    assert torch.equal(*twice)


def test_scores_of_any_precision_and_scale(resnet: ChannelTable) -> None:
    limits = limits_of(resnet, 0.3, "macs")
    scores = torch.rand(resnet.channels)
    assert torch.equal(threshold(scores, resnet, limits), threshold(scores.double() * 1024, resnet, limits))


def test_a_target_below_the_smallest_count() -> None:
    table = table_of("chain")
    least = smallest(table, table.macs)
    assert table.macs.count(threshold(torch.zeros(6), table, [(table.macs, least)])) == least
    with pytest.raises(ValueError, match=f"{least:,}"):
        threshold(torch.zeros(6), table, [(table.macs, least - 1)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers(bad: float) -> None:
    table = table_of("chain")
    with pytest.raises(ValueError, match="not finite"):
        threshold(torch.tensor([1.0, 2, 3, 4, 5, bad]), table, [(table.macs, table.macs.dense())])


def test_nothing_to_prune() -> None:
    table = trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    assert threshold(torch.zeros(0), table, [(table.macs, table.macs.dense())]).shape == (0,)
    assert smallest(table, table.macs) == table.macs.dense()
