"""Blocks of random networks that attend: projections, kernels, positions and code styles, drawn independently.

Every block maps an image of `draw.width` channels to one of the width that it leaves. Sizes in the code come as
attributes, reckoned from attributes, in a config, as -1, or as plain numbers, which nobody can change.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from specimen import Net, parameter
from torch import Tensor, nn

if TYPE_CHECKING:
    from generator import Draw

Run = Callable[[Any, Tensor], Tensor]


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


def joined(draw: Draw, net: Net) -> Net:
    """`net`, which maps tokens to tokens of the same width: alone, added to its input, or scaled and added."""
    kind, net.inner_run = draw.random.choice(("alone", "added", "added", "scaled")), net.run
    net.gamma = parameter(draw.width) if kind == "scaled" else None

    def run(net: Any, x: Tensor) -> Tensor:
        y = net.inner_run(net, tokens_of(x))
        y = y * net.gamma if kind == "scaled" else y
        return image_of(y, x) if kind == "alone" else x + image_of(y, x)

    net.run = run
    return net


def token_norm(draw: Draw, width: int) -> nn.Module:
    kinds = (nn.Identity(), nn.LayerNorm(width), nn.LayerNorm(width, bias=False), nn.RMSNorm(width))
    return draw.random.choice(kinds)


# ---------------------------------------------------------------------------------------------- attention


def weights_times_values(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * net.scale + net.bias).softmax(-1) @ v


def fused_kernel(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def fused_kernel_with_mask(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = net.bias.expand(-1, q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=net.scale)


def causal_kernel(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=net.scale)


def einsums(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q * net.scale, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def cosines(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return (scores * net.bias.exp()).softmax(-1) @ v


def between_channels(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = F.normalize(q.mT, dim=-1), F.normalize(k.mT, dim=-1), v.mT
    return ((q @ k.mT * net.bias).softmax(-1) @ v).mT


def keys_meet_values_first(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def batches_of_heads(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, _ = q.shape
    q, k, v = (t.reshape(b * h, n, -1) for t in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(net.scale).softmax(-1), v).view(b, h, n, -1)


KERNELS = (
    weights_times_values, fused_kernel, fused_kernel_with_mask, causal_kernel, einsums, cosines, between_channels,
    keys_meet_values_first, batches_of_heads,
)  # fmt: skip


def projections(draw: Draw, net: Net, heads: int, kv: int, dim: int) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
    """Gives `net` its projections; the function that makes queries, keys and values, (batch, heads, tokens, dim)."""
    style = draw.random.choice(("fused", "inside", "chunked", "apart", "apart")) if kv == heads else "apart"
    sizes = draw.random.choice(("attributes", "attributes", "rest", "rest", "literal", "reckoned", "config"))
    net.config = SimpleNamespace(heads=heads, kv=kv, dim=dim)
    if style == "apart":
        for name, count in (("q", heads), ("k", kv), ("v", kv)):
            setattr(net, name, nn.Linear(draw.width, count * dim, bias=draw.random.random() < 0.7))
    else:
        net.qkv = nn.Linear(draw.width, 3 * heads * dim, bias=draw.random.random() < 0.7)

    def split(net: Any, t: Tensor, count: int, attribute: str) -> Tensor:
        if sizes == "literal":
            return t.view(t.shape[0], -1, count, dim).transpose(1, 2)
        if sizes == "rest":
            return t.unflatten(-1, (getattr(net, attribute), -1)).transpose(1, 2)
        if sizes == "reckoned":
            return t.view(*t.shape[:2], getattr(net, attribute), net.inner // net.heads).transpose(1, 2)
        said = net.config if sizes == "config" else net
        return t.reshape(*t.shape[:2], getattr(said, attribute), said.dim).permute(0, 2, 1, 3)

    def make(net: Any, x: Tensor) -> tuple[Tensor, ...]:
        if style == "apart":
            q, k, v = (split(net, net.q(x), heads, "heads"), *(split(net, p(x), kv, "kv") for p in (net.k, net.v)))
            if kv == heads:
                return q, k, v
            spread = lambda t: t.repeat_interleave(net.repeats, dim=1) if sizes == "rest" else repeat_kv(net, t)  # noqa: E731
            return q, spread(k), spread(v)
        if style == "chunked":
            return tuple(split(net, t, heads, "heads") for t in net.qkv(x).chunk(3, dim=-1))
        h, d = (heads, dim) if sizes == "literal" else (net.heads, -1 if sizes == "rest" else net.dim)
        if style == "inside":
            return (
                net.qkv(x).reshape(*x.shape[:2], h, 3 * dim if d == dim else 3 * net.dim).transpose(1, 2).chunk(3, -1)
            )
        return net.qkv(x).reshape(*x.shape[:2], 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)

    return make


def repeat_kv(net: Any, t: Tensor) -> Tensor:
    b, h, n, d = t.shape
    return t[:, :, None].expand(b, h, net.repeats, n, d).reshape(b, h * net.repeats, n, d)


def rotated(net: Any, t: Tensor) -> Tensor:
    turns = torch.outer(torch.arange(t.shape[2], dtype=t.dtype), net.frequencies)
    if net.neighbours:
        turns, pairs = turns.repeat_interleave(2, -1), t.unflatten(-1, (-1, 2))
        turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
        return t * turns.cos() + turned * turns.sin()
    turns = torch.cat((turns, turns), -1)
    left, right = t.chunk(2, -1)
    return t * turns.cos() + torch.cat((-right, left), -1) * turns.sin()


def attention(draw: Draw) -> nn.Module:
    heads, dim = draw.random.choice((1, 2, 3, 4, 4)), draw.random.choice((2, 3, 4, 4, 6))
    kv = heads if draw.random.random() < 0.6 else draw.random.choice([n for n in (1, 2) if heads % n == 0])
    kernel, position = draw.random.choice(KERNELS), draw.random.choice(("none", "none", "rotary", "normed"))
    net = Net(
        None, norm=token_norm(draw, draw.width), bias=parameter(heads, 1, 1), proj=nn.Linear(heads * dim, draw.width)
    )  # type: ignore[arg-type]
    net.heads, net.kv, net.dim, net.repeats, net.scale, net.inner = heads, kv, dim, heads // kv, dim**-0.5, heads * dim
    make, merge = (
        projections(draw, net, heads, kv, dim),
        draw.random.choice(("flatten", "rest", "attribute", "literal")),
    )
    if position == "normed":
        net.q_norm, net.k_norm = draw.random.choice((nn.LayerNorm, nn.RMSNorm))(dim), nn.LayerNorm(dim)
    if position == "rotary" and dim % 2 == 0:
        net.neighbours = draw.random.random() < 0.5
        net.register_buffer("frequencies", 10.0 ** -torch.arange(dim // 2))

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = make(net, net.norm(x))
        if position == "normed":
            q, k = net.q_norm(q), net.k_norm(k)
        if position == "rotary" and dim % 2 == 0:
            q, k = rotated(net, q), rotated(net, k)
        out = kernel(net, q, k, v).transpose(1, 2)
        if merge == "flatten":
            return net.proj(out.flatten(2))
        last = {"rest": -1, "attribute": net.inner, "literal": heads * dim}[merge]
        return net.proj(out.reshape(*x.shape[:2], last))

    net.run = run
    return joined(draw, net)


def packed_attention(draw: Draw) -> nn.Module:
    """nn.MultiheadAttention, or a whole layer of it."""
    heads = draw.random.choice((1, 2, 3))
    first = draw.to(heads * draw.random.choice((2, 3, 4)))
    width, before = draw.width, draw.random.random() < 0.5
    if draw.random.random() < 0.5:
        mix: nn.Module = nn.MultiheadAttention(width, heads, batch_first=True)
        net = Net(lambda net, x: net.mix(x, x, x, need_weights=before)[0], mix=mix)
    else:
        hidden = draw.new_width()
        mix = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, batch_first=True, norm_first=before)
        net = Net(lambda net, x: net.mix(x), mix=mix)
    return nn.Sequential(first, joined(draw, net))


def windows(draw: Draw) -> nn.Module:
    """Attention inside of rolled windows of a literal size, with a bias table."""
    heads, dim = draw.random.choice((2, 3)), draw.random.choice((2, 4))
    index = torch.randint(0, 9, (16, 16))

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(8, 8)).roll((-2, -2), (2, 3))
        b, c = x.shape[:2]
        t = x.reshape(b, c, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, 16, c)
        q, k, v = net.qkv(net.norm(t)).reshape(b * 4, 16, 3, net.heads, net.dim).permute(2, 0, 3, 1, 4)
        bias = net.table[net.index.flatten()].view(16, 16, -1).permute(2, 0, 1)
        t = net.proj((q @ k.mT * net.scale + bias).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        return x + t.view(b, 2, 2, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, 8, 8).roll((2, 2), (2, 3))

    layers = {"qkv": nn.Linear(draw.width, 3 * heads * dim), "proj": nn.Linear(heads * dim, draw.width)}
    net = Net(run, norm=token_norm(draw, draw.width), table=parameter(9, heads), **layers)
    net.heads, net.dim, net.scale = heads, dim, dim**-0.5
    net.register_buffer("index", index)
    return net


def attention_over_pooled_channels(draw: Draw) -> nn.Module:
    """Mean and largest channel give each pixel a weight."""
    statistics = draw.random.choice((
        lambda x: [x.mean(1, keepdim=True), x.amax(1, keepdim=True)],
        lambda x: [x.sum(1, keepdim=True), x.norm(dim=1, keepdim=True)],
        lambda x: [x.var(1, keepdim=True, unbiased=False), x.logsumexp(1, keepdim=True)],
    ))  # fmt: skip
    run = lambda net, x: x * net.mix(torch.cat(statistics(x), 1)).sigmoid()  # noqa: E731
    return Net(run, mix=nn.Conv2d(2, 1, 3, padding=1))
