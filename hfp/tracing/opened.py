"""Functions that work across channels in ways of their own, written out in operators that have rules.

A layer norm is a mean, a difference, a mean of squares: once it is taken apart, each of its operators hides removed
channels from itself (`hfp.tracing.operands`), and its statistics are those of live channels. `OPENED` are taken apart
when a model is traced, and in the gated forward where channels that can be removed pass through them; attention only
when it is traced, since there hiding channels from its arguments is enough.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from hfp.attention import attention_body, multi_head_attention_forward


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """As `torch.nn.functional.layer_norm`, whose memory is contiguous: on that depends how `matmul` goes about it."""
    normal = _standardised(_wide(input), _normalised(input, normalized_shape), eps)
    return _affine(normal, weight, bias).to(_result(input, F.layer_norm, (2,))).contiguous()


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As `torch.nn.functional.rms_norm`."""
    axes, x = _normalised(input, normalized_shape), _wide(input)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normal = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    return _affine(normal, weight, None).to(_result(input, F.rms_norm, (2,)))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """As `torch.nn.functional.group_norm`."""
    batch, channels, *space = input.shape
    grouped = _wide(input).reshape(batch, num_groups, channels // num_groups, *space)
    normal = _standardised(grouped, list(range(2, grouped.dim())), eps)
    affine = (_columns(vector, len(space)) for vector in (weight, bias))
    return _affine(normal.reshape(input.shape), *affine).to(_result(input, F.group_norm, 2))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm` that keeps no statistics: how weights are often standardised."""
    x = _wide(input)
    normal = _standardised(x, [0, *range(2, x.dim())], eps)
    affine = (_columns(vector, x.dim() - 2) for vector in (weight, bias))
    return _affine(normal, *affine).to(_result(input, F.instance_norm))


def var_mean(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
    axis: Any = None,
    keepdims: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `torch.var_mean`, whose second argument may be `unbiased` too; `axis` and `keepdims` are NumPy's names."""
    dim, keepdim = axis if dim is None else dim, keepdim or keepdims
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    axes = list(range(input.dim())) if dim is None or dim == () else dim
    mean = input.mean(axes, keepdim=True)
    apart = (input - mean).abs() if input.is_complex() else input - mean
    count = torch.ones_like(apart).sum(axes, keepdim=keepdim)  # of what is left
    variance = apart.square().sum(axes, keepdim=keepdim) / (count - correction)
    return variance, mean.reshape(variance.shape)


def var(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.var`."""
    return var_mean(input, *args, **kwargs)[0]


def std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """As `torch.std_mean`."""
    variance, mean = var_mean(input, *args, **kwargs)
    return variance.sqrt(), mean


def std(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.std`."""
    return var(input, *args, **kwargs).sqrt()


def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """As `torch.aminmax`."""
    axes = () if dim is None else dim
    return torch.return_types.aminmax((input.amin(axes, keepdim), input.amax(axes, keepdim)))


def mse_loss(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.mse_loss`: models that learn a code return one, of the channels of the code."""
    return _reduced((input - target).square(), *args, **kwargs)


def l1_loss(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.l1_loss`."""
    return _reduced((input - target).abs(), *args, **kwargs)


def _reduced(
    losses: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    losses = losses if weight is None else losses * weight
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean() if weight is None else losses.sum() / weight.sum()
    return losses.sum()


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """As `torch.nn.functional.pairwise_distance`, which adds `eps` to every difference: to those of zeros as well."""
    return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)


def normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.normalize`: hidden channels add nothing to the norm, and stay as they are."""
    length = torch.linalg.vector_norm(input, p, dim, True).clamp_min(eps)
    return torch.div(input, length, out=out) if out is not None else input / length


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """As `torch.nn.functional.channel_shuffle`."""
    parts = input.unflatten(1, (groups, -1))
    return parts.transpose(1, 2).reshape(input.shape[0], -1, *input.shape[2:])


def _normalised(input: Tensor, shape: Sequence[int]) -> list[int]:
    shape = [shape] if isinstance(shape, int) else list(shape)
    if list(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(f"normalized_shape={shape} does not fit an input of shape {list(input.shape)}")
    return list(range(-len(shape), 0))


def _standardised(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """With a mean of 0 and a variance of 1 along the axes."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _wide(x: Tensor) -> Tensor:
    """Statistics are those of float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _result(input: Tensor, normaliser: Callable[..., Tensor], *size: Any) -> torch.dtype:
    """The dtype that PyTorch's own gives: autocast lifts some to float32, on some devices. A call of it tells."""
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input.dtype
    return _lifted(kind, torch.get_autocast_dtype(kind), input.dtype, normaliser, *size)


@cache
def _lifted(kind: str, to: torch.dtype, dtype: torch.dtype, normaliser: Callable[..., Any], *size: Any) -> torch.dtype:
    with torch._C.DisableTorchFunction():
        return normaliser(torch.ones(2, 2, 2, dtype=dtype, device=kind), *size).dtype


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _columns(vector: Tensor | None, space: int) -> Tensor | None:
    """With an axis of one for each of space."""
    return None if vector is None else vector.reshape(-1, *[1] * space)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` does to labels. Its default scale depends on the width
    of a head, and is left out here: `hfp.tracing.operands` scales the query."""
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = torch.matmul(query, key.transpose(-2, -1))
    if scale is not None:
        scores = scores * scale
    if is_causal:
        queries, keys = (torch.arange(x.size(-2), device=x.device) for x in (query, key))
        scores = scores.masked_fill(keys > queries[:, None], 0.0)
    if attn_mask is not None:
        scores = scores.masked_fill(attn_mask, 0.0) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


def unscaled_scores(query: Tensor, key: Tensor) -> Tensor:
    """What `hfp.attention.scaled_scores` does to labels."""
    return torch.matmul(query, key.transpose(-2, -1))


_BODY = inspect.signature(attention_body)


def called_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """As `torch.nn.functional.multi_head_attention_forward`: where a model's own code calls it, and not a layer that is
    replaced by ours once it is cut, it still insists on heads that add up to the width."""
    given = _BODY.bind(*args, **kwargs).arguments
    width, separate = given["query"].size(-1), given.get("use_separate_proj_weight", False)
    made = given["q_proj_weight"].size(0) if separate else given["in_proj_weight"].size(0) // 3
    if not width == made == given["embed_dim_to_check"]:
        raise AssertionError(
            f"expected an embedding of {given['embed_dim_to_check']}, got {width}, projected to {made}"
        )
    return attention_body(*args, **kwargs)


OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    torch.var: var,
    torch.Tensor.var: var,
    torch.std: std,
    torch.Tensor.std: std,
    torch.var_mean: var_mean,
    torch.std_mean: std_mean,
    torch.aminmax: aminmax,
    torch.Tensor.aminmax: aminmax,
    F.normalize: normalize,
    F.mse_loss: mse_loss,
    F.l1_loss: l1_loss,
    torch.pairwise_distance: pairwise_distance,
    torch.channel_shuffle: channel_shuffle,
    torch.native_channel_shuffle: channel_shuffle,
    F.multi_head_attention_forward: called_attention,
    multi_head_attention_forward: attention_body,
}


def opened(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function that stands for this call of another, in operators that have rules."""
    if function is F.batch_norm:
        statistics = args[1] if len(args) > 1 else kwargs.get("running_mean")
        training = args[5] if len(args) > 5 else kwargs.get("training", False)
        return batch_norm if statistics is None and training else None  # else an error, which PyTorch explains
    return OPENED.get(function)
