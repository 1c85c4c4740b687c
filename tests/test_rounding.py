"""`--round-to auto`: the fastest rounding, of those that only round."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp import rounding
from hfp.origin import Outcome


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
