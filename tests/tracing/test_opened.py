"""Functions that are taken apart give what PyTorch's own do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfp.tracing import opened

PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12}
SHAPES: list[tuple[tuple[int, ...], list[int]]] = [
    ((4, 6), [6]),
    ((2, 5, 6), [6]),
    ((2, 3, 5, 6), [5, 6]),
    ((3, 5, 6), [3, 5, 6]),
    ((7, 1), [1]),
    ((0, 6), [6]),
]
dtypes = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def assert_equal(found: Tensor, right: Tensor) -> None:
    assert found.shape == right.shape and found.dtype == right.dtype
    torch.testing.assert_close(found, right, rtol=PRECISION[right.dtype], atol=PRECISION[right.dtype])


def vectors(shape: list[int], which: str, dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.randn(shape, dtype=dtype) if name in which else None for name in ("weight", "bias")]


@dtypes
@pytest.mark.parametrize("which", ["weight, bias", "weight", "bias", ""])
@pytest.mark.parametrize("shape, normalized", SHAPES)
def test_layer_norm(shape: tuple[int, ...], normalized: list[int], which: str, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(shape, dtype=dtype) + 2
    weight, bias = vectors(normalized, which, dtype)
    assert_equal(opened.layer_norm(x, normalized, weight, bias, 1e-3), F.layer_norm(x, normalized, weight, bias, 1e-3))
    assert_equal(opened.layer_norm(x, tuple(normalized)), torch.layer_norm(x, normalized))


@dtypes
@pytest.mark.parametrize("which", ["weight", ""])
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("shape, normalized", SHAPES)
def test_rms_norm(
    shape: tuple[int, ...], normalized: list[int], eps: float | None, which: str, dtype: torch.dtype
) -> None:
    x = 3 * torch.randn(shape, dtype=dtype) + 2
    weight, _ = vectors(normalized, which, dtype)
    assert_equal(opened.rms_norm(x, normalized, weight, eps), F.rms_norm(x, normalized, weight, eps))


@dtypes
@pytest.mark.parametrize("which", ["weight, bias", "weight", "bias", ""])
@pytest.mark.parametrize("shape", [(2, 12, 4, 5), (3, 12), (2, 12, 7), (2, 12, 2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(shape: tuple[int, ...], groups: int, which: str, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(shape, dtype=dtype) + 2
    weight, bias = vectors([12], which, dtype)
    assert_equal(opened.group_norm(x, groups, weight, bias, 1e-3), F.group_norm(x, groups, weight, bias, 1e-3))


@dtypes
@pytest.mark.parametrize("which", ["weight, bias", "weight", "bias", ""])
@pytest.mark.parametrize("shape", [(1, 5, 27), (4, 5), (2, 5, 4, 3)])
def test_batch_norm_without_statistics(shape: tuple[int, ...], which: str, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(shape, dtype=dtype) + 2
    weight, bias = vectors([5], which, dtype)
    args = (None, None, weight, bias, True, 0.0, 1e-3)
    assert opened.opened(F.batch_norm, (x, *args), {}) is opened.batch_norm
    assert_equal(opened.batch_norm(x, *args), F.batch_norm(x, *args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("function, size", [("layer_norm", (5,)), ("rms_norm", (5,)), ("group_norm", 2)])
def test_autocast_lifts_what_it_would(function: str, size: Any, dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found, right = getattr(opened, function)(x, size), getattr(F, function)(x, size)
    assert found.dtype == right.dtype
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.02)


def test_batch_norm_with_statistics_is_left_alone() -> None:
    statistics = {"running_mean": torch.zeros(5), "running_var": torch.ones(5)}
    assert opened.opened(F.batch_norm, (torch.randn(4, 5),), statistics) is None
    assert opened.opened(F.batch_norm, (torch.randn(4, 5), *statistics.values()), {}) is None


@dtypes
@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((), {}),
        ((False,), {}),
        ((1,), {}),
        ((1, False), {}),
        ((-1,), {"keepdim": True}),
        (((0, 2), False, True), {}),
        (([1, 2],), {"correction": 0}),
        ((), {"dim": 2, "correction": 2, "keepdim": True}),
        ((), {"dim": 1, "unbiased": False}),
        ((), {"axis": 1, "keepdims": True}),
    ],
)
def test_spreads(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    """All of the signatures of PyTorch's own."""
    x = 3 * torch.randn(4, 5, 6, dtype=dtype) + 2
    assert_equal(opened.var(x, *args, **kwargs), x.var(*args, **kwargs))
    assert_equal(opened.std(x, *args, **kwargs), torch.std(x, *args, **kwargs))
    for name in ("var_mean", "std_mean"):
        both = getattr(opened, name)(x, *args, **kwargs), getattr(torch, name)(x, *args, **kwargs)
        for found, right in zip(*both, strict=True):
            assert_equal(found, right)


def test_spreads_of_complex_numbers_are_real() -> None:
    z = torch.randn(4, 5, dtype=torch.cdouble)
    assert_equal(opened.var(z, 1), z.var(1))
    assert_equal(opened.std(z), z.std())


@pytest.mark.parametrize("options", [{}, {"dim": 1}, {"dim": -1, "keepdim": True}])
def test_aminmax(options: dict[str, Any]) -> None:
    x = torch.randn(4, 5)
    found, right = opened.aminmax(x, **options), x.aminmax(**options)
    assert torch.equal(found.min, right.min) and torch.equal(found.max, right.max)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"size_average": False}, {"reduce": False}]
)
@pytest.mark.filterwarnings("ignore:.*(size_average|target size)")
def test_losses(name: str, options: dict[str, Any]) -> None:
    x, y = torch.randn(4, 5), torch.randn(5)
    assert_equal(getattr(opened, name)(x, y, **options), getattr(F, name)(x, y, **options))


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weighted_losses(name: str, reduction: str) -> None:
    x, y, weight = torch.randn(3, 4, 5).unbind()
    found = getattr(opened, name)(x, y, reduction=reduction, weight=weight)
    assert_equal(found, getattr(F, name)(x, y, reduction=reduction, weight=weight))


@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 3), (2, 12, 3, 4)])
def test_channel_shuffle(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = x.reshape(2, 3, 4, *shape[2:]).transpose(1, 2).reshape(shape)
    assert torch.equal(opened.channel_shuffle(x, 3), expected)
    if len(shape) > 2:
        assert torch.equal(F.channel_shuffle(x, 3), expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, float("inf")])
def test_pairwise_distance(p: float) -> None:
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(opened.pairwise_distance(x, y, p, 0.1, True), F.pairwise_distance(x, y, p, 0.1, True))


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("dim", [0, -1, (1, 2)])
def test_normalize(p: float, dim: Any) -> None:
    x, out = torch.randn(4, 6, 3), torch.empty(4, 6, 3)
    x[1] = 0
    expected = F.normalize(x, p, dim, 0.1)
    torch.testing.assert_close(opened.normalize(x, p, dim, 0.1), expected)
    assert opened.normalize(x, p, dim, 0.1, out=out) is out
    torch.testing.assert_close(out, expected)


def test_gradients_are_the_same_too() -> None:
    functions: list[tuple[Any, Any, Any]] = [
        (opened.layer_norm, F.layer_norm, [12]),
        (opened.rms_norm, F.rms_norm, [12]),
        (opened.group_norm, F.group_norm, 3),
    ]
    for ours, theirs, size in functions:
        x, weight = torch.randn(4, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
        gradients = []
        for function in (ours, theirs):
            inputs = [t.clone().requires_grad_() for t in (x, weight)]
            gradients.append(torch.autograd.grad(function(inputs[0], size, inputs[1]).pow(3).sum(), inputs))
        for mine, right in zip(*gradients, strict=True):
            assert_equal(mine, right)


@pytest.mark.parametrize("normalized", [[5], [2, 6], [6, 6]])
def test_a_width_that_does_not_fit_is_refused(normalized: list[int]) -> None:
    """The trial cut relies on it: a width that does not follow must fail, not give other numbers."""
    for ours, theirs in ((opened.layer_norm, F.layer_norm), (opened.rms_norm, F.rms_norm)):
        for function in (theirs, ours):
            with pytest.raises(RuntimeError):
                function(torch.zeros(3, 6), normalized)


@dtypes
def test_attention_without_a_mask(dtype: torch.dtype) -> None:
    q, k, v = (
        torch.randn(2, 4, 5, 6, dtype=dtype),
        torch.randn(2, 4, 7, 6, dtype=dtype),
        torch.randn(2, 4, 7, 3).to(dtype),
    )
    assert_equal(opened.attention(q, k, v, scale=0.3), F.scaled_dot_product_attention(q, k, v, scale=0.3))


def test_attention_leaves_its_default_scale_to_the_operands() -> None:
    q, k, v = torch.randn(3, 2, 5, 6)
    assert_equal(opened.attention(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0))


def test_attention_with_a_mask_that_is_added() -> None:
    q, k, v = torch.randn(3, 2, 5, 6)
    mask = torch.randn(2, 5, 5)
    right = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
    assert_equal(opened.attention(q, k, v, mask, scale=0.3), right)


def test_attention_with_fewer_keys_than_queries() -> None:
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    right = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    assert_equal(opened.attention(q, k, v, scale=0.3, enable_gqa=True), right)


@pytest.mark.parametrize("options", [{"attn_mask": torch.ones(5, 5).tril().bool()}, {"is_causal": True}])
def test_attention_is_of_the_right_shape_whatever_is_masked(options: dict[str, Any]) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 6)
    assert opened.attention(q, k, v, **options).shape == F.scaled_dot_product_attention(q, k, v, **options).shape
