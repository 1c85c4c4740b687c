"""Multi-head attention in plain operators: `nn.MultiheadAttention` insists on heads that add up to its width.

Same state, same call, same results; but any number of heads of any width may be left. `hfp.tracing.opened` takes
PyTorch's own function apart into this one, and a module that was cut is of the class here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function


def attention_body(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `torch.nn.functional.multi_head_attention_forward`, but `embed_dim_to_check` is not looked at.

    Tensors are (tokens, batch, width), or without a batch. NotImplementedError for static keys.
    """
    if static_k is not None or static_v is not None:
        raise NotImplementedError("static keys of multi_head_attention_forward cannot be cut")
    batched = query.dim() == 3
    inputs = (query, key, value) if batched else tuple(x.unsqueeze(1) for x in (query, key, value))
    if use_separate_proj_weight:
        q, k, v = _projected(inputs, (q_proj_weight, k_proj_weight, v_proj_weight), in_proj_bias)
    elif query is key and key is value:
        q, k, v = F.linear(inputs[0], in_proj_weight, in_proj_bias).chunk(3, -1)  # type: ignore[arg-type]
    else:
        assert in_proj_weight is not None
        q, k, v = _projected(inputs, in_proj_weight.chunk(3), in_proj_bias)
    tokens = k.size(0)
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, learned.expand(1, x.size(1), -1)]) for x, learned in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
    # (batch, heads, tokens, width of a head)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    if is_causal and (attn_mask is None or (key_padding_mask is None and not need_weights)):
        # Then PyTorch takes the hint at its word, also for the keys that were added.
        attn_mask, tokens = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).triu(1), k.size(2)
    mask = _mask(q, k, tokens, attn_mask, key_padding_mask)
    dropout = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = scaled_scores(q, k)
        weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout, training)
        out = torch.matmul(weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return out if batched else out.squeeze(1), weights


def multi_head_attention_forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    """`attention_body`, as one function for those who follow functions (`torch.overrides`)."""
    tensors = (query, key, value)
    if has_torch_function(tensors):
        return handle_torch_function(multi_head_attention_forward, tensors, *tensors, *args, **options)
    return attention_body(*tensors, *args, **options)


def scaled_scores(query: Tensor, key: Tensor) -> Tensor:
    """The scores of attention (..., queries, keys), scaled by the width of a head: one function, with a name."""
    if has_torch_function((query, key)):
        scores: Tensor = handle_torch_function(scaled_scores, (query, key), query, key)
        return scores
    return torch.matmul(query * query.size(-1) ** -0.5, key.transpose(-2, -1))


def _projected(inputs: Any, weights: Any, bias: Tensor | None) -> tuple[Tensor, ...]:
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(x, weight, b) for x, weight, b in zip(inputs, weights, biases, strict=True))


def _mask(q: Tensor, k: Tensor, tokens: int, attn: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """What is added to the scores (batch, heads, queries, keys), by masks for the first `tokens` of the keys."""
    attn, padding = (_added(mask, q.dtype) for mask in (attn, padding))
    if tokens < k.size(2):  # those behind are never hidden
        attn, padding = (None if mask is None else F.pad(mask, (0, k.size(2) - tokens)) for mask in (attn, padding))
    if attn is not None and attn.dim() == 3:  # (batch * heads, queries, keys)
        attn = attn.unflatten(0, (q.size(0), -1))
    if padding is None:
        return attn
    padding = padding.reshape(-1, 1, 1, k.size(2))
    return padding if attn is None else attn + padding


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask in which True stands for what is hidden, as numbers that are added to scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


class MultiheadAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` of which some channels have been removed: a dense layer, with the same state."""

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False: PyTorch's fused layers, which ask for this, count on heads that add up to the width."""
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, _: bool) -> None: ...

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As that of `nn.MultiheadAttention`."""
        # First of all, as `nn.MultiheadAttention` does it: a cut network is to run the operators of the dense one.
        key_padding_mask, attn_mask = (_added(mask, query.dtype) for mask in (key_padding_mask, attn_mask))
        first = self.batch_first and query.dim() == 3
        if first and query is key and key is value:
            query = key = value = query.transpose(1, 0)
        elif first and key is value:
            query, key = query.transpose(1, 0), key.transpose(1, 0)
            value = key
        elif first:
            query, key, value = (x.transpose(1, 0) for x in (query, key, value))
        out, weights = multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=self.in_proj_weight is None,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (out.transpose(1, 0) if first else out), weights
