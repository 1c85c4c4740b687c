"""Whole lives of networks that are more than convolutions: wrapped, trained, compacted, saved, loaded, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import hfp

STEPS = 8


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.rnn = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.words(x))[0])
        return out[:, 0]


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


IMAGE, WORDS = torch.randn(2, 3, 32, 32), torch.randint(0, 20, (2, 6))
LIVES: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {
    "vision transformer": (
        lambda: zoo.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5),
        IMAGE,
        {"encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "encoder.layers.encoder_layer_0.mlp.0.weight"},
    ),
    "transformer encoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, dropout=0.0), nn.Flatten(), nn.Linear(168, 5)
        ),
        torch.randn(2, 7, 24),
        {"0.self_attn.in_proj_weight", "0.linear1.weight"},
    ),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        IMAGE,
        {"features.0.0.weight", "features.1.0.block.3.weight"},
    ),
    "tagger": (Tagger, WORDS, {"rnn.weight_ih_l0", "words.weight"}),
    "llama": (llama, {"input_ids": WORDS}, {"model.layers.0.self_attn.q_proj.weight"}),
}
"""Name -> how it is built, its example inputs, tensors of which some channels must be prunable."""


def call(model: nn.Module, x: Any) -> Tensor:
    out = model(**x) if isinstance(x, dict) else model(x)
    return out if isinstance(out, Tensor) else out.logits[:, 0]


@pytest.mark.parametrize("name", LIVES)
@pytest.mark.filterwarnings("ignore")
def test_a_life(name: str, tmp_path: Path) -> None:
    build, x, cut = LIVES[name]
    torch.manual_seed(0)
    net = hfp.wrap(build(), x, target_macs=0.5, steps=STEPS)
    assert cut <= {tensor for group in net.table.groups for tensor, _ in group.members}
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01), momentum=0.9)
    for _ in range(STEPS):
        loss = F.cross_entropy(call(net, x), torch.tensor([1, 0])) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.macs() <= 0.5 * net.dense_macs and bool(net.gates.any())

    small = net.compact().eval()
    hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", build()).eval()
    args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})
    exported = torch.export.export(small, args, kwargs).module()
    with torch.no_grad():
        expected = call(small, x)
        assert torch.equal(expected, call(again, x))
        torch.testing.assert_close(call(exported, x), expected, rtol=1e-4, atol=1e-5)
