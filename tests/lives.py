"""Networks of every kind, each with what its life takes; run as a script, the part of it in another process.

`python lives.py NAME FOLDER` loads FOLDER/small.safetensors and writes what it computes to FOLDER/outputs.safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectors
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

import hfp
from hfp.model.inputs import Arguments


@dataclass(frozen=True)
class Life:
    """A network and what is done with it."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    """What `hfp.wrap` gets, and what it is trained on."""
    widths: Callable[[Any], dict[str, int]]
    """Numbers that all become smaller."""
    loss: Callable[[Any], Tensor] = lambda out: F.cross_entropy(out, torch.tensor([1, 0]))
    seed: int = 0
    """Of its weights: few steps teach gates little, and chance may leave a part whole."""

    def asked(self) -> Arguments:
        """What the compact network is called with."""
        example = self.example()
        return ((), example) if isinstance(example, dict) else (example[:1], {})


def lively(model: nn.Module) -> nn.Module:
    """No parameter is constant: a last layer of zeros would compute nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def outputs(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(*inputs[0], **inputs[1]))


def tensors(out: Any) -> list[Tensor]:
    return [x for x in tree_leaves(getattr(out, "logits", out)) if isinstance(x, Tensor)]


def image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


def words() -> Tensor:
    return torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))


# --- the networks ----------------------------------------------------------------------------------------------------


def vision_transformer() -> nn.Module:
    return zoo.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5)


def vision_transformer_widths(model: Any) -> dict[str, int]:
    layers = list(model.encoder.layers)
    return {
        "heads": sum(layer.self_attention.num_heads for layer in layers),
        "mlp": sum(layer.mlp[0].out_features for layer in layers),
    }


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, dropout=0.0)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(168, 5))


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 32, [2, 1], [4, 8], [4, 4], mlp_ratio=2.0, num_classes=5)


def swin_widths(model: Any) -> dict[str, int]:
    blocks = [block for stage in (model.features[1], model.features[3]) for block in stage]
    return {
        "heads": sum(block.attn.num_heads for block in blocks),
        "mlp": sum(block.mlp[0].out_features for block in blocks),
    }


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.rnn = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.words(x))[0])
        return out


def llama() -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        use_cache=False,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def llama_widths(model: Any) -> dict[str, int]:
    layers = list(model.model.layers)
    return {
        "heads": sum(layer.self_attn.k_proj.out_features // layer.self_attn.head_dim for layer in layers),
        "mlp": sum(layer.mlp.gate_proj.out_features for layer in layers),
    }


def faster_rcnn_widths(model: Any) -> dict[str, int]:
    return {
        "body": sum(layer.out_channels for layer in model.backbone.body.values() if isinstance(layer, nn.Conv2d)),
        "pyramid": model.backbone.fpn.inner_blocks[0][0].out_channels,
        "proposals": model.rpn.head.conv[0][0].out_channels,
    }


def tagged(out: Tensor) -> Tensor:
    return F.cross_entropy(out[:, 0], torch.tensor([1, 0]))


LIVES = {
    "vision transformer": Life(vision_transformer, image, vision_transformer_widths),
    "transformer encoder": Life(
        encoder,
        lambda: (torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0)),),
        lambda model: {"heads": model[0].self_attn.num_heads, "mlp": model[0].linear1.out_features},
    ),
    "swin": Life(swin, image, swin_widths, seed=2),
    "convnext": Life(
        convnext,
        image,
        lambda model: {"stem": model.features[0][0].out_channels, "mlp": model.features[1][0].block[3].out_features},
    ),
    "tagger": Life(
        Tagger,
        lambda: (words(),),
        lambda model: {"state": model.rnn.hidden_size, "embedding": model.words.embedding_dim},
        tagged,
    ),
    "llama": Life(llama, lambda: {"input_ids": words()}, llama_widths, lambda out: tagged(out.logits)),
    "faster r-cnn": Life(
        detectors.faster_rcnn,
        lambda: detectors.pictures(detectors.faster_rcnn())[0],
        faster_rcnn_widths,
        lambda losses: torch.stack(list(losses.values())).sum(),
        seed=1,
    ),
}


def main(name: str, folder: str) -> None:
    life = LIVES[name]
    torch.manual_seed(1)  # what the constructor draws must not matter
    small = hfp.load(Path(folder) / "small.safetensors", life.build()).eval()
    found = outputs(small, life.asked())
    save_file({str(number): x.contiguous() for number, x in enumerate(found)}, Path(folder) / "outputs.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
