"""A compact network cut further is a cut of the dense one: one record, one constructor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import hfp
import models
from hfp import checkpoint
from hfp.deploy.recut import recut
from hfp.model import outputs
from hfp.model.inputs import arguments
from hfp.proof.ptflops_check import measured

NETS: dict[str, tuple[Any, Any]] = {
    "lenet5": (lambda: models.build("lenet5"), torch.zeros(1, 1, 28, 28)),
    "resnet20": (lambda: models.build("resnet20"), torch.zeros(1, 3, 32, 32)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(num_classes=10), torch.zeros(1, 3, 64, 64)),
    "heads": (
        lambda: torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=10
        ),
        torch.zeros(1, 3, 32, 32),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_it_loads_from_the_dense_constructor_and_computes_the_same(name: str, tmp_path: Path) -> None:
    build, example = NETS[name]
    torch.manual_seed(0)
    dense = build().eval()
    small = hfp.wrap(dense, example, target_macs=0.6, method="magnitude").compact()
    net, smaller = recut(dense, small, target_macs=0.45, method="magnitude")
    record = checkpoint.record_of(smaller)
    assert 0 < record.macs <= 0.45 * record.dense_macs and record.macs < checkpoint.record_of(small).macs
    assert record.params == sum(parameter.numel() for parameter in smaller.parameters())
    assert bool((checkpoint.record_of(small).keep | ~record.keep).all())  # nothing came back
    hfp.save(smaller, tmp_path / "smaller.safetensors")
    loaded = hfp.load(tmp_path / "smaller.safetensors", build()).eval()
    assert outputs.difference(net, loaded, arguments(dense, example)) < 1e-5


def test_widths_are_rounded_down_where_they_are_wide_enough() -> None:
    dense = models.build("resnet20")
    small = hfp.wrap(dense, target_macs=0.4).compact()
    net, smaller = recut(dense, small, round_to=4)
    before, after = checkpoint.widths(small), checkpoint.widths(smaller)
    firsts = [name for name in before if name.endswith(".conv1")]
    assert any(before[name] % 4 for name in firsts)
    assert all(after[name] == (before[name] // 4 * 4 or before[name]) for name in firsts)
    again = recut(dense, smaller, round_to=4)[1]
    assert torch.equal(checkpoint.record_of(again).keep, checkpoint.record_of(smaller).keep)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.35, 0.4])
def test_rounded_budgets_are_filled(share: float) -> None:
    """What a width gives up, because it is no multiple, another may have."""
    torch.manual_seed(0)
    dense = models.build("resnet20", num_classes=3)
    small = hfp.wrap(dense, target_macs=0.4, method="magnitude").compact()
    net, smaller = recut(dense, small, target_macs=share, round_to=8)
    record, cost = checkpoint.record_of(smaller), net.table.macs
    assert cost.count(net.keep) == record.macs <= share * record.dense_macs
    assert any(group.width % 8 for group in net.table.groups)
    for group in net.table.groups:
        kept = net.keep[group.channels]
        assert int(kept.sum()) % 8 == 0 or (bool(kept.all()) and group.width < 8)
        if group.width - int(kept.sum()) >= 8:
            more = net.keep.clone()
            more[group.channels[~kept][:8]] = True
            assert cost.count(more) > share * record.dense_macs


def test_targets_are_those_of_the_dense_network() -> None:
    dense = models.build("lenet5")
    small = hfp.wrap(dense, target_macs=0.4).compact()
    assert torch.equal(recut(dense, small, target_macs=0.9)[1].hfp_record.keep, small.hfp_record.keep)  # type: ignore
    with pytest.raises(ValueError, match="smallest reachable target"):
        recut(dense, small, target_macs=0.0001)
    whole = hfp.trace(dense).macs.dense()
    with pytest.raises(ValueError, match=rf"target_macs=0.0001 asks for .* of the dense {whole:,}\); the smallest"):
        recut(dense, small, target_macs=0.0001)
    with pytest.raises(ValueError, match="is not a compact network"):
        recut(dense, dense)


def test_it_is_counted_as_the_first_cut_was() -> None:
    dense = models.build("lenet5")
    small = hfp.wrap(dense, target_macs=0.4, counter="ptflops").compact()
    smaller = recut(dense, small, target_macs=0.3, round_to=2)[1]
    record = smaller.hfp_record
    assert record.targets["counter"] == "ptflops"  # type: ignore[union-attr]
    assert record.macs == measured(smaller, arguments(dense, None)) <= 0.3 * measured(dense, arguments(dense, None))  # type: ignore


def test_a_constant_whose_channels_were_cut_to_one_is_no_channel_any_more() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)
            self.scale = torch.rand(8, 1, 1) + 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x) * self.scale).relu())

    torch.manual_seed(0)
    dense = Scaled()
    net = hfp.wrap(dense, torch.zeros(1, 3, 12, 12), target_macs=0.9)
    keep = torch.ones(net.table.channels, dtype=torch.bool)
    keep[net.table.groups[0].channels[1:]] = False
    net.keep = keep
    net.stop()
    smaller: Any = recut(dense, net.compact(), target_macs=0.1)[1]
    assert smaller.a.out_channels == 1 and smaller.b.out_channels < 8
