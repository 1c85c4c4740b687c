"""Factors that code reckons from a width, in the ways in which they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promises import check_cut, only_plain_operators
from specimen import Net
from torch import Tensor, nn

import hfp
from hfp.proof.verify import random_keeps

HEADS, DIM, STREAM = 4, 8, 24
Form = Callable[[Any, Tensor, Tensor], Tensor]

FOLLOWED: dict[str, Form] = {
    "attribute": lambda net, q, k: q @ k.mT * net.dim**-0.5,
    "read": lambda net, q, k: q @ k.mT / math.sqrt(q.size(-1)),
    "before": lambda net, q, k: (q / q.size(-1) ** 0.25) @ (k / k.size(-1) ** 0.25).mT,
    "mul_": lambda net, q, k: (q @ k.mT).mul_(net.dim**-0.5),
    "mul_, as a statement": lambda net, q, k: stated(q @ k.mT, net.dim**-0.5),
    "augmented": lambda net, q, k: augmented(q @ k.mT, net.dim**0.5),
    "a tensor": lambda net, q, k: q @ k.mT / torch.sqrt(torch.tensor(k.size(-1), dtype=q.dtype)),
    "a tensor of float32": lambda net, q, k: q @ k.mT / torch.tensor(net.dim**0.5),
    "a tensor on the device": lambda net, q, k: q @ k.mT * torch.tensor(net.dim, device=q.device).rsqrt(),
    "a moved tensor": lambda net, q, k: q @ k.mT * torch.tensor([net.dim**-0.5]).to(q),
    "new_tensor": lambda net, q, k: q @ k.mT * q.new_tensor(net.dim**-0.5),
    "full": lambda net, q, k: q @ k.mT * torch.full((1,), net.dim**-0.5, dtype=q.dtype),
    "ones": lambda net, q, k: q @ k.mT * (q.new_ones(()) / q.size(-1)),
    "scale=": lambda net, q, k: F.scaled_dot_product_attention(q, k, k, scale=1 / net.dim),
}
WHOLE: dict[str, Form] = {
    "a sum": lambda net, q, k: q @ k.mT * (1 + 1 / net.dim),
    "added": lambda net, q, k: q @ k.mT + 1 / net.dim,
    "limit": lambda net, q, k: (q @ k.mT).clamp(max=net.dim / 8),
    "alpha=": lambda net, q, k: scores_by_alpha(q, k, net.dim**-0.5),
    "a factor of einsum": lambda net, q, k: torch.einsum("bhid,bhjd,->bhij", q, k, torch.tensor(1 / net.dim).to(q)),
}


def stated(scores: Tensor, factor: float) -> Tensor:
    scores.mul_(factor)
    return scores


def augmented(scores: Tensor, factor: float) -> Tensor:
    scores /= factor
    return scores


def scores_by_alpha(q: Tensor, k: Tensor, alpha: float) -> Tensor:
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=alpha)
    return scores.unflatten(0, q.shape[:2])


class Scored(nn.Module):
    """Heads, of which the scores are the output of attention."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.heads, self.dim = form, HEADS, DIM
        self.embed, self.q, self.k = nn.Linear(6, STREAM), nn.Linear(STREAM, 32), nn.Linear(STREAM, 32)
        self.head = nn.Linear(STREAM, 3)
        self.mix = nn.LazyLinear(STREAM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k = (layer(x).view(*x.shape[:2], self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k))
        return self.head(x + self.mix(self.form(self, q, k).transpose(1, 2).flatten(2)))


def scored(form: Form) -> tuple[Scored, Tensor]:
    torch.manual_seed(0)
    model, x = Scored(form).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    model(x)
    return model, x


@pytest.mark.parametrize("form", FOLLOWED)
def test_a_power_of_a_width_is_followed(form: str) -> None:
    model, x = scored(FOLLOWED[form])
    table = hfp.trace(model, x)
    assert {HEADS, DIM, STREAM} <= {group.width for group in table.groups}
    for keep in random_keeps(table, 3):
        with only_plain_operators():
            check_cut(model, table, keep, ((x,), {}), 1e-7)  # some of the factors are float32


@pytest.mark.parametrize("form", WHOLE)
def test_what_it_would_change_otherwise_stays_whole(form: str) -> None:
    model, x = scored(WHOLE[form])
    table = hfp.trace(model, x)
    assert DIM not in {group.width for group in table.groups}
    assert hfp.verify(model, table) < 1e-5


class Biased(nn.Module):
    """Its keys have no bias, as those of a Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(5, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias.clone()
        size = bias.numel() // 3
        bias[size : 2 * size].zero_()
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.head(q * k + v)


def test_a_number_that_is_known_only_where_one_is_left_is_no_other_number() -> None:
    table = hfp.trace(Biased(), torch.zeros(2, 5))
    assert [group.width for group in table.groups] == [6]
    assert hfp.verify(Biased(), table) < 1e-5


class Limited(nn.Module):
    """With an upper limit, but where it has all its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.head(h.clamp(min=-9.0, max=None if h.shape[1] == 8 else 0.0))


def test_what_is_not_a_number_is_itself() -> None:
    def run(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        h = net.a(x).relu()
        scale = torch.logdet(net.w)  # made of `where(sign == -1, nan, logarithm)`
        return net.b(h), scale

    model = Net(run, a=nn.Linear(4, 32), b=nn.Linear(32, 2), w=nn.Parameter(torch.eye(3)))
    assert hfp.trace(model, torch.randn(3, 4)).channels == 32


def test_a_number_instead_of_none_is_another_number() -> None:
    table = hfp.trace(Limited(), torch.zeros(2, 5))
    assert not table.groups
