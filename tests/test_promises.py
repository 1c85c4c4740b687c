"""The checks themselves: what they let off, and that they see what is wrong."""

from __future__ import annotations

import promises
import pytest
import torch
from promises import check_cut, random_keep
from torch import Tensor, nn

from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact

X = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Chaos(nn.Module):
    """The logistic map, which doubles a difference at every step."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.frac().abs()
        for _ in range(100):
            x = 4 * x * (1 - x)
        return x


def error(*more: nn.Module, chaos: bool = True) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 5), *more).double()
    table = trace(model, (X,))
    return check_cut(
        model, table, random_keep(table, 0.5, torch.Generator().manual_seed(0)), ((X,), {}), 1e-9, chaos=chaos
    )


def test_what_rounding_makes_is_let_off() -> None:
    assert error() < 1e-12 and error(Chaos()) > 1e-3
    with pytest.raises(AssertionError, match="differ by"):
        error(Chaos(), chaos=False)


def test_what_rounding_does_not_make_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, table: ChannelTable, keep: Tensor) -> nn.Module:
        small = compact(model, table, keep)
        small.get_parameter("2.bias").data += 1e-8
        return small

    monkeypatch.setattr(promises, "compact", shifted)
    with pytest.raises(AssertionError, match=r"differ by \S+e-0\d in training, rounding \S+e-1\d"):
        error()
