"""Early exits, which the example inputs may not take."""

from __future__ import annotations

import pytest
import torch
from promises import Gated, call, check_cut, random_keep, relative_difference
from torch import Tensor, nn

from hfp import trace
from hfp.cutting.surgery import compact


class TwoExits(nn.Module):
    """Stops at the first head where that one is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 9)
        self.early, self.late = nn.Linear(8, 3), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        y: Tensor = self.early(h)
        if y.softmax(-1).amax() > 0.9:
            return y
        return self.late(self.second(h).relu())


def exits(scale: float) -> tuple[Tensor]:
    return (scale * torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5),)


def network() -> TwoExits:
    torch.manual_seed(0)
    return TwoExits().double().eval()


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_an_exit_that_was_not_taken_stays_whole(density: float) -> None:
    model = network()
    table = trace(model, exits(1.0)[0])
    reasons = {row.tensor: row.reason for row in table.pinned}
    assert reasons["early.weight"].startswith("is read by nothing on the example inputs")
    assert [group.width for group in table.groups] == [8, 9]
    keep = random_keep(table, density, torch.Generator().manual_seed(0))
    check_cut(model, table, keep, (exits(1.0), {}), 1e-9)
    sure = exits(1e3), {}
    assert call(model, sure).softmax(-1).amax() > 0.9
    small = compact(model, table, keep)
    assert relative_difference(call(Gated(model, table, keep), sure), call(small, sure)) < 1e-9
