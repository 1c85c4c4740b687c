"""Whole lives of networks: wrapped, trained, compacted, saved, loaded by another process, exported; outputs equal."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
from lives import LIVES, lively, outputs, tensors
from safetensors.torch import load_file
from torch import Tensor, nn

import hfp
from hfp.model.inputs import Arguments

STEPS = 6
TESTS = Path(__file__).parent
HEADS = {"vision transformer", "transformer encoder", "swin", "llama"}

each = pytest.mark.parametrize("name", LIVES)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


@cache
def grown(name: str) -> nn.Module:
    """The compact network after a few steps of training to half of the multiply-adds."""
    if name == "llama":
        pytest.importorskip("transformers")
    life = LIVES[name]
    torch.manual_seed(life.seed)
    dense, example = lively(life.build()), life.example()
    before = life.widths(dense)
    assert name not in HEADS or {"heads", "mlp"} <= before.keys()
    net = hfp.wrap(dense, example, target_macs=0.5, steps=STEPS).train()
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01), momentum=0.9)
    for _ in range(STEPS):
        out = net(**example) if isinstance(example, dict) else net(*example)
        loss = life.loss(out) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and net.macs() <= 0.5 * net.dense_macs and bool(net.gates.any())
    small = net.compact().eval()
    after = life.widths(small)
    assert all(0 < after[what] < before[what] for what in before), (before, after)
    with torch.no_grad():
        close(outputs(net.eval(), life.asked()), outputs(small, life.asked()))
    return small


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert expected and len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@each
def test_another_process_computes_the_same(name: str, tmp_path: Path) -> None:
    small = grown(name)
    hfp.save(small, tmp_path / "small.safetensors")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), *sys.path])
    command = [sys.executable, "-W", "ignore", lives.__file__, name, str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, timeout=300)
    found = load_file(tmp_path / "outputs.safetensors")
    expected = outputs(small, LIVES[name].asked())
    assert len(found) == len(expected)
    assert all(torch.equal(found[str(number)], x) for number, x in enumerate(expected))


class Parts(nn.Module):
    """What a Faster R-CNN computes before boxes are chosen, and after: in between, how many there are is a matter of
    values, which torch.export refuses in the dense network as well."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.proposals, self.heads = model.backbone, model.rpn.head, model.roi_heads
        self.size = model.roi_heads.box_roi_pool.output_size

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = list(self.backbone(x).values())
        scores, moves = self.proposals(maps)
        crop = maps[0][:, :, : self.size[0], : self.size[1]]
        return [*scores, *moves, *self.heads.box_predictor(self.heads.box_head(crop))]


def exportable(name: str) -> tuple[nn.Module, Arguments]:
    if name == "faster r-cnn":
        return Parts(grown(name)).eval(), ((torch.randn(2, 3, 64, 96),), {})
    return grown(name), LIVES[name].asked()


@each
def test_torch_export_computes_the_same(name: str) -> None:
    model, (args, kwargs) = exportable(name)
    exported = torch.export.export(model, args, kwargs).module()
    with torch.no_grad():
        close(tensors(exported(*args, **kwargs)), outputs(model, (args, kwargs)))


@each
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    """By the exporter that builds on torch.export; a whole Faster R-CNN by the older one, as torchvision documents."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install hfp[onnx]")
    import onnxruntime

    whole = name == "faster r-cnn"
    small, (args, kwargs) = grown(name), LIVES[name].asked()
    options: dict[str, Any] = {"dynamo": False, "opset_version": 17} if whole else {"dynamo": True, "verbose": False}
    torch.onnx.export(small, args, str(tmp_path / "small.onnx"), kwargs=kwargs, **options)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    given = [x.numpy() for x in torch.utils._pytree.tree_leaves((args, kwargs))]
    feeds = {entry.name: x for entry, x in zip(session.get_inputs(), given, strict=True)}
    close([torch.from_numpy(x) for x in session.run(None, feeds)], outputs(small, (args, kwargs)))
