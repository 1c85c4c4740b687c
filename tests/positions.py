"""Attention to positions: turned queries and keys, biases of heads, masks, windows. See `specimen.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from attended import APART, DEFAULT, FUSED, LARGER, TOKENS, apart, attended, fused, merged, qkv_of, weighed
from specimen import Net, parameter, registry
from torch import Tensor, nn

POSITIONS, specimen = registry()


def rotate_half(x: Tensor) -> Tensor:
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-right, left), dim=-1)


def angles(n: int, dim: int) -> Tensor:
    return torch.outer(torch.arange(n, dtype=torch.float64), 100.0 ** -torch.arange(0, dim, 2).div(dim))


@specimen(shapes=TOKENS, least=FUSED)
def rotary_positions() -> Net:
    """As in Llama: cos and sin are buffers, dims i and i + d/2 are turned together."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        cos, sin = net.cos[: x.shape[1]].to(x), net.sin[: x.shape[1]].to(x)
        q, k = (t * cos + rotate_half(t) * sin for t in (q, k))
        return merged(net, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=net.scale))

    net = attended(run, DEFAULT, **fused(DEFAULT))
    turns = torch.cat([angles(8, 4)] * 2, -1)
    net.register_buffer("cos", turns.cos(), persistent=False)
    net.register_buffer("sin", turns.sin(), persistent=False)
    return net


@specimen(shapes=TOKENS, least=APART)
def rotary_positions_as_complex_numbers() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, net.heads, -1) for t in (net.q(x), net.k(x), net.v(x)))
        turns = torch.polar(torch.ones_like(net.angles), net.angles)[:n, None]
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2)) * turns).flatten(3)
            for t in (q, k)
        )
        return merged(net, weighed(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), net.scale))

    net = attended(run, DEFAULT, **apart(DEFAULT))
    net.register_buffer("angles", angles(8, 4))
    return net


def rotate_every_two(x: Tensor) -> Tensor:
    left, right = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((-right, left), dim=-1).flatten(-2)


@specimen(shapes=TOKENS, least=f"{FUSED} cos/1 sin/1")
def rotary_positions_of_neighbours() -> Net:
    """As in GPT-J: dims 2i and 2i + 1 are turned together, and merged where each pair was one axis."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        q, k = (t * net.cos[: x.shape[1]] + rotate_every_two(t) * net.sin[: x.shape[1]] for t in (q, k))
        return merged(net, weighed(q, k, v, net.scale))

    net = attended(run, DEFAULT, **fused(DEFAULT))
    turns = angles(8, 4).repeat_interleave(2, -1)
    net.register_buffer("cos", turns.cos())
    net.register_buffer("sin", turns.sin())
    return net


@specimen(shapes=TOKENS, least=f"{FUSED} qkv.weight/0")
def rotary_positions_of_some_neighbours() -> Net:
    """Turned by what is reckoned anew, so that heads alone can go; the first token, and half of a head, are not."""

    def turned(t: Tensor) -> Tensor:
        first, t = t[:, :, :1], t[:, :, 1:]
        t, rest = t[..., :4], t[..., 4:]
        turns = angles(t.shape[2], 4).to(t).repeat_interleave(2, -1)
        return torch.cat((first, torch.cat((t * turns.cos() + rotate_every_two(t) * turns.sin(), rest), -1)), 2)

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        return merged(net, weighed(turned(q), turned(k), v, net.scale))

    return attended(run, LARGER, **fused(LARGER))


@specimen(shapes=TOKENS, least=f"{FUSED} slopes/0")
def bias_of_each_head() -> Net:
    """As ALiBi with learned slopes."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        steps = torch.arange(x.shape[1])
        scores = q @ k.mT * net.scale - net.slopes * (steps[:, None] - steps).abs()
        return merged(net, scores.softmax(-1) @ v)

    return attended(run, DEFAULT, slopes=parameter(3, 1, 1), **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def bias_of_each_head_in_a_buffer() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        mask = net.slopes.view(1, -1, 1, 1) * torch.arange(x.shape[1], dtype=x.dtype) + net.causal[:5, :5]
        return merged(net, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=net.scale))

    net = attended(run, DEFAULT, **fused(DEFAULT))
    net.register_buffer("slopes", 2.0 ** -torch.arange(1, 4))
    net.register_buffer("causal", torch.full((8, 8), -1e9).triu(1))
    return net


@specimen(shapes=TOKENS, least=FUSED)
def causal_mask_in_a_buffer() -> Net:
    """As in GPT-2: `masked_fill` by a square of booleans."""

    def run(net: Any, x: Tensor) -> Tensor:
        n, (q, k, v) = x.shape[1], qkv_of(net, x)
        scores = (q @ k.transpose(-2, -1) * net.scale).masked_fill(~net.mask[:, :, :n, :n], float("-inf"))
        return merged(net, scores.softmax(-1) @ v)

    net = attended(run, DEFAULT, **fused(DEFAULT))
    net.register_buffer("mask", torch.ones(1, 1, 8, 8).tril().bool())
    return net


@specimen(shapes=TOKENS, least=f"{APART} table.weight/1")
def bias_of_relative_positions() -> Net:
    """As in T5: an embedding of distances, one column for each head."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, -1, net.heads, net.dim).transpose(1, 2) for t in (net.q(x), net.k(x), net.v(x)))
        steps = torch.arange(n)
        bias = net.table((steps[None] - steps[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1).unsqueeze(0)
        out = (q @ k.transpose(3, 2) + bias).softmax(-1) @ v
        return net.proj(out.transpose(1, 2).contiguous().view(b, -1, net.inner_dim))

    return attended(run, DEFAULT, inner_dim=12, table=nn.Embedding(7, 3), **apart(DEFAULT))


@specimen(shapes=((2, 8, 8, 7),), least=f"{FUSED} table/1")
def shifted_windows() -> Net:
    """As in Swin: windows of 4x4 in an image of 8x8 that is rolled, a table of positions with a column per head."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, height, width, c = x.shape
        x = torch.roll(x, shifts=(-2, -2), dims=(1, 2))
        x = x.view(b, height // 4, 4, width // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = qkv_of(net, x)
        bias = net.table[net.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        x = merged(net, (q * net.scale @ k.transpose(-2, -1) + bias).softmax(-1) @ v)
        x = x.view(b, height // 4, width // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(b, height, width, -1), shifts=(2, 2), dims=(1, 2))

    net = attended(run, DEFAULT, table=parameter(49, 3), **fused(DEFAULT))
    at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    apart = at[:, :, None] - at[:, None] + 3
    net.register_buffer("index", apart[0] * 7 + apart[1])
    return net
