"""Detection networks, whose code looks at values: boxes, masks and losses of the compacted are those of the gated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectors import DETECTORS, pictures
from promises import check_cut, leaves, measured, predicted, random_keep
from torch import Tensor, nn

import hfp
from hfp.channels import ChannelTable

TOLERANCE = 1e-9
each = pytest.mark.parametrize("build", DETECTORS)


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """Nothing at its initial value, in float64: which box comes first must not depend on rounding."""
    torch.manual_seed(0)
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif float(parameter.detach().std()) < 0.05:  # heads start from next to nothing
            nn.init.normal_(parameter, std=0.05)
    return model


def least(table: ChannelTable) -> Tensor:
    return random_keep(table, 0.0, torch.Generator().manual_seed(0))


@each
def test_boxes_and_losses_are_those_of_the_gated_network(build: Callable[[], nn.Module]) -> None:
    """In evaluation and in training mode, on pictures that the trace has not seen; and nearly all of it can go."""
    model = trained(build)
    table = hfp.trace(model, pictures(model, torch.float64)[0])
    assert not table.notes, table.notes
    assert table.macs.count(least(table)) < 0.1 * table.macs.dense()
    inputs = pictures(model, torch.float64, seed=1)
    with torch.no_grad():
        assert all(leaf.numel() and leaf.isfinite().all() for leaf in leaves(model(*inputs[0])))
    everything = torch.ones(table.channels, dtype=torch.bool)
    assert predicted(table, everything) == measured(model, inputs)
    generator = torch.Generator().manual_seed(0)
    for density in (0.0, 0.3, 0.7):
        check_cut(model, table, random_keep(table, density, generator), inputs, TOLERANCE)


class Trained(nn.Module):
    """In training mode it needs to be told what it should have found."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        found: Tensor = self.b(self.norm(self.a(x)))
        if not self.training:
            return found
        if targets is None:
            raise ValueError("targets should not be none when in training mode")
        return (found - targets).square()


def test_what_was_traced_in_evaluation_mode_alone_is_gated_in_training_as_well() -> None:
    model, inputs = Trained().double().eval(), (torch.randn(5, 3).double(), torch.randn(5, 4).double())
    table = hfp.trace(model, inputs[:1])
    assert "targets should not be none" in table.notes[0] and table.operands
    check_cut(model, table, random_keep(table, 0.5, torch.Generator().manual_seed(0)), (inputs, {}), TOLERANCE)
