"""On a device that is not the CPU, see `far.py`: `PYTHONPATH=. python tests/on_far.py`, as `test_device.py` does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import far
import pytest
import torch
import torchvision
from attention import ATTENTION
from normalisers import NORMALISERS
from pairs import PAIRS
from promises import relative_difference
from specimen import Specimen
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hfp
import models

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (lambda: models.build("lenet5"), (2, 1, 28, 28)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (2, 3, 32, 32)),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(num_classes=5), (2, 3, 32, 32)),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), (2, 7, 16)),
}
every_net = pytest.mark.parametrize("name", NETS)
SPECIMENS = {**ATTENTION, **NORMALISERS, **PAIRS}
THERE_IS_ONLY_THE_CPU = {
    *("bias_of_each_head", "bias_of_each_head_in_a_buffer", "bias_of_relative_positions"),
    "rms_norm_of_llama",
}
"""Specimens that make tensors in their forward and do not say where, or turn to float64."""


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    loss = net(x).square().mean() + (net.complexity_loss() if isinstance(net, hfp.GatedModel) else 0.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_the_device_refuses_what_a_gpu_would() -> None:
    x = torch.ones(2, device="far")
    assert (x + 1).sum().item() == 4.0
    with pytest.raises(RuntimeError, match="one device"):
        x + torch.ones(2)


@every_net
@pytest.mark.parametrize("method", ["hfp", "pag", "ggp", "prunenet", "slimming", "taylor"])
def test_a_network_is_pruned_trained_and_saved_there(name: str, method: str, tmp_path: Path) -> None:
    make, shape = NETS[name]
    model, x = make().to("far"), torch.randn(shape).to("far")
    net = hfp.wrap(model, x, target_macs=0.6, steps=3, method=method)
    optimizer = torch.optim.SGD(net.param_groups(lr=1e-3), momentum=0.9)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(2):
        step(net, optimizer, x)
        ema.update_parameters(net)
    small = net.compact(optimizer=optimizer, ema=ema)
    assert {tensor.device.type for tensor in small.state_dict().values()} == {"far"}
    step(small, optimizer, x)
    hfp.save(small, tmp_path / "small.safetensors")
    near = hfp.load(tmp_path / "small.safetensors", make())
    torch.testing.assert_close(near.eval()(x.cpu()), small.eval()(x).cpu())


@every_net
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    """But for those in which the live channels are chosen anew."""
    make, shape = NETS[name]
    model, x = make().to("far"), torch.randn(shape).to("far")
    net = hfp.wrap(model, x, target_macs=0.6, steps=1000)
    optimizer = torch.optim.SGD(net.param_groups(lr=1e-3), momentum=0.9)
    step(net, optimizer, x)
    far.waits.clear()
    for _ in range(3):
        step(net, optimizer, x)
    assert not far.waits


class Placed(nn.Module):
    """Makes a table in its forward, and does not say where."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.mix, self.norm = nn.Embedding(9, 12), nn.Linear(5, 12), nn.LayerNorm(12)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x) + self.places(torch.arange(x.shape[1]))
        return self.last(self.norm(h).relu() * torch.linspace(0, 1, x.shape[1])[:, None])


DEFAULT = {**NETS, "placed": (Placed, (2, 7, 5))}


@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.parametrize("method", ["hfp", "pag", "ggp", "prunenet", "slimming", "taylor"])
def test_it_may_be_the_default(name: str, method: str, tmp_path: Path) -> None:
    """As after `torch.set_default_device`."""
    make, shape = DEFAULT[name]
    with torch.device("far"):
        model, x = make(), torch.randn(shape)
        table = hfp.trace(model, x)
        assert "can be pruned" in str(table) and hfp.verify(model, table) < 1e-4
        net = hfp.wrap(model, x, target_macs=0.7, steps=3, method=method)
        optimizer = torch.optim.SGD(net.param_groups(lr=1e-3), momentum=0.9)
        for _ in range(4):
            step(net, optimizer, x)
        small = net.compact(optimizer=optimizer)
        assert {tensor.device.type for tensor in small.state_dict().values()} == {"far"}
        assert relative_difference(small.eval()(x).cpu(), net.eval()(x).cpu()) < 1e-5
        hfp.save(small, tmp_path / "small.safetensors")
        again = hfp.load(tmp_path / "small.safetensors", make())
        assert relative_difference(again.eval()(x).cpu(), small(x).cpu()) < 1e-5
    assert table.fingerprint() == hfp.trace(make(), torch.zeros(shape)).fingerprint()


class Split(nn.Module):
    """A half on one device, the other on another."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU()).to(first)
        self.two = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dropout=0.0).to(second)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).to(self.two.linear1.weight.device))


@pytest.mark.parametrize(("first", "second"), [("cpu", "far"), ("far", "cpu")])
def test_a_network_may_be_on_several_devices(first: str, second: str) -> None:
    model, x = Split(first, second), torch.randn(2, 5, 6).to(first)
    net = hfp.wrap(model, x, target_params=0.7, steps=2, verify=True)
    loss = net(x).square().mean()
    (loss + net.complexity_loss().to(loss.device)).backward()
    small = net.compact()
    assert [p.device.type for p in small.parameters()] == [p.device.type for p in model.parameters()]


class Chaotic(nn.Module):
    """What is rounding before the sine, is all of the output behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (1e6 * self.b(self.a(x).relu())).sin()


def test_where_float64_has_to_decide_the_cpu_does() -> None:
    model, x = Chaotic().to("far"), torch.randn(5, 4).to("far")
    net = hfp.wrap(model, x, target_macs=0.5, steps=2, verify=True)
    assert {p.device.type for p in net.compact().parameters()} == {"far"}


@pytest.mark.parametrize("name", [name for name in SPECIMENS if name not in THERE_IS_ONLY_THE_CPU])
def test_as_many_channels_are_found_as_on_the_cpu(name: str) -> None:
    specimen: Specimen = SPECIMENS[name]
    model, inputs = specimen.model(torch.float32), specimen.inputs(torch.float32)
    channels = hfp.trace(model, inputs).channels
    moved = {k: x.to("far") for k, x in inputs.items()} if isinstance(inputs, dict) else [x.to("far") for x in inputs]
    there = tuple(moved) if isinstance(moved, list) else moved
    table = hfp.trace(model.to("far"), there)
    assert table.channels == channels
    if channels:
        assert hfp.verify(model, table) < 1e-4


if __name__ == "__main__":
    far.install()  # before anything has a gradient: PyTorch counts its devices then
    sys.exit(pytest.main([__file__, "-p", "no:cacheprovider", *sys.argv[1:]]))
