"""What removed channels are hidden behind: functions compute what they would if these were not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promises import check_cut, random_keep
from specimen import Net, conv
from torch import Tensor, nn

from hfp import trace
from hfp.cutting.surgery import compact
from hfp.gates import Readers, gated_forward
from hfp.labels import FIXED, Ask, Labels, Place
from hfp.tracing.operands import Operand, find, hide, with_periods
from hfp.tracing.position import Site

KEEP = torch.tensor([True, False, True, True, False, True])
GATE = KEEP.double()


def operand(how: str, argument: int = 0, axis: int = -1) -> Operand:
    return Operand(Site("block", 1, "function", 1), False, argument, axis, torch.arange(6), how)


REDUCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "mean": ("mean", lambda x: x.mean(-1)),
    "sum": ("zero", lambda x: x.sum(-1)),
    "norm": ("zero", lambda x: x.norm(dim=-1)),
    "abs sum": ("zero", lambda x: x.abs().sum(-1)),
    "max": ("lowest", lambda x: x.max(-1).values),
    "amax": ("lowest", lambda x: x.amax(-1)),
    "logsumexp": ("lowest", lambda x: x.logsumexp(-1)),
    "min": ("highest", lambda x: x.min(-1).values),
    "amin": ("highest", lambda x: x.amin(-1)),
    "squares": ("mean", lambda x: x.square().mean(-1)),
}
"""Functions that work across channels, what hides removed ones from them."""


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_those_of_what_is_left(name: str, shift: float) -> None:
    how, function = REDUCTIONS[name]
    x = torch.randn(3, 6, dtype=torch.float64) + shift
    if name == "squares":  # it is the square that is hidden from the mean
        x, function = x.square(), REDUCTIONS["mean"][1]
    (hidden,), _ = hide([operand(how)], [GATE], (x,), {})
    torch.testing.assert_close(function(hidden), function(x[:, KEEP]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_is_that_of_what_is_left(function: Any, dtype: torch.dtype) -> None:
    x = (10 * torch.randn(3, 6)).to(dtype)
    (hidden,), _ = hide([operand("lowest")], [GATE], (x,), {})
    assert torch.equal(function(hidden, -1)[:, KEEP], function(x[:, KEEP], -1))
    if function is F.softmax:
        assert not function(hidden, -1)[:, ~KEEP].any()


def test_channels_on_any_axis_of_any_argument() -> None:
    x, y = torch.randn(6, 2, 3), torch.randn(5)
    (first, pair), keywords = hide([operand("zero", 2, -3)], [GATE], (y, [y, x]), {"other": y})
    assert first is y and pair[0] is y and keywords["other"] is y
    assert torch.equal(pair[1], x * KEEP.reshape(6, 1, 1)) and pair[1].dtype == x.dtype
    _, keywords = hide([operand("zero", 1, -3)], [GATE], (y,), {"input": x})
    assert torch.equal(keywords["input"], x * KEEP.reshape(6, 1, 1))


def test_a_mean_over_two_axes() -> None:
    x, keep = torch.randn(2, 6, 4, dtype=torch.float64), torch.tensor([True, True, False, True])
    (hidden,), _ = hide([operand("mean", 0, -2), operand("mean", 0, -1)], [GATE, keep.double()], (x,), {})
    torch.testing.assert_close(hidden.mean((1, 2)), x[:, KEEP][:, :, keep].mean((1, 2)))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_its_default_scale(masked: bool) -> None:
    """The scale is one over the root of the width of a head: of what is left of it."""
    q, k, v = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    mask = torch.ones(5, 5).tril().bool() if masked else None
    operands = [operand("root", 0), operand("again", 1)]
    args, kwargs = hide(operands, [GATE, GATE], (q, k, v), {"attn_mask": mask})
    out = F.scaled_dot_product_attention(*args, **kwargs)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q[..., KEEP], k[..., KEEP], v, attn_mask=mask))


def test_open_gates_change_no_bit() -> None:
    x = torch.randn(3, 6)
    for how in ("zero", "again", "mean", "root", "lowest", "highest"):
        (hidden,), _ = hide([operand(how)], [torch.ones(6)], (x,), {})
        assert torch.equal(hidden, x)


def test_a_product_of_two_trains_its_gates_once() -> None:
    """d (g x) y / dg is x y, as for a weight; not 2 g x y."""
    x, y = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
    (a, b), _ = hide([operand("zero", 0), operand("again", 1)], [gate, gate], (x, y), {})
    (a @ b).backward()
    torch.testing.assert_close(gate.grad, x * y)


def test_the_share_of_a_mean_is_a_number_to_the_gates() -> None:
    """A gate of a mean learns what its channel adds, not what it takes from the others."""
    x, gate = torch.randn(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64, requires_grad=True)
    (hidden,), _ = hide([operand("mean")], [gate], (x,), {})
    hidden.mean().backward()
    torch.testing.assert_close(gate.grad, x / 6)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 5), torch.zeros(()), 3])
def test_other_arguments_than_in_the_trace(wrong: Any) -> None:
    with pytest.raises(RuntimeError, match="function in block gets other arguments; wrap the model with inputs"):
        hide([operand("zero")], [GATE], (wrong,), {})


def outer(x: Tensor) -> Tensor:
    v = x.flatten(2).mean(-1)
    return v[:, :, None] * v[:, None]


def cosines(x: Tensor) -> Tensor:
    f = x.flatten(2)
    return F.cosine_similarity(f[:, :, None], f[:, None], dim=-1)


def products(x: Tensor) -> Tensor:
    f = x.flatten(2)
    return f @ f.transpose(1, 2) / f.shape[2]


SIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of the last": lambda g: g.mean(-1),
    "mean of the first": lambda g: g.mean(1),
    "mean of both": lambda g: g.mean((1, 2), keepdim=True)[..., 0].expand(g.shape[:2]),
    "deviation": lambda g: g.std(-1),
    "distance from the mean": lambda g: (g - g.mean(-1, keepdim=True)).square().sum(-1),
    "layer norm": lambda g: F.layer_norm(g, g.shape[-1:]).amax(-1),
    "softmax": lambda g: g.softmax(1).amax(-1),
    "sum": lambda g: g.sum(-2),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("matrix", [products, outer, cosines])
def test_one_side_of_a_matrix_of_channels_by_channels(matrix: Callable[[Tensor], Tensor], side: str) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        return net.b(h * SIDES[side](matrix(h))[..., None, None].sigmoid())

    torch.manual_seed(0)
    model, x = Net(run, a=conv(3, 8), b=conv(8, 4)).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    table = trace(model, x)
    assert [group.width for group in table.groups] == [8]
    check_cut(model, table, random_keep(table, 0.5, torch.Generator().manual_seed(0)), ((x,), {}), 1e-10)


@pytest.mark.parametrize(
    "channels, other, period",
    [
        ([3, 4, 5, 3, 4, 5], [3, 4, 5, 3, 4, 5], 3),
        ([3, 4, 5], [3, 4, 5, 3, 4, 5], 3),  # of one example, and of two
        ([3, 4, 5], [3, 4, 5], 0),
        ([3, 3, 4, 4], [3, 3, 4, 4], 0),  # the batch lies inside of the channels
        ([3, 3, 4, 3, 3, 4], [3, 3, 4, 3, 3, 4], 0),  # so may something else
        ([3, FIXED, 4, 3, FIXED, 4], [3, FIXED, 4], 3),
    ],
)
def test_channels_that_come_again_for_every_example(channels: list[int], other: list[int], period: int) -> None:
    here = replace(operand("zero"), channels=torch.tensor(channels))
    there = replace(operand("zero"), channels=torch.tensor(other), training=True)
    elsewhere = replace(here, argument=1, channels=torch.tensor([5, 4, 3]))
    assert [one.period for one in with_periods([here, elsewhere, there])] == [period, 0, period]


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_a_batch_of_another_size_on_the_axis_of_the_channels(examples: int) -> None:
    own = replace(operand("zero"), channels=torch.arange(6).repeat(2), period=6)
    (hidden,), _ = hide([own], [GATE.repeat(2)], (torch.ones(3, 6 * examples),), {})
    assert torch.equal(hidden, GATE.repeat(examples).expand(3, -1))
    with pytest.raises(RuntimeError, match="gets other arguments"):
        hide([own], [GATE.repeat(2)], (torch.ones(3, 6 * examples + 1),), {})


class Experts(nn.Module):
    """A kernel for each example, a mixture of four; the batch becomes groups of one convolution."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.router = nn.Linear(narrow, 4)
        self.kernels = nn.Parameter(torch.randn(4, wide, narrow, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shares = self.router(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("be,eoikl->boikl", shares, self.kernels).flatten(0, 1)
        y = F.conv2d(x.reshape(1, batch * channels, height, width), kernels, groups=batch, padding=1)
        return y.view(batch, -1, height, width)


class Upsampling(Experts):
    """The same, transposed."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shares = self.router(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("be,eoikl->biokl", shares, self.kernels).flatten(0, 1)
        y = F.conv_transpose2d(x.reshape(1, batch * channels, height, width), kernels, groups=batch, stride=2)
        return y.view(batch, -1, *y.shape[2:])


@pytest.mark.parametrize("kind", [Experts, Upsampling])
@pytest.mark.parametrize("traced", [1, 2, 16])
def test_a_network_that_folds_the_batch_into_its_channels_takes_any(traced: int, kind: type[Experts]) -> None:
    """Even one larger than the groups are wide, which are not taken for those of a depthwise convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), kind(8, 6), nn.ReLU(), kind(6, 5), conv(5, 2)).double()
    table = trace(model, torch.randn(traced, 3, 6, 6, dtype=torch.float64))
    assert sorted(group.width for group in table.groups) == [4, 4, 5, 6, 8]
    assert any(operand.period for operand in table.operands)
    keep = random_keep(table, 0.5, torch.Generator().manual_seed(0))
    small, readers = compact(model, table, keep), Readers(model, table)
    for training in (True, False):
        for examples in (1, 2, 3, 7):
            x = torch.randn(examples, 3, 6, 6, dtype=torch.float64)
            gated = gated_forward(model.train(training), readers, keep.double(), (x,), {})
            torch.testing.assert_close(gated, small.train(training)(x))


# ---------------------------------------------------------------------------------------------- find

A, B = torch.arange(6), torch.arange(6, 10)
X, Y, INTEGERS = torch.zeros(2, 6), torch.zeros(6, 4), torch.zeros(6, dtype=torch.long)
KNOWN: dict[int, Labels] = {id(X): (None, A), id(Y): (A.clone(), B), id(INTEGERS): (A,)}


def found(
    how: str, function: str, *args: Any, ids: Tensor = A, factors: Tensor | None = None, **kwargs: Any
) -> list[tuple[int, int]]:
    ask = Ask(ids, how, "reason", Place("operator", "", ""))
    places = find(ask, function, args, kwargs, lambda tensor: KNOWN.get(id(tensor), ()), lambda _: factors)
    return [(argument, axis) for argument, axis, _ in places]


def test_every_argument_with_the_channels_is_found_on_its_axis() -> None:
    assert found("zero", "einsum", "ab,bc->ac", X, [Y, INTEGERS]) == [(1, -1), (2, -2)]
    assert found("mean", "mean", X, dim=1) == [(0, -1)]
    assert found("zero", "sum", input=Y, ids=B) == [(0, -1)]


@pytest.mark.parametrize(
    "how, function, args, kwargs",
    [
        ("mean", "std", (X,), {}),
        ("lowest", "mean", (X,), {}),
        ("root", "matmul", (X, Y), {}),
        ("zero", "add_", (X, 1), {}),
        ("zero", "__iadd__", (X, 1), {}),
        ("zero", "matmul", (X, Y), {"out": torch.zeros(2, 4)}),
        ("zero", "sum", (INTEGERS,), {}),
        ("zero", "sum", (torch.zeros(6),), {}),
    ],
)
def test_nothing_is_hidden_where_that_would_be_wrong(how: str, function: str, args: Any, kwargs: Any) -> None:
    """A function that is not known to do nothing else with it, one in place, indices, an argument without labels."""
    assert found(how, function, *args, **kwargs) == []


def test_factors_of_products_may_lie_along_several_axes_of_what_is_multiplied() -> None:
    products, both = torch.arange(100, 124), torch.cartesian_prod(A, B)
    assert found("zero", "einsum", Y, ids=products, factors=both) == [(0, -2), (0, -1)]
    assert found("zero", "tensordot", X, Y.mT.clone(), ids=products, factors=both) == []
    assert found("zero", "einsum", "ab,bc", X, Y, ids=products, factors=both) == [(1, -1), (2, -2), (2, -1)]
    assert found("zero", "einsum", X, ids=products, factors=both) == []
    assert found("zero", "sum", Y, ids=products, factors=both) == []
    assert found("zero", "einsum", Y, ids=products) == []
    assert found("zero", "einsum", X, Y, ids=B.repeat(3)) == [(1, -1)]
    assert found("zero", "sum", X, Y, ids=B.repeat(3)) == []


def test_ids_must_be_the_very_same() -> None:
    assert found("zero", "sum", X, ids=A.flip(0)) == []
    assert found("zero", "sum", X, ids=torch.full((6,), FIXED)) == []
