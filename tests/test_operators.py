"""One function each between two convolutions: what it does to channels is exact, or they stay whole with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from promises import check_cut, measured, predicted, random_keep
from specimen import Net
from torch import Tensor, nn

from hfp import trace

LAST = torch.arange(4, -1, -1)
Function = Callable[[Tensor], Tensor]


def ramp(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


PRUNED: dict[str, Function] = {
    "cosine similarity": lambda h: h * F.cosine_similarity(h, h.flip(2), dim=1)[:, None],
    "pairwise distance": lambda h: h + F.pairwise_distance(h.mT, h.flip(2).mT)[:, None],
    "standard deviation": lambda h: h / h.std(1, keepdim=True),
    "norm": lambda h: h / torch.linalg.vector_norm(h, 1, 1, keepdim=True),
    "largest": lambda h: h / h.norm(float("inf"), 1, keepdim=True),
    "norm of all": lambda h: h / h.norm(),
    "maximum of all": lambda h: h / h.max(),
    "how large the largest is": lambda h: h / h.max(1, keepdim=True).values,
    "interpolation": lambda h: torch.lerp(h, h.flip(2), 0.3),
    "addcmul": lambda h: torch.addcmul(h, h, h.sigmoid(), value=0.5),
    "a choice by channel": lambda h: torch.where(h > 0, h, h * 0.1),
    "a choice by place": lambda h: torch.where(h.mean(1, keepdim=True) > 0, h, -h),
    "sums along places": lambda h: h.cumsum(2),
    "log of sums": lambda h: h - h.logsumexp(1, keepdim=True),
    "softmax": lambda h: h.softmax(1),
    "gram matrix": lambda h: (h @ h.mT).softmax(-1) @ h,
    "attention over places": lambda h: h @ (h.mT @ h).softmax(-1),
    "halves that swap": lambda h: torch.cat([-h.chunk(2, 1)[1], h.chunk(2, 1)[0]], 1),
    "gated halves": lambda h: torch.cat([F.glu(h, 1)] * 2, 1),
    "order turned round": lambda h: h.flip(1),
    "maxima beside means": lambda h: h * (h.mean(1, keepdim=True) + h.amax(1, keepdim=True)),
    "bound by the mean": lambda h: h.clamp(max=h.mean(1, keepdim=True)),
    "threshold": lambda h: F.threshold(h, 0.1, 0.2),
    "buckets": lambda h: h + torch.bucketize(h, torch.tensor([-0.5, 0, 0.5], dtype=h.dtype)),
    "scattered": lambda h: torch.zeros_like(h).scatter_add(2, LAST.expand_as(h), h),
    "gathered": lambda h: h.gather(2, LAST.expand_as(h)),
    "added at places": lambda h: torch.zeros_like(h).index_add(2, LAST, h),
    "places in order": lambda h: torch.take_along_dim(h, h.argsort(2), 2),
    "masked": lambda h: h.masked_fill(h.sum(1, keepdim=True) > 0, 0.3),
    "windows": lambda h: F.pad(h, (1, 1)).unfold(2, 3, 1).mean(-1),
    "pooled": lambda h: F.pad(F.lp_pool1d(h.abs() + 0.1, 2, 2, 1), (0, 1)),
    "resampled": lambda h: F.interpolate(h, 5, mode="linear"),
    "group norm": lambda h: F.group_norm(h, 3),
    "spectrum of places": lambda h: torch.fft.fft(h, dim=2).real,
    "inverse": lambda h: h @ torch.linalg.inv(h.mT @ h + torch.eye(5, dtype=h.dtype)),
    "parts turned round": lambda h: torch.cat(torch.tensor_split(h, 3, 1)[::-1], 1),
    "repeated and averaged": lambda h: h[:, :, None].expand(-1, -1, 2, -1).mean(2),
    "cross product of places": lambda h: F.pad(torch.linalg.cross(h[..., :3], h[..., 2:], dim=2), (1, 1)),
    "ramp": lambda h: h * torch.arange(5.0).to(h),
}

WHOLE: dict[str, Function] = {
    "median": lambda h: h - h.median(1, keepdim=True).values,
    "sums along channels": lambda h: h.cumsum(1),
    "the best three": lambda h: h * (h >= h.topk(3, 1).values[:, -1:]),
    "sorted": lambda h: h.sort(1).values,
    "rolled": lambda h: h.roll(1, 1),
    "differences": lambda h: F.pad(h.diff(dim=1), (0, 0, 0, 1)),
    "product of all": lambda h: h * h.prod(1, keepdim=True),
    "how many": lambda h: h * (h > 0).sum(1, keepdim=True),
    "beside each other": lambda h: F.local_response_norm(h, 3),
    "a width that is written out": lambda h: F.layer_norm(h.mT, (12,)).mT,
    "spectrum of channels": lambda h: torch.fft.fft(h, dim=1).real,
    "solved for": lambda h: torch.linalg.solve_triangular(torch.eye(12).to(h) * 2, h, upper=True),
    "without a rule": lambda h: h * torch.linalg.svdvals(h)[:, :1, None],
    "fixed positions": lambda h: torch.cat([h.narrow(1, 4, 8), h.narrow(1, 0, 4)], 1),
    "which is the largest": lambda h: h * h.max(1, keepdim=True).indices,
    "no places": lambda h: h + h[0, :, 0].gather(0, torch.zeros(2, 0, dtype=torch.long)).sum(),
    "the least of norms": lambda h: h * torch.linalg.vector_norm(h, -1, 1, keepdim=True),
    "added to a product of constants": lambda h: torch.baddbmm(h, ramp(4, 12, 3), ramp(4, 3, 5)),
    "channels that ask in order": lambda h: F.scaled_dot_product_attention(h, ramp(7, 5), ramp(7, 5), is_causal=True),
    "summed to a size": lambda h: h * h.sum_to_size(4, 12, 1),
    "a mean by counting": lambda h: h - h.sum(1, keepdim=True) / torch.ones(h.shape).sum(1, keepdim=True),
    "cross product of channels": lambda h: torch.linalg.cross(h[:, 0::4], h[:, 1::4], dim=1).repeat(1, 4, 1),
    "one by one": lambda h: torch.stack(h.unbind(1)[::-1], 1),
}


def network(function: Function) -> Net:
    torch.manual_seed(0)
    return Net(lambda net, x: net.b(function(net.a(x))), a=nn.Conv1d(6, 12, 1), b=nn.Conv1d(12, 3, 1)).double().eval()


@pytest.mark.parametrize("name", [*PRUNED, *WHOLE])
def test_functions(name: str) -> None:
    model = network({**PRUNED, **WHOLE}[name])
    inputs = ((torch.randn(4, 6, 5, dtype=torch.float64),), {})
    table = trace(model, inputs[0])
    assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
    if name in WHOLE:
        assert not table.channels and [row.count for row in table.pinned if row.tensor == "a.weight"] == [12]
        return
    draws = torch.Generator().manual_seed(0)
    for density in (0.0, 0.3, 0.6):
        check_cut(model, table, random_keep(table, density, draws), inputs, 1e-10)
    assert table.channels
