"""Which published networks the coverage benchmark is about: all of torchvision, a network of every module of timm,
transformers from small configurations, and networks for segmentation. Each is built with random weights, next to inputs
that it runs on.

`python benchmarks/networks.py` prints SMALLEST_OF_TIMM anew, for another version of timm.
"""

from __future__ import annotations

import fnmatch
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfp.catalogue import BEST, PROPOSALS

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


@dataclass(frozen=True)
class Network:
    """A network of the table. Nothing is built before it is asked for."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Arguments]
    """What the network runs on in evaluation mode."""
    training: Callable[[nn.Module], Arguments] | None = None
    """What it runs on in training mode, where that is to be checked as well."""


# --- torchvision ---------------------------------------------------------------------------------------------------

IMAGE_SIZE = 96
SHAPES = {
    "alexnet": (128, 128),
    "squeezenet*": (128, 128),
    "inception_v3": (299, 299),
    "vit_h_14": (98, 98),
    "vit_?_16": (112, 112),
    "vit_?_32": (224, 224),
    "swin_*": (112, 112),
    "maxvit_t": (224, 224),
    "mvit_*": (16, 224, 224),
    "swin3d_*": (4, 64, 64),
    "s3d": (16, 224, 224),
    "*3*_18": (4, 64, 64),
    "r2plus1d_18": (4, 64, 64),
    "raft_*": (128, 136),
    "ssd300_*": (300, 300),
    "ssdlite320_*": (320, 320),
}
"""Image size, after the number of frames where there are any; the first pattern that fits. Others: IMAGE_SIZE."""

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "*rcnn_*": {"weights_backbone": None, "min_size": 128, "max_size": 160, **PROPOSALS},
    "retinanet_*": {"weights_backbone": None, "min_size": 128, "max_size": 160, **BEST},
    "fcos_*": {"weights_backbone": None, "min_size": 128, "max_size": 160, **BEST},
    "ssd*": {"weights_backbone": None, **BEST},
    "deeplabv3_*": {"weights_backbone": None},
    "*fcn_*": {"weights_backbone": None},
    "lraspp_*": {"weights_backbone": None},
    "vit_h_14": {"image_size": 98},
    "vit_?_16": {"image_size": 112},
}
DETECTORS = "*rcnn_*", "retinanet_*", "fcos_*", "ssd*"


def torchvision_networks() -> Iterator[Network]:
    """All that `torchvision.models.list_models()` names, without the quantized ones."""
    import torchvision.models as zoo

    for name in sorted(name for name in zoo.list_models() if not name.startswith("quantized_")):
        build = functools.partial(zoo.get_model, name, weights=None, **_fitting(OPTIONS, name, {}))
        shape = _fitting(SHAPES, name, (IMAGE_SIZE, IMAGE_SIZE))
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in DETECTORS):
            size = shape if name.startswith("ssd") else (128, 160)
            training = functools.partial(_pictures_and_targets, name, size)
            build = functools.partial(_proposing_nearby, build) if "rcnn" in name else build
            yield Network(name, build, functools.partial(_pictures, size), training)
        elif name.startswith("raft_"):
            frames = functools.partial(_frames, shape)
            yield Network(name, build, frames, frames)
        else:
            yield Network(name, build, functools.partial(_image, shape))


def _proposing_nearby(build: Callable[[], nn.Module]) -> nn.Module:
    """As `PROPOSALS`, for the first of the two stages."""
    model: Any = build()
    model.rpn.box_coder.weights = PROPOSALS["bbox_reg_weights"]
    return model  # type: ignore[no-any-return]


def _fitting(table: dict[str, Any], name: str, otherwise: Any) -> Any:
    return next((value for pattern, value in table.items() if fnmatch.fnmatchcase(name, pattern)), otherwise)


def _image(shape: tuple[int, ...], _: nn.Module) -> Arguments:
    return (torch.randn(1, 3, *shape),), {}


def _pictures(size: tuple[int, int], _: nn.Module) -> Arguments:
    return ([torch.rand(3, *size)],), {}


def _pictures_and_targets(name: str, size: tuple[int, int], _: nn.Module) -> Arguments:
    """Two pictures, and what is to be found on them: three boxes each."""
    height, width = size
    pictures = [torch.rand(3, height, width) for _ in range(2)]
    corner = torch.rand(2, 3, 2) * torch.tensor([width, height]) * 0.4
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) * 0.4], dim=2)
    targets = [{"boxes": boxes[i], "labels": torch.randint(1, 90, (3,))} for i in range(2)]
    for target in targets:
        if name.startswith("mask"):
            target["masks"] = (torch.rand(3, height, width) > 0.5).to(torch.uint8)
        if name.startswith("keypoint"):
            target["labels"] = torch.ones(3, dtype=torch.long)
            middle = (target["boxes"][:, None, :2] + target["boxes"][:, None, 2:]) / 2
            target["keypoints"] = torch.cat([middle, torch.ones(3, 1, 1)], dim=2).repeat(1, 17, 1)
    return (pictures, targets), {}


def _frames(shape: tuple[int, int], _: nn.Module) -> Arguments:
    first, second = torch.rand(2, 2, 3, *shape) * 2 - 1
    return (), {"image1": first, "image2": second, "num_flow_updates": 2}


# --- timm ----------------------------------------------------------------------------------------------------------

SMALLEST_OF_TIMM = """
beit beit_base_patch16_224
byoanet halonet_h1
byobnet mobileone_s1
cait cait_xxs24_224
coat coat_tiny
convit convit_tiny
convmixer convmixer_768_32
convnext convnext_zepto_rms
cpubone cpubone_nano
crossvit crossvit_tiny_240
csatv2 csatv2
cspnet cs3darknet_focus_s
cspnext cspnext_tiny
davit davit_tiny
deepseek_vit deepseek_vit_412m
deit deit_tiny_patch16_224
densenet densenet121
dla dla46x_c
dpn dpn48b
edgenext edgenext_xx_small
efficientformer efficientformer_l1
efficientformer_v2 efficientformerv2_s0
efficientnet mobilenetv2_035
efficientvim efficientvim_m1
efficientvit_mit efficientvit_b0
efficientvit_msra efficientvit_m0
eva vit_tiny_patch16_dinov3_qkvb
fasternet fasternet_t0
fastvit fastvit_t8
focalnet focalnet_tiny_srf
gcvit gcvit_xxtiny
gemma4_vit gemma4_vit_167m
ghostnet ghostnet_050
hardcorenas hardcorenas_b
hgnet hgnetv2_b0
hiera hiera_tiny_224
hieradet_sam2 sam2_hiera_tiny
hrnet hrnet_w18_small
iformer iformer_t
inception_next inception_next_atto
inception_resnet_v2 inception_resnet_v2
inception_v3 inception_v3
inception_v4 inception_v4
lcnetv2 lcnetv2_small
levit levit_128s
lowformer lowformer_b0
mambaout mambaout_femto
maxxvit maxvit_pico_rw_256
metaformer poolformerv2_s12
mlp_mixer gmlp_ti16_224
mobilenetv3 mobilenetv3_small_050
mobilenetv5 mobilenetv5_300m
mobilevit mobilevit_xxs
mvitv2 mvitv2_tiny
naflexvit naflexvit_so150m2_patch16_reg1_gap
nasnet nasnetalarge
nest nest_tiny
nextvit nextvit_small
nfnet nf_regnet_b0
pit pit_ti_224
pnasnet pnasnet5large
pvt_v2 pvt_v2_b0
qwen3_vit qwen3_vit_88m
rdnet rdnet_tiny
regnet regnetx_002
repghost repghostnet_050
repvit repvit_m1
res2net res2next50
resnest resnest14d
resnet resnet10t
resnetv2 resnetv2_18
rexnet rexnet_100
selecsls selecsls42
senet legacy_seresnet18
sequencer sequencer2d_s
shvit shvit_s1
sknet skresnet18
starnet starnet_s050
swiftformer swiftformer_xs
swin_transformer swin_tiny_patch4_window7_224
swin_transformer_v2 swinv2_tiny_window8_256
swin_transformer_v2_cr swinv2_cr_tiny_224
tiny_vit tiny_vit_5m_224
tnt tnt_s_legacy_patch16_224
tresnet tresnet_m
twins twins_svt_small
vgg vgg11
visformer visformer_tiny
vision_transformer vit_tiny_patch16_224
vision_transformer_hybrid vit_tiny_r_s16_p8_224
vision_transformer_relpos vit_srelpos_small_patch16_224
vision_transformer_sam samvit_base_patch16_224
vitamin vitamin_small_224
volo volo_d1_224
vovnet ese_vovnet19b_slim_dw
xception legacy_xception
xception_aligned xception41p
xcit xcit_nano_12_p8_224
"""
"""Module of timm 1.0.31 and, by the number of parameters, the smallest network in it that is not made for tests."""

SIZES = 128, 160, 192, 224, 256
"""Image sizes to try, before a network's own."""


def timm_networks() -> Iterator[Network]:
    """The smallest network of every module; named module/network."""
    import timm

    for line in SMALLEST_OF_TIMM.strip().splitlines():
        module, name = line.split()
        build = functools.partial(timm.create_model, name, pretrained=False)
        yield Network(f"{module}/{name}", build, _image_that_fits)


def _image_that_fits(model: nn.Module) -> Arguments:
    """An image of the first size that the network runs at."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    channels, *own = config.get("input_size", (3, 224, 224))
    smaller = [] if config.get("fixed_input_size") else [(size, size) for size in SIZES if size < own[0]]
    for size in smaller:
        image = torch.randn(1, channels, *size)
        try:
            with torch.no_grad():
                model(image)
        except Exception:  # whatever it says: this size is not for it
            continue
        return (image,), {}
    return (torch.randn(1, channels, *own),), {}


def smallest_of_timm() -> Iterator[tuple[str, str]]:
    """(module, network with the fewest parameters) for every module of the installed timm: minutes."""
    import timm

    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sizes[name] = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
        yield module, min(sizes, key=sizes.__getitem__)


# --- transformers --------------------------------------------------------------------------------------------------

VOCABULARY, TOKENS = 99, 12
TEXT = {"vocab_size": VOCABULARY}
BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
VISION = {**BERT, "image_size": 32, "patch_size": 8, "num_labels": 7}
STAGED = {"depths": [1, 2], "image_size": 32, "num_labels": 7}
LLAMA = {**BERT, **TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, **TEXT}
EXPERTS = {**LLAMA, "num_experts_per_tok": 2, "use_cache": False}
DEEPSEEK = {
    **EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "moe_intermediate_size": 32, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4, **TEXT}
SEGFORMER = {"hidden_sizes": [16, 32, 40, 48], "depths": [1] * 4, "num_attention_heads": [1, 2, 4, 4]}
WHISPER = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 80, "num_mel_bins": 16}
CONVNEXT = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "num_labels": 7, "image_size": 32}
CLIP = {"text_config": {**BERT, **TEXT}, "vision_config": {**BERT, "image_size": 32, "patch_size": 8}}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", {**BERT, **TEXT}, "text"),
    "bert, masked words": ("BertForMaskedLM", {**BERT, **TEXT}, "text"),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, **TEXT},
        "text",
    ),
    "vit": ("ViTForImageClassification", VISION, "image"),
    "deit": ("DeiTForImageClassification", VISION, "image"),
    "swin": (
        "SwinForImageClassification",
        {**STAGED, "embed_dim": 24, "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
        "image",
    ),
    "convnext": ("ConvNextForImageClassification", CONVNEXT, "image"),
    "segformer": ("SegformerForSemanticSegmentation", {**SEGFORMER, "decoder_hidden_size": 32}, "image"),
    "clip": ("CLIPModel", CLIP, "text and image"),
    "clip, vision": ("CLIPVisionModelWithProjection", CLIP["vision_config"], "image"),
    "clip, text": ("CLIPTextModelWithProjection", CLIP["text_config"], "text"),
    "whisper, encoder": ("WhisperEncoder", {**WHISPER, "max_source_positions": 20}, "sound"),
    "gpt2": ("GPT2LMHeadModel", GPT, "text"),
    "gpt2, no cache": ("GPT2LMHeadModel", {**GPT, "use_cache": False}, "text"),
    "llama": ("LlamaForCausalLM", LLAMA, "text"),
    "llama, no cache": ("LlamaForCausalLM", {**LLAMA, "use_cache": False}, "text"),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 8}, "text"),
    "mistral, no cache": ("MistralForCausalLM", {**LLAMA, "sliding_window": 8, "use_cache": False}, "text"),
    "mixtral, no cache": ("MixtralForCausalLM", {**EXPERTS, "num_local_experts": 4}, "text"),
    "qwen3, experts, no cache": (
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 12},
        "text",
    ),
    "gpt-oss, no cache": ("GptOssForCausalLM", {**EXPERTS, "num_local_experts": 4, "head_dim": 12}, "text"),
    "deepseek 3, no cache": ("DeepseekV3ForCausalLM", DEEPSEEK, "text"),
    "t5": ("T5ForConditionalGeneration", T5, "text to text"),
    "t5, no cache": ("T5ForConditionalGeneration", {**T5, "use_cache": False}, "text to text"),
    "t5, encoder": ("T5EncoderModel", T5, "text"),
}
"""Name -> class, what its configuration says, what it takes."""


def transformers_networks() -> Iterator[Network]:
    """From small configurations, nothing is downloaded."""
    for name, (kind, settings, takes) in TRANSFORMERS.items():
        yield Network(name, functools.partial(_transformer, kind, settings), functools.partial(_named, takes))


def _transformer(kind: str, settings: dict[str, Any]) -> nn.Module:
    import transformers
    from transformers.models.whisper import modeling_whisper

    built: Any = getattr(modeling_whisper if kind == "WhisperEncoder" else transformers, kind)
    return built(built.config_class(**settings))


def _named(takes: str, _: nn.Module) -> Arguments:
    """Keyword inputs; the second of the two texts is shorter than the first."""
    words = torch.randint(3, VOCABULARY, (2, TOKENS))
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, TOKENS - 3 :] = 0
    every: dict[str, dict[str, Tensor]] = {
        "text": {"input_ids": words, "attention_mask": mask},
        "image": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "sound": {"input_features": torch.randn(2, 16, 40)},
    }
    every["text to text"] = {**every["text"], "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 6))}
    every["text and image"] = {**every["text"], **every["image"]}
    return (), dict(every[takes])


# --- segmentation_models_pytorch -----------------------------------------------------------------------------------


def segmentation_networks() -> Iterator[Network]:
    """Every architecture on a small ResNet (DPT takes transformers alone), and a U-Net on every kind of encoder."""
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders import encoders

    of_kind = {entry["encoder"]: name for name, entry in reversed(encoders.items())}
    pairs = [(name, "resnet18") for name in smp.MODEL_ARCHITECTURES_MAPPING if name != "dpt"]
    pairs += [("dpt", "tu-vit_tiny_patch16_224"), *(("unet", name) for name in of_kind.values() if name != "resnet18")]
    for architecture, encoder in pairs:
        build = functools.partial(smp.create_model, architecture, encoder, encoder_weights=None, classes=3)
        side = 224 if architecture == "dpt" else 128
        yield Network(f"{architecture}/{encoder}", build, functools.partial(_image, (side, side)))


LIBRARIES: dict[str, Callable[[], Iterator[Network]]] = {
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "transformers": transformers_networks,
    "segmentation_models_pytorch": segmentation_networks,
}


if __name__ == "__main__":
    for row in smallest_of_timm():
        print(*row, flush=True)
