"""Whatever a program has set PyTorch to, a network is pruned alike. A default device that is none: `on_far.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import hfp
from hfp.methods import METHODS
from hfp.model.ambient import as_set, plainly

X = torch.randn(2, 3, 32, 32)


@pytest.fixture
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def network() -> nn.Module:
    layers = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.GroupNorm(1, 8), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(2), nn.Linear(28 * 28, 5))


def train(net: nn.Module, x: torch.Tensor, steps: int = 4) -> None:
    parameters = net.param_groups(lr=1e-3) if isinstance(net, hfp.GatedModel) else net.parameters()
    optimizer = torch.optim.SGD(parameters, momentum=0.9)
    for _ in range(steps):
        loss = net(x).float().square().mean() + (net.complexity_loss() if isinstance(net, hfp.GatedModel) else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("default_dtype", [torch.float64, torch.bfloat16], indirect=True)
def test_gates_are_float32_whatever_is_made_by_default(default_dtype: torch.dtype, method: str) -> None:
    net = hfp.wrap(network(), X.to(default_dtype), target_macs=0.5, steps=3, method=method)
    assert net.gates.dtype == net.live.dtype == torch.float32
    train(net, X.to(default_dtype))
    small = net.compact()
    assert {parameter.dtype for parameter in small.parameters()} == {default_dtype}


def test_what_is_made_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    model = network()
    with torch.inference_mode():
        net = hfp.wrap(model, X, target_macs=0.5, steps=3)
    train(net, X)
    with torch.inference_mode():
        small = net.compact()
        hfp.save(small, tmp_path / "small.safetensors")
    train(small, X)
    fresh = network()
    with torch.inference_mode():
        again = hfp.load(tmp_path / "small.safetensors", fresh)
    train(again, X)


def test_inference_mode_hides_no_channels() -> None:
    """In it, PyTorch runs other operators."""
    model = torchvision.models.swin_transformer.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5)
    table = hfp.trace(model, X)
    with torch.inference_mode():
        assert hfp.trace(model, X).fingerprint() == table.fingerprint()


def test_on_the_cpu_whatever_the_default_device() -> None:
    """On the meta device a tensor of hfp's own would hold nothing."""
    model = torchvision.models.resnet18(num_classes=5)
    table = hfp.trace(model, X)
    with torch.device("meta"):
        assert hfp.trace(model, X).fingerprint() == table.fingerprint()
        assert str(hfp.trace(model, X)) == str(table)
        assert hfp.verify(model, table) < 1e-5
        net = hfp.wrap(model, X, target_macs=0.5, steps=3)
        train(net, X)
        assert net.least_macs < net.macs() <= net.dense_macs / 2 and net.params() < net.dense_params
        small = net.compact()
    assert not any(parameter.is_meta for parameter in small.parameters())


def test_only_what_is_asked_for_is_done_as_set() -> None:
    def devices() -> list[str]:
        found = [torch.empty(0).device.type]
        with as_set():
            found += [torch.empty(0).device.type, *plainly(lambda: [torch.empty(0).device.type])()]
        return [*found, torch.empty(0).device.type]

    assert plainly(devices)() == 4 * ["cpu"]
    with torch.device("meta"):
        assert plainly(devices)() == ["cpu", "meta", "cpu", "cpu"]
        assert torch.empty(0).is_meta


def test_rounding_by_autocast_is_no_disagreement() -> None:
    layers = (layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()))
    x = torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net = hfp.wrap(nn.Sequential(*layers), x, target_macs=0.5, steps=2, verify=True)
        train(net, x)
        assert net.compact()(x).shape == x.shape
