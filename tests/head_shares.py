"""Attention whose code reckons sizes off the width of its input, `c // heads` and `3 * c`. See `specimen.py`.

The stream is to lose what the heads and their dimensions do, or the share would not be that of a head any more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from attended import FUSED, NARROW, STREAM, TOKENS, Size, alike, apart, attended, fused
from specimen import Net, parameter, registry
from torch import Tensor, nn

SHARES, specimen = registry()
WIDE = Size(4, 8, 32)
"""In smaller ones other powers of other widths are as large by chance."""
APART = "embed q k v q.weight/1 k.weight/1 v.weight/1 proj proj.weight/1 head.weight/1"


@specimen(shapes=TOKENS, least=FUSED)
def merged_by_what_is_left(s: Size = NARROW) -> Net:
    """As in timm's, but that only the split says that the heads are as wide as the stream."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = net.qkv(x).reshape(b, n, 3, net.heads, c // net.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return net.proj(((q @ k.mT * net.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))

    return attended(run, s, **fused(s))


@specimen(shapes=((2, 8, 7),), least="embed head.weight/1 one.qkv one.proj.weight/1 two.qkv two.proj.weight/1")
def blocks_with_a_scale_for_each_head() -> Net:
    """As in Swin Transformer V2: heads are counted by what is not split off the stream as well."""

    def attention(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        bias = net.qkv.bias.clone()
        length = bias.numel() // 3
        bias[length : 2 * length].zero_()
        qkv = torch.nn.functional.linear(x, net.qkv.weight, bias)
        q, k, v = qkv.reshape(b, n, 3, net.heads, c // net.heads).permute(2, 0, 3, 1, 4)
        scores = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
        scores = scores * net.temperature.exp() + net.table(net.places.to(x)).view(-1, net.heads).mean(0).view(-1, 1, 1)
        return x + net.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def block() -> Net:
        parts = {"temperature": parameter(3, 1, 1), "table": nn.Linear(2, 3), "places": torch.randn(5, 2)}
        return Net(attention, heads=3, qkv=nn.Linear(96, 288), proj=nn.Linear(96, 96), **parts)

    run = lambda net, x: net.head(net.two(net.one(net.embed(x))))  # noqa: E731
    return Net(run, embed=nn.Linear(7, 96), one=block(), two=block(), head=nn.Linear(96, 6))


@specimen(shapes=TOKENS, least=APART)
def three_that_are_flattened(s: Size = NARROW) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        split = lambda t: t.view(b, n, net.heads, c // net.heads).transpose(1, 2)  # noqa: E731
        q, k, v = split(net.q(x)), split(net.k(x)), split(net.v(x))
        return net.proj(((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return attended(run, s, **apart(s))


@specimen(shapes=TOKENS, least=FUSED)
def with_a_literal_number_of_heads() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (t.view(b, n, 3, c // 3).transpose(1, 2) for t in net.qkv(x).chunk(3, -1))
        return net.proj(((q @ k.mT * net.scale).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return attended(run, NARROW, **fused(NARROW))


@specimen(shapes=TOKENS, least=FUSED)
def queries_scaled_by_it() -> Net:
    """The split asks for nothing: the factor alone says what is to be as wide as what."""

    def run(net: Any, x: Tensor) -> Tensor:
        c = x.shape[-1]
        q, k, v = (t.unflatten(-1, (net.heads, -1)).transpose(1, 2) for t in net.qkv(x).chunk(3, -1))
        return net.proj((((q * (c // net.heads) ** -0.5) @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return attended(run, WIDE, **fused(WIDE))


@specimen(shapes=TOKENS, least=APART)
def scores_divided_by_its_root() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, net.heads, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.proj(((q @ k.mT / math.sqrt(c // net.heads)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return attended(run, WIDE, **apart(WIDE))


@specimen(shapes=((2, 3, 8, 8),), least="stem proj qkv qkv.weight/1 proj.weight/1 head.weight/1")
def in_windows_as_wide_as_there_are_heads() -> Net:
    """As in MaxViT; nothing of the window goes with the heads."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).unflatten(3, (-1, net.window)).unflatten(2, (-1, net.window)).permute(0, 2, 4, 3, 5, 1)
        b, height, width, _, _, c = x.shape
        tokens = x.reshape(b * height * width, net.window * net.window, c)
        q, k, v = (t.unflatten(-1, (net.heads, -1)).transpose(1, 2) for t in net.qkv(tokens).chunk(3, -1))
        out = torch.einsum("bhij,bhjd->bhid", ((q * (c // net.heads) ** -0.5) @ k.mT).softmax(-1), v)
        out = net.proj(out.transpose(1, 2).flatten(2)).unflatten(1, (net.window, net.window))
        return net.head((x + out.unflatten(0, (b, height, width))).mean((1, 2, 3, 4)))

    parts = {"stem": nn.Conv2d(3, 16, 3, padding=1), "head": nn.Linear(16, 3)}
    return Net(run, window=4, heads=4, qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16), **parts)


@specimen(shapes=TOKENS, least=FUSED)
def projected_to_three_times_the_stream(s: Size = WIDE) -> Net:
    """As in windows that are shifted once for all three; what comes of them has the width of theirs."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = torch.roll(net.qkv(x).view(b, n, 3 * c), 1, 1)
        own = qkv.shape[-1] // 3
        q, k, v = qkv.reshape(b, n, 3, net.heads, own // net.heads).permute(2, 0, 3, 1, 4)
        return net.proj(((q @ k.mT * net.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, own))

    return attended(run, s, **fused(s))


@specimen(shapes=((2, 4, 4, 7),), least=f"{STREAM} v.weight/1 v")
def windows_around_each_pixel() -> Net:
    """As in VOLO: nine times the stream, each channel with its nine places beside each other."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, height, width, c = x.shape
        heads = net.heads
        v = torch.nn.functional.unfold(net.v(x).permute(0, 3, 1, 2), 3, padding=1)
        v = v.reshape(b, heads, c // heads, 9, height * width).permute(0, 1, 4, 3, 2)
        scores = net.scores(x).reshape(b, height * width, heads, 9, 9).permute(0, 2, 1, 3, 4).softmax(-1)
        out = (scores @ v).permute(0, 1, 4, 3, 2).reshape(b, c * 9, height * width)
        return net.proj(torch.nn.functional.fold(out, (height, width), 3, padding=1).permute(0, 2, 3, 1))

    return attended(run, WIDE, v=nn.Linear(32, 32), scores=nn.Linear(32, 4 * 81))


@specimen(shapes=TOKENS, least=FUSED)
def merged_by_an_attribute_of_its_own() -> Net:
    """As in Conformers of SpeechBrain: values have a head dimension of their own, as large as that of keys."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).view(len(x), -1, net.heads, net.dim * 3).transpose(1, 2).chunk(3, -1)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return net.proj(out.view(len(x), -1, net.own * net.heads))

    return attended(run, WIDE, own=8, **fused(WIDE))


@specimen(shapes=((2, 6, 7), (2, 5, 40)), least="embed norm_by norm_by.weight/1 head.weight/1 out")
def pooled_by_shares_of_the_input() -> Net:
    """Heads that share out the input have to stay; what else was tried meanwhile, for a norm, comes later."""

    def forward(net: Net, x: Tensor, text: Tensor) -> Tensor:
        share = text.size(2) // net.heads
        k, v = net.kv(text).unflatten(2, (2, net.heads, share)).transpose(1, 3).unbind(2)
        q = net.q(text[:, 0]).unflatten(1, (net.heads, share)).unsqueeze(2)
        pooled = torch.nn.functional.scaled_dot_product_attention(q, k, v).squeeze(2).flatten(1, 2)
        scale, shift = net.norm_by(net.out(pooled)).unsqueeze(1).chunk(2, -1)
        return net.head(net.norm(net.embed(x)) * (1 + scale) + shift)

    parts = {"embed": nn.Linear(7, 32), "norm": nn.LayerNorm(32, elementwise_affine=False), "head": nn.Linear(32, 3)}
    parts |= {"q": nn.Linear(40, 40), "kv": nn.Linear(40, 80), "out": nn.Linear(40, 32), "norm_by": nn.Linear(32, 64)}
    return Net(forward, heads=8, **parts)


@specimen(shapes=TOKENS, least=f"{STREAM} q k q.weight/1 fewer norm v.weight/1")
def keys_as_wide_as_what_they_are_made_of() -> Net:
    """One attribute says the width of all heads, which stay, and that of `fewer`: half of it is no half by chance."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        fewer = net.norm(net.fewer(x).mT.reshape(b, net.inner, -1).mT)
        q, k = (t.view(b, n, net.heads, net.inner // net.heads).transpose(1, 2) for t in (net.q(x), net.k(fewer)))
        v = net.v(fewer)
        return net.proj(sum((q[:, head] @ k[:, head].mT).softmax(-1) @ v for head in range(net.heads)))

    parts = {"q": nn.Linear(48, 24), "k": nn.Linear(24, 24), "v": nn.Linear(24, 48), "proj": nn.Linear(48, 48)}
    return attended(run, Size(2, 12, 48), inner=24, fewer=nn.Linear(48, 24), norm=nn.LayerNorm(24), **parts)


SHARES |= {f"{one.name}_alike": alike(one) for one in SHARES.values() if one.build.__defaults__}  # type: ignore[attr-defined]
