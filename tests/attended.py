"""The network around attention in the specimens: embedding, attention beside a shortcut, head. See `specimen.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from specimen import Net, Specimen
from torch import Tensor, nn

TOKENS = ((2, 5, 7),)
STREAM = "embed proj head.weight/1"
"""The residual stream, in all of `attended`."""
FUSED = f"{STREAM} qkv qkv.weight/1 proj.weight/1"
"""The stream, and heads or head dimensions or both of a fused projection."""
APART = f"{STREAM} q k v q.weight/1 k.weight/1 v.weight/1 proj.weight/1"
"""The same of three projections."""


class Size(NamedTuple):
    heads: int = 3
    dim: int = 4
    width: int = 24

    @property
    def inner(self) -> int:
        return self.heads * self.dim


DEFAULT, SIX_HEADS, NARROW, ALIKE = Size(), Size(6, 4, 26), Size(3, 4, 12), Size(4, 4, 16)
LARGER, TWO_HEADS = Size(4, 8, 26), Size(2, 4, 8)


def attended(run: Callable[[Any, Tensor], Tensor], s: Size, **parts: Any) -> Net:
    """Linear embed (7 -> width), `run` beside a shortcut, linear head, on tokens."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.embed(x)
        return net.head(h + run(net, h))

    features = 4 if s == ALIKE else 7
    parts = {"heads": s.heads, "dim": s.dim, "scale": s.dim**-0.5, **parts}
    parts.setdefault("proj", nn.Linear(s.inner, s.width))
    return Net(forward, embed=nn.Linear(features, s.width), head=nn.Linear(s.width, 6), **parts)


def fused(s: Size) -> dict[str, Any]:
    return {"qkv": nn.Linear(s.width, 3 * s.inner)}


def apart(s: Size, kv_heads: int = 0) -> dict[str, Any]:
    kv = (kv_heads or s.heads) * s.dim
    return {"q": nn.Linear(s.width, s.inner), "k": nn.Linear(s.width, kv), "v": nn.Linear(s.width, kv)}


def weighed(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v


def qkv_of(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, n, _ = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


def merged(net: Any, out: Tensor) -> Tensor:
    return net.proj(out.transpose(1, 2).flatten(2))


def alike(specimen: Specimen) -> Specimen:
    """The same with batch, tokens, features, heads and head dimension all 4."""
    build = partial(specimen.build, ALIKE)
    return replace(specimen, name=f"{specimen.name}_alike", build=build, shapes=((4, 4, 4),))
