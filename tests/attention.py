"""Attention in the coding styles that exist: how heads are split off, scored, shared and merged. See `specimen.py`.

Sizes of unrelated axes differ. Most specimens come a second time, `..._alike`, with batch = tokens = heads = head
dimension, where whoever goes by sizes takes one axis for another. What is around it: `attended.py`. Specimens in which
a position decides: `positions.py`; packed layers, and whole transformers: `attention_layers.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from attended import (
    ALIKE,
    APART,
    DEFAULT,
    FUSED,
    LARGER,
    NARROW,
    SIX_HEADS,
    STREAM,
    TOKENS,
    TWO_HEADS,
    Size,
    alike,
    apart,
    attended,
    fused,
    weighed,
)
from specimen import Net, parameter, registry
from torch import Tensor, nn

STYLES, specimen = registry()

# ---------------------------------------------------------------------------------------------- one fused projection


@specimen(shapes=TOKENS, least=FUSED)
def fused_qkv(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = net.qkv(x).reshape(b, n, 3, net.heads, net.dim).permute(2, 0, 3, 1, 4).unbind(0)
        return net.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, **fused(s))


@specimen(shapes=TOKENS, least=FUSED)
def fused_qkv_with_an_attribute_for_the_width(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = net.qkv(x).reshape(b, n, 3, net.heads, net.attn_dim // net.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=net.scale)
        return net.proj(out.transpose(1, 2).reshape(b, n, net.attn_dim))

    return attended(run, s, attn_dim=s.inner, **fused(s))


@specimen(shapes=TOKENS, least=APART)
def head_sizes_that_the_forward_reckons(s: Size = DEFAULT) -> Net:
    """Of attributes, once and again: nothing is as large as the size of a head."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        size = net.inner // net.heads
        q, k, v = (layer(x).view(b, n, net.heads, size).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.proj(weighed(q, k, v, 1 / size**0.5).transpose(1, 2).reshape(b, n, net.inner))

    return attended(run, s, inner=s.inner, **apart(s))


@specimen(shapes=TOKENS, least="embed head.weight/1 attention.q attention.k attention.v attention.proj.weight/1")
def sizes_in_a_config_that_is_shared(s: Size = DEFAULT) -> Net:
    """The network has it as well as the attention in it."""

    def attention(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        shape = (b, n, net.config.heads, net.config.inner // net.config.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (net.q, net.k, net.v))
        out = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return net.proj(out.transpose(1, 2).reshape(b, n, net.config.inner))

    config = SimpleNamespace(heads=s.heads, inner=s.inner)
    inner = Net(attention, config=config, proj=nn.Linear(s.inner, s.width), **apart(s))
    return attended(lambda net, x: net.attention(x), s, config=config, attention=inner, proj=nn.Identity())


@specimen(shapes=TOKENS)
def fused_qkv_with_the_width_of_its_input(s: Size = NARROW) -> Net:
    """heads * dim is written as the width of the stream: only what keeps both equal can be cut."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = net.qkv(x).reshape(b, n, 3, net.heads, c // net.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return net.proj((((q @ k.transpose(-2, -1)) * net.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    return attended(run, s, **fused(s))


@specimen(shapes=TOKENS, least=FUSED)
def chunked_qkv(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, net.heads, -1).transpose(1, 2) for t in net.qkv(x).chunk(3, -1))
        return net.proj(weighed(q, k, v, net.scale).transpose(1, 2).flatten(2))

    return attended(run, s, **fused(s))


@specimen(shapes=TOKENS, least=FUSED)
def qkv_split_by_an_attribute(s: Size = DEFAULT) -> Net:
    """As in GPT-2."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).split(net.inner, dim=2)
        q, k, v = (t.view((*t.shape[:-1], net.heads, net.dim)).permute(0, 2, 1, 3) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(0, 2, 1, 3).contiguous()
        return net.proj(out.view(out.size()[:-2] + (net.inner,)))

    return attended(run, s, inner=s.inner, **fused(s))


@specimen(shapes=TOKENS, least=f"{STREAM} qkv.weight/1", pinned={"qkv.weight": ""})
def qkv_in_literal_sizes() -> Net:
    """Nobody can change a number in the code; the stream does not meet it."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).reshape(-1, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
        return net.proj((q @ k.transpose(-2, -1) / 2).softmax(-1).matmul(v).transpose(1, 2).reshape(-1, 5, 12))

    return attended(run, DEFAULT, **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def qkv_with_a_literal_number_of_heads() -> Net:
    """The head dimension is what is left, and can shrink."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        return net.proj((q @ k.mT / 2).softmax(-1).matmul(v).transpose(1, 2).flatten(2))

    return attended(run, DEFAULT, **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def qkv_inside_each_head(s: Size = DEFAULT) -> Net:
    """Heads first, then q, k, v of each, as in GPT-NeoX."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).view(*x.shape[:2], net.heads, 3 * net.dim).transpose(1, 2).chunk(3, dim=-1)
        return net.proj(weighed(q, k, v, net.scale).transpose(1, 2).reshape(*x.shape[:2], -1))

    return attended(run, s, **fused(s))


@specimen(shapes=TOKENS, least=FUSED)
def heads_merged_with_the_batch(s: Size = DEFAULT) -> Net:
    """As in BLOOM: one bmm over batch * heads."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = net.qkv(x).view(b, n, net.heads, 3, net.dim)
        q = qkv[..., 0, :].transpose(1, 2).reshape(b * net.heads, n, net.dim)
        k = qkv[..., 1, :].permute(0, 2, 3, 1).reshape(b * net.heads, net.dim, n)
        v = qkv[..., 2, :].transpose(1, 2).reshape(b * net.heads, n, net.dim)
        out = torch.bmm(torch.softmax(q.bmm(k) * net.scale, -1), v).view(b, net.heads, n, net.dim)
        return net.proj(out.permute(0, 2, 1, 3).reshape(b, n, net.heads * net.dim))

    return attended(run, s, **fused(s))


@specimen(shapes=TOKENS, least=FUSED)
def keys_narrower_than_values(s: Size = DEFAULT) -> Net:
    """As in LeViT."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = net.qkv(x).view(b, n, net.heads, -1).split([net.key_dim, net.key_dim, net.dim], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        return net.proj(((q @ k * net.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, net.dim * net.heads))

    key_dim = s.dim - 1
    return attended(run, s, key_dim=key_dim, qkv=nn.Linear(s.width, s.heads * (2 * key_dim + s.dim)))


@specimen(shapes=TOKENS, least=FUSED.replace("qkv qkv.weight/1", "qkv/0 qkv/1"))
def bias_of_queries_and_values_only(s: Size = DEFAULT) -> Net:
    """As in BEiT: the bias is put together in every forward."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = torch.cat((net.q_bias, torch.zeros_like(net.v_bias, requires_grad=False), net.v_bias))
        qkv = F.linear(x, net.qkv, bias).reshape(b, n, 3, net.heads, -1).permute(2, 0, 3, 1, 4)
        return net.proj(weighed(qkv[0], qkv[1], qkv[2], net.scale).transpose(1, 2).reshape(b, n, -1))

    weights = {"qkv": parameter(3 * s.inner, s.width), "q_bias": parameter(s.inner), "v_bias": parameter(s.inner)}
    return attended(run, s, **weights)


if importlib.util.find_spec("einops"):
    from einops import einsum, rearrange
    from einops.layers.torch import Rearrange

    @specimen(shapes=TOKENS, least=FUSED)
    def rearranged_by_einops(s: Size = DEFAULT) -> Net:
        def run(net: Any, x: Tensor) -> Tensor:
            q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=net.heads) for t in net.qkv(x).chunk(3, dim=-1))
            out = (torch.matmul(q, k.transpose(-1, -2)) * net.scale).softmax(-1) @ v
            return net.proj(rearrange(out, "b h n d -> b n (h d)"))

        return attended(run, s, **fused(s))

    @specimen(shapes=TOKENS, least=FUSED)
    def split_by_einops(s: Size = DEFAULT) -> Net:
        def run(net: Any, x: Tensor) -> Tensor:
            q, k, v = rearrange(net.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=net.heads)
            scores = einsum(q, k, "b h i d, b h j d -> b h i j") * net.scale
            out = einsum(scores.softmax(-1), v, "b h i j, b h j d -> b h i d")
            return net.proj(rearrange(out, "b h n d -> b n (h d)"))

        return attended(run, s, **fused(s))

    @specimen(shapes=TOKENS, least=FUSED)
    def split_by_layers_of_einops(s: Size = DEFAULT) -> Net:
        """As in MONAI: the layers keep the number of heads."""

        def run(net: Any, x: Tensor) -> Tensor:
            q, k, v = net.split(net.qkv(x))
            return net.proj(net.join(((q @ k.transpose(-1, -2)) * net.scale).softmax(-1) @ v))

        split = Rearrange("b n (qkv l d) -> qkv b l n d", qkv=3, l=s.heads)
        return attended(run, s, **fused(s), split=split, join=Rearrange("b l n d -> b n (l d)"))


# ---------------------------------------------------------------------------------------------- three projections


class BertAttention(nn.Module):
    def __init__(self, s: Size, fixed_scale: bool) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = s.heads, s.dim, s.inner
        self.query, self.key, self.value = (nn.Linear(s.width, s.inner) for _ in range(3))
        self.scaling = s.dim**-0.5 if fixed_scale else None

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.transpose_for_scores(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2))
        scores = scores * self.scaling if self.scaling else scores / math.sqrt(self.attention_head_size)
        context = torch.matmul(nn.functional.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size()[:-2] + (self.all_head_size,))


BERT = f"{STREAM} att.query att.key att.value att.query.weight/1 att.value.weight/1 proj.weight/1"


@specimen(shapes=TOKENS, least=BERT)
def bert(s: Size = DEFAULT) -> Net:
    return attended(lambda net, x: net.proj(net.att(x)), s, att=BertAttention(s, fixed_scale=True))


@specimen(shapes=TOKENS, least=BERT)
def bert_scaled_by_its_head_size(s: Size = DEFAULT) -> Net:
    """Whoever changes attention_head_size changes the scale of the scores."""
    return attended(lambda net, x: net.proj(net.att(x)), s, att=BertAttention(s, fixed_scale=False))


@specimen(shapes=TOKENS, least=APART)
def scaled_by_the_size_of_the_queries(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, net.heads, -1).transpose(1, 2) for t in (net.q(x), net.k(x), net.v(x)))
        return net.proj(weighed(q, k, v, 1 / math.sqrt(q.size(-1))).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, **apart(s))


@specimen(shapes=TOKENS, least=APART)
def scaled_by_the_width_of_the_stream(s: Size = DEFAULT) -> Net:
    """Wu et al., 2021: not by that of a head, which is another."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (net.heads, -1)).transpose(1, 2) for t in (net.q(x), net.k(x), net.v(x)))
        scores = torch.einsum("bhlk,bhtk->bhlt", q, k) * x.shape[-1] ** -0.5
        return net.proj(torch.einsum("bhlt,bhtv->bhlv", scores.softmax(-1), v).transpose(1, 2).flatten(2))

    return attended(run, s, **apart(s))


@specimen(shapes=TOKENS, least=APART)
def einsum_of_heads_before_tokens(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, net.heads, net.dim).transpose(1, 2) for t in (net.q(x), net.k(x), net.v(x)))
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * net.scale).softmax(dim=-1)
        return net.proj(torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, **apart(s))


@specimen(shapes=TOKENS, least=APART)
def einsum_of_tokens_before_heads(s: Size = DEFAULT) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (net.heads, net.dim)) for t in (net.q(x), net.k(x), net.v(x)))
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * net.scale).softmax(-1)
        return net.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(-2))

    return attended(run, s, **apart(s))


@specimen(shapes=TOKENS, least=f"{STREAM} wq/1 wq/2 wk/1 wv/1 wv/2 wo/0 wo/1 wq/0".replace("proj", "wo/2"))
def weights_of_three_dimensions(s: Size = DEFAULT) -> Net:
    """Weights of shape (width, heads, dim), as in JAX."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (net.wq, net.wk, net.wv))
        return torch.einsum("bhnd,hdc->bnc", F.scaled_dot_product_attention(q, k, v, scale=net.scale), net.wo)

    weights = {name: parameter(s.width, s.heads, s.dim) for name in ("wq", "wk", "wv")}
    return attended(run, s, wo=parameter(s.heads, s.dim, s.width), proj=nn.Identity(), **weights)


@specimen(shapes=TOKENS, least=APART)
def sequence_first(s: Size = DEFAULT) -> Net:
    """As in fairseq: tokens, then batch merged with heads."""

    def run(net: Any, x: Tensor) -> Tensor:
        n, b, c = (x := x.transpose(0, 1)).size()
        q = (net.q(x) * net.scale).contiguous().view(n, b * net.heads, net.dim).transpose(0, 1)
        k, v = (t.contiguous().view(-1, b * net.heads, net.dim).transpose(0, 1) for t in (net.k(x), net.v(x)))
        out = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
        return net.proj(out.transpose(0, 1).contiguous().view(n, b, net.inner)).transpose(0, 1)

    return attended(run, s, inner=s.inner, **apart(s))


@specimen(shapes=TOKENS, least=f"{STREAM} q k v q.weight/1 proj.weight/1")
def single_head(s: Size = DEFAULT) -> Net:
    run = lambda net, x: net.proj(weighed(net.q(x), net.k(x), net.v(x), net.scale))  # noqa: E731
    return attended(run, s, **apart(s))


@specimen(shapes=((2, 5, 7), (2, 6, 8)), least="embed memory q k v q.weight/1 k.weight/1 proj proj.weight/1")
def cross_attention() -> Net:
    def forward(net: Any, x: Tensor, y: Tensor) -> Tensor:
        h, m = net.embed(x), net.memory(y)
        q = net.q(h).view(2, -1, net.heads, net.dim).transpose(1, 2)
        k, v = (t.view(2, -1, net.heads, net.dim).transpose(1, 2) for t in (net.k(m), net.v(m)))
        out = F.scaled_dot_product_attention(q, k, v, scale=net.scale).transpose(1, 2).flatten(2)
        return net.head(h + net.proj(out))

    parts = {"q": nn.Linear(24, 12), "k": nn.Linear(10, 12), "v": nn.Linear(10, 12), "memory": nn.Linear(8, 10)}
    outer = {"embed": nn.Linear(7, 24), "proj": nn.Linear(12, 24), "head": nn.Linear(24, 6)}
    return Net(forward, heads=3, dim=4, scale=0.5, **parts, **outer)


# ---------------------------------------------------------------------------------------------- heads that share


def grouped(spread: Callable[[Any, Tensor], Tensor], s: Size, kv_heads: int) -> Net:
    """Queries of every head, keys and values of `kv_heads`, spread over the heads by `spread`."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = net.q(x).view(b, n, -1, net.dim).transpose(1, 2)
        k, v = (spread(net, t.view(b, n, -1, net.dim).transpose(1, 2)) for t in (net.k(x), net.v(x)))
        return net.proj(weighed(q, k, v, net.scale).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, kv_heads=kv_heads, repeats=s.heads // kv_heads, **apart(s, kv_heads))


@specimen(shapes=TOKENS, least=APART)
def grouped_query_by_expand(s: Size = SIX_HEADS) -> Net:
    """As in Llama."""

    def repeat_kv(net: Any, t: Tensor) -> Tensor:
        b, h, n, d = t.shape
        return t[:, :, None].expand(b, h, net.repeats, n, d).reshape(b, h * net.repeats, n, d)

    return grouped(repeat_kv, s, 2)


@specimen(shapes=TOKENS, least=APART)
def grouped_query_by_repeat_interleave(s: Size = SIX_HEADS) -> Net:
    return grouped(lambda net, t: t.repeat_interleave(net.repeats, dim=1), s, 2)


@specimen(shapes=TOKENS, least=APART)
def multi_query(s: Size = DEFAULT) -> Net:
    """All heads share the one head of keys and values."""
    return grouped(lambda net, t: t, s, 1)


@specimen(shapes=TOKENS, least=STREAM)
def grouped_query_inside_of_sdpa() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (t.view(*x.shape[:2], -1, net.dim).transpose(1, 2) for t in (net.q(x), net.k(x), net.v(x)))
        return net.proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))

    return attended(run, SIX_HEADS, **apart(SIX_HEADS, 2))


@specimen(shapes=TOKENS, least=APART)
def grouped_query_by_five_dimensions() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = net.q(x).view(b, n, net.kv_heads, -1, net.dim)
        k, v = (t.view(b, n, net.kv_heads, net.dim) for t in (net.k(x), net.v(x)))
        weights = (torch.einsum("bnhgd,bmhd->bhgnm", q, k) * net.scale).softmax(-1)
        return net.proj(torch.einsum("bhgnm,bmhd->bnhgd", weights, v).flatten(2))

    return attended(run, SIX_HEADS, kv_heads=2, **apart(SIX_HEADS, 2))


@specimen(shapes=TOKENS, least=APART)
def retention_with_a_norm_of_each_head(s: Size = LARGER) -> Net:
    """Half of the heads and half of each head are the same share: the factor is of the latter. As in a RetNet."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, net.heads, net.dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        out = (q @ k.mT * net.dim**-0.5) @ v
        return net.proj(net.norm(out.transpose(1, 2).reshape(b * n, -1)).view(b, n, -1))

    return attended(run, s, norm=nn.GroupNorm(s.heads, s.inner), **apart(s))


@specimen(shapes=TOKENS, least=APART)
def scaled_by_the_stream_which_is_as_wide_as_all_heads(s: Size = TWO_HEADS) -> Net:
    """Where as much is left of both, only a cut of one alone tells which it is."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (layer(x).view(b, n, net.heads, net.dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.proj((q @ k.mT * d**-0.5 @ v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, **apart(s))


@specimen(shapes=((4, 4, 4),))
def scaled_by_a_size_of_heads_that_is_reckoned_from_the_stream() -> Net:
    """A quotient, rounded down: it cannot be followed."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (layer(x).view(b, n, net.heads, net.dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.proj((q @ k.mT * (d // net.heads) ** -0.5 @ v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, ALIKE, **apart(ALIKE))


@specimen(shapes=TOKENS)
def keys_of_fewer_tokens_and_a_width_read_off_the_stream() -> Net:
    """As in a Linformer. It stays whole so far, since each -1 takes up what does not fit."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, d = x.shape
        k, v = (torch.einsum("bnd,nk->bkd", t, net.fewer) for t in (net.k(x), net.v(x)))
        q, k, v = (t.reshape(b, -1, net.heads, d // net.heads).transpose(1, 2) for t in (net.q(x), k, v))
        weights = (torch.einsum("bhnd,bhkd->bhnk", q, k) * (d // net.heads) ** -0.5).softmax(-1)
        return net.proj(torch.einsum("bhnk,bhkd->bhnd", weights, v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, NARROW, fewer=parameter(5, 4), **apart(NARROW))


# ---------------------------------------------------------------------------------------------- all sizes alike


ALIKES = {f"{one.name}_alike": alike(one) for one in STYLES.values() if one.build.__defaults__}  # type: ignore[attr-defined]
ATTENTION = {**STYLES, **ALIKES}
