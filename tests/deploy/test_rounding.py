"""`--round-to auto`: the fastest rounding, of those that only round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp.deploy import comparison, rounding
from hfp.deploy.origin import Outcome
from hfp.model.inputs import arguments


class Slow(nn.Module):
    """Takes longer the more its width is off a multiple of 8."""

    input_size = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            time.sleep(0.004 if self.first.out_channels % 8 else 0.001)
        return self.second(self.first(x))


def outcome(size: int, target: float) -> Outcome:
    dense = Slow()
    small: Any = hfp.wrap(dense, target_macs=target, round_to=size, verify=False).compact()
    return Outcome("a test", dense, None, small)


def test_the_finest_of_the_fastest_is_chosen() -> None:
    found, said = rounding.choose(lambda size: outcome(size, 0.7), batch=2)
    assert said["chosen"] == 8 and said["batch"] == 2
    assert found.small.first.out_channels == 40  # type: ignore[union-attr]
    assert said["latency_ms"]["1"] > said["latency_ms"]["8"]
    assert not {"16", "32"} & said["latency_ms"].keys()  # 32 channels where 44 were allowed: that is pruning
    assert rounding.sentence(said).startswith("widths in multiples of 8, the fastest here at batch 2: 1: ")


def test_roundings_that_do_not_reach_the_target_are_left_out() -> None:
    torch.manual_seed(0)
    _, said = rounding.choose(lambda size: outcome(size, 0.26), batch=1)
    assert set(said["latency_ms"]) == {"1", "4", "8", "16"}
    with pytest.raises(ValueError, match="the smallest reachable target"):
        rounding.choose(lambda size: outcome(size, 0.001), batch=1)


def test_what_is_timed_is_what_will_run() -> None:
    """Of every outcome, and the network that is returned is made of the rounding that ran fastest."""
    waits = iter([0.003, 0.001, 0.002])  # for 1, 4 and 8

    def runs(_: Outcome) -> Callable[[Tensor], None]:
        wait = next(waits)
        return lambda x: time.sleep(wait)

    found, said = rounding.choose(lambda size: outcome(size, 0.7), 2, runs)
    assert said["chosen"] == 4 and found.small.first.out_channels == 44  # type: ignore[union-attr]


def test_turns_are_compared_with_each_other() -> None:
    """The machine is four times as slow in half of the turns: medians of their own would say that 8 is the faster."""
    turns = {1: [10.0, 10.0, 40.0, 40.0, 40.0], 8: [11.0, 11.0, 44.0, 11.0, 44.0]}
    assert statistics.median(turns[8]) < statistics.median(turns[1])
    assert rounding.fastest(rounding.paired(turns)) == 1


@pytest.mark.parametrize("batch", [1, 8])
def test_what_is_timed_has_as_many_examples_as_it_says(batch: int) -> None:
    """Whatever number the network was traced with."""
    seen = []

    class Noting(Slow):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    network, given = Noting().eval(), arguments(Slow(), torch.zeros(4, *Slow.input_size))
    assert comparison.latency((network,), given, batch) is not None
    rounding.measured({1: network}, given, batch)
    assert set(seen) == {batch}


def test_a_network_for_one_example_at_a_time_is_refused_in_words() -> None:
    """Whatever it says to two."""

    class One(Slow):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return super().forward(x)

    small: Any = hfp.wrap(One(), target_macs=0.7).compact()
    with pytest.raises(ValueError, match="the network does not run on 2 examples at once; give --batch 1"):
        rounding.choose(lambda size: Outcome("a test", One(), None, small), batch=2)
    assert comparison.latency((small, small), arguments(small, None), 2) is None
