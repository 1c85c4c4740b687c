"""The channels that are left in trials tell groups of a width apart."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations

import pytest
import torch
from normalisers import NORMALISERS
from specimen import Net
from torch import nn

import hfp
from hfp.channels import ChannelTable
from hfp.trial.keeps import keeps, random_part, smallest_cut


def chain(widths: list[int]) -> ChannelTable:
    """Of linear layers; a group of each width."""
    layers = [nn.Linear(a, b) for a, b in zip([3, *widths], [*widths, 2], strict=True)]
    return hfp.trace(nn.Sequential(*layers), torch.rand(1, 3))


def counts(table: ChannelTable) -> list[list[int]]:
    """Of each trial, how many channels of each group are left."""
    return [[int(keep[group.channels].sum()) for group in table.groups] for keep in keeps(table)]


@pytest.mark.parametrize(
    "widths, trials",
    [
        ([8], 2),
        ([8] * 6, 2),  # 2 to 7 of 8
        ([12] * 12, 2),  # two pairs are told apart by the fewest
        ([12] * 21, 3),  # none would be left with the fewest
        ([4] * 3, 2),
        ([4] * 4, 3),  # 2 and 3 of 4, twice
        ([4] * 5, 3),
        ([3] * 4, 3),  # of so few, which are cut at all tells them apart
        ([2, 8, 2, 8, 2, 8], 3),
    ],
)
def test_any_two_groups_of_a_width_are_told_apart(widths: list[int], trials: int) -> None:
    every = counts(chain(widths))
    assert len(every) == trials
    for a, b in combinations(range(len(widths)), 2):
        if widths[a] == widths[b]:
            # With one channel a length fits where it meets another by being spread over it.
            plain = [trial for trial in every if widths[a] <= 3 or min(trial[a], trial[b]) > 1]
            assert any(trial[a] != trial[b] for trial in plain), (a, b)


def test_the_share_of_one_width_is_no_power_of_that_of_another() -> None:
    """Of which width the model's code reckons a factor, could not be told otherwise."""
    widths = [4, 8, 9, 12, 16, 24, 32, 64]
    shares = [Fraction(left, width) for left, width in zip(counts(chain(widths))[0], widths, strict=True)]
    for a, b in permutations(shares, 2):
        assert a != b and a != b**2 and a != b**4


@pytest.mark.parametrize("widths", [[24, 12], [12, 48, 24], [16, 48], [8, 64, 32, 16], [20, 60, 30, 10]])
def test_a_share_of_one_width_is_not_all_that_is_left_of_another(widths: list[int]) -> None:
    """So that `width // heads` is not taken to follow what has a width of its own."""
    first = counts(chain(widths))[0]
    for (wide, left), (narrow, fewer) in permutations(zip(widths, first, strict=True), 2):
        assert wide <= narrow or wide % narrow or left // (wide // narrow) != fewer


@pytest.mark.parametrize("heads, places", [(2, 3), (4, 4), (3, 8), (12, 64)])
def test_nor_is_the_share_of_the_heads_that_are_left(heads: int, places: int) -> None:
    qkv, out = nn.Linear(heads * places, 3 * heads * places), nn.Linear(heads * places, 2)

    def attention(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = net.qkv(net.embed(x)).reshape(*x.shape[:2], 3, net.heads, -1).permute(2, 0, 3, 1, 4)
        return net.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    table = hfp.trace(
        Net(attention, embed=nn.Linear(3, heads * places), heads=heads, qkv=qkv, out=out), torch.rand(1, 5, 3)
    )
    stream, *factors = sorted((int(random_part(table)[group.channels].sum()) for group in table.groups), reverse=True)
    assert len(factors) == 2 and all(stream // one != other for one, other in permutations(factors))


def test_two_equal_parts_are_as_long_as_one_was() -> None:
    """Code may check that: as RAFT does of the state and the context that it splits off one layer."""
    assert all(left > 64 for left in counts(chain([128] * 12))[0])


def test_two_widths_are_no_share_of_a_third_in_all_parts() -> None:
    """As their shares are in the first of them, since the numbers are primes around the half."""
    table = hfp.trace(NORMALISERS["weights_of_one_length_scaled_by_its_root"].model(), torch.rand(2, 5, 7))
    every = counts(table)
    assert [group.width for group in table.groups] == [32] * 5
    assert every[0][0] + every[0][3] == 2 * every[0][2]
    assert any(trial[0] + trial[3] != 2 * trial[2] for trial in every if max(trial) < 32)


@pytest.mark.parametrize("widths", [[2, 3, 4, 5], [12] * 12, [4] * 60, [3] * 9, [2] * 9])
def test_something_of_every_group_stays_and_all_that_can_go_goes(widths: list[int]) -> None:
    every = counts(chain(widths))
    for group, width in enumerate(widths):
        assert all(1 <= trial[group] <= width for trial in every)
        assert any(trial[group] < width for trial in every)


def test_most_groups_are_left_with_their_fewest() -> None:
    table = chain([12] * 12)
    fewest = counts(table)[-1]
    assert sorted(fewest) == [1] * 8 + [2, 2, 3, 3]
    assert [int(smallest_cut(table)[group.channels].sum()) for group in table.groups] == [1] * 12


def test_the_same_part_at_every_call() -> None:
    table = chain([16, 16])
    assert torch.equal(random_part(table), random_part(table))
    assert not torch.equal(random_part(table), random_part(table, 1))
