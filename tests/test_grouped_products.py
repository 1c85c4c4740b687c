"""Experts whose tokens are sorted and multiplied at once, as in the mixtures of transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from promises import check_cut, random_keep
from specimen import Net, parameter
from torch import Tensor, nn

from hfp import trace
from hfp.channels import ChannelTable

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="there is no such operator on CPUs"
)
X = torch.randn(5, 7)
EXPERTS = 3


def mixture(inner: int, width: int = 16) -> Net:
    """Two of three experts for every token; every second channel of the first product gates the one before it."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.first(x)
        weights, experts = net.router(h).softmax(-1).topk(2)
        order = experts.flatten().argsort()
        ends = F.one_hot(experts.flatten(), EXPERTS).sum(0).cumsum(0).to(torch.int32)
        made = torch._grouped_mm(h[order // 2], net.up.mT, offs=ends) + net.shift[experts.flatten()[order]]
        y = torch._grouped_mm(made[:, ::2] * made[:, 1::2].sigmoid(), net.down, offs=ends)
        y = y[order.argsort()].unflatten(0, (-1, 2)) * weights[:, :, None]
        return net.last(h + y.sum(1))

    weights = {"up": parameter(EXPERTS, 2 * inner, width), "down": parameter(EXPERTS, inner, width)}
    layers = {"first": nn.Linear(7, width), "router": nn.Linear(width, EXPERTS), "last": nn.Linear(width, 4)}
    return Net(run, shift=parameter(EXPERTS, 2 * inner), **weights, **layers)


def inner_width(table: ChannelTable) -> int:
    """Of how many parts, that go one by one, the inner channels are."""
    return sum(group.width for group in table.groups if ("down", 1) in group.members)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inner", [8, 24, 12])
def test_experts_are_cut_in_whole_sixteen_bytes(inner: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = mixture(inner)
    table = trace(model, X)
    assert inner_width(table) == inner // (4 if inner == 12 else 8)
    assert sum(group.width for group in table.groups if ("last.weight", 1) in group.members) == 2
    check_cut(model, table, random_keep(table, 0.5, torch.Generator().manual_seed(seed)), ((X,), {}), 1e-5)


def test_in_half_precision_experts_are_cut_in_whole_eights() -> None:
    assert inner_width(trace(mixture(24).bfloat16(), X.bfloat16())) == 3


def test_what_does_not_lie_side_by_side_is_cut_freely() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.last(torch._grouped_mm(net.first(x), net.up.mT, offs=torch.tensor([2, 5], dtype=torch.int32)))

    model = Net(run, first=nn.Linear(7, 16), up=parameter(2, 6, 16), last=nn.Linear(6, 4))
    table = trace(model, X)
    assert sorted(group.width for group in table.groups) == [2, 6]
    check_cut(model, table, torch.arange(8) % 3 > 0, ((X,), {}), 1e-5)
