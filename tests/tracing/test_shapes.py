"""Shapes of the commonest operators, against PyTorch's own kernels."""

from __future__ import annotations

import random
from types import BuiltinFunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from hfp.tracing import shapes
from hfp.tracing.shapes import outputs

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def some(generator: random.Random, rank: int) -> list[int]:
    return [generator.choice([1, 2, 3, 5]) for _ in range(rank)]


def strided(generator: random.Random, *shape: int) -> Tensor:
    """A tensor of this shape, in some order of memory, of some dtype."""
    dtype = generator.choice([torch.float32, torch.float32, torch.float64, torch.int64, torch.bool])
    x = meta(*shape, dtype=dtype)
    if len(shape) == 4 and generator.random() < 0.3:
        return x.to(memory_format=torch.channels_last)
    return x.transpose(0, 1).contiguous().transpose(0, 1) if len(shape) > 1 and generator.random() < 0.2 else x


def arguments(func: Any, generator: random.Random) -> tuple[Any, ...]:
    """Random arguments, of which some do not fit."""
    name = getattr(func, "overloadpacket", func).__name__.strip("_")
    x = strided(generator, *some(generator, generator.randint(0, 4)))
    if name == "native_batch_norm":
        c = generator.randint(1, 4)
        vectors = [meta(c) for _ in range(4)]
        return strided(generator, 2, c, 3, 3), *vectors, generator.random() < 0.5, 0.1, 1e-5
    if name == "addmm":
        n, k, m = some(generator, 3)
        return meta(generator.choice([m, 1, 7])), meta(n, k), meta(generator.choice([k, 4]), m)
    if name == "linear":
        k, m = some(generator, 2)
        x = strided(generator, *some(generator, generator.randint(0, 3)), k)
        return x, meta(m, generator.choice([k, k, 4])), generator.choice([None, meta(m), meta(1)])
    if name == "matmul":
        n, k, m = some(generator, 3)
        batches = ([1] * generator.randint(0, 2) + some(generator, generator.randint(1, 2)) for _ in range(2))
        a, b = ([generator.choice([1, 2]) for _ in batch] for batch in batches)
        return strided(generator, *a, n, k), strided(generator, *b, generator.choice([k, k, 4]), m)
    if name == "bmm":
        b, n, k, m = some(generator, 4)
        return strided(generator, b, n, k), strided(generator, generator.choice([b, 1]), generator.choice([k, 4]), m)
    if name == "grouped_mm":
        n, k, m = (generator.choice([4, 8, 8, 6]) for _ in range(3))
        dtype = generator.choice([torch.float32, torch.float32, torch.bfloat16])
        b = generator.choice([meta(3, generator.choice([k, k, 4]), m, dtype=dtype), meta(3, m, k, dtype=dtype).mT])
        return meta(n, k, dtype=dtype), b, generator.choice([meta(3, dtype=torch.int32), None])
    if name == "convolution":
        groups, rank = generator.choice([1, 1, 2]), generator.randint(1, 3)
        weight = meta(generator.choice([1, 2, 2, 2, 3]) * groups, 3, *[generator.randint(1, 3) for _ in range(rank)])
        picture = strided(generator, 2, 3 * groups, *[generator.randint(2, 6) for _ in range(rank)])
        grids = [[generator.randint(low, 2) for _ in range(rank)] for low in (1, 0, 1)]
        bias = generator.choice([None, meta(2 * groups), meta(1)])
        return picture, weight, bias, *grids, generator.random() < 0.2, [0] * rank, groups
    if name.startswith("upsample"):
        aligned = [False] if name == "upsample_bilinear2d" else []
        return strided(generator, *some(generator, generator.choice([3, 4, 4]))), some(generator, 2), *aligned
    if name == "where":
        shape, dtype = generator.choice([x.shape, some(generator, 2)]), generator.choice([torch.bool, torch.uint8])
        return meta(*shape, dtype=dtype), x, strided(generator, *generator.choice([x.shape, [1], some(generator, 2)]))
    if name == "masked_fill":
        shape = generator.choice([list(x.shape), some(generator, 2), [1, *x.shape[1:]]])
        return x, meta(*shape, dtype=torch.bool), torch.zeros((), dtype=x.dtype)
    if name == "mean":
        axes = [generator.randint(-3, 3) for _ in range(generator.randint(0, 2))]
        return x, axes, generator.random() < 0.5
    if name == "linalg_vector_norm":
        axes = generator.choice([None, [], [0], [1, 2], [3]])  # counted from the end: below
        return x, generator.choice([2, 1.5, 1, 0]), axes, generator.random() < 0.5
    if name == "cat":
        shape = some(generator, generator.randint(1, 3))
        return [strided(generator, *shape), strided(generator, *shape[:-1], 4)], generator.randint(-3, 2)
    if func in (aten.hardtanh.default, aten.hardtanh_.default):
        return x, 0.0, 6.0
    if name.startswith(("softmax", "log_softmax")):
        return x, generator.randint(-2, 2), False
    if name == "safe_softmax":
        return x, generator.randint(-2, 2)
    if func._overloadname in ("Scalar", "Tensor_Scalar"):
        return x, generator.choice([2, 0.5, True])
    if func._overloadname == "Tensor":
        return x, strided(generator, *generator.choice([list(x.shape), some(generator, 2), [1, *x.shape[1:]]]))
    return (x,)


def full_name(func: Any) -> str:
    return func.__name__ if isinstance(func, BuiltinFunctionType) else str(func)


def described(out: Any) -> list[Any]:
    outs = out if isinstance(out, tuple) else [out]
    strides = [[step for step, length in zip(x.stride(), x.shape, strict=True) if length > 1] for x in outs]
    return [(x.shape, steps, x.dtype, x.device.type) for x, steps in zip(outs, strides, strict=True)]


def accepted(x: Tensor) -> Tensor:
    """What PyTorch takes on shapes: no other device, and no conditions of bytes, as in code older than truth values."""
    return (x.bool() if x.dtype == torch.uint8 else x).to("meta")


@pytest.mark.parametrize("func", sorted(shapes._PLAIN, key=full_name), ids=full_name)
def test_outputs_are_those_of_pytorch(func: Any) -> None:
    if func.__name__.startswith("_grouped_mm"):
        try:
            func(meta(4, 8), meta(3, 8, 8), meta(3, dtype=torch.int32))
        except RuntimeError:
            pytest.skip("this PyTorch knows the shapes of half precision alone")
    quick = 0
    for seed in range(100):
        generator = random.Random(seed)
        args = arguments(func, generator)
        try:
            beside = [accepted(x) if isinstance(x, Tensor) else x for x in args]
            expected = described(func(*beside))
            if func is aten.convolution.default:  # which lets pass on shapes what it refuses on numbers
                func(*(torch.zeros(x.shape) if isinstance(x, Tensor) else x for x in args))
        except Exception as error:
            with pytest.raises(type(error)):
                outputs(func, args, {})
            continue
        assert described(outputs(func, args, {})) == expected, args
        quick += shapes._PLAIN[func](*args) is not None
    assert quick >= 5


@pytest.mark.parametrize("mask", [(2, 3), (3,), (4, 1, 1)])
def test_a_value_that_fills_may_lie_on_the_cpu(mask: tuple[int, ...]) -> None:
    """As on other devices: a model's code says `x.masked_fill(mask, torch.tensor(-1e9))`."""
    x, where, value = torch.ones(2, 3), torch.ones(mask, dtype=torch.bool), torch.tensor(-1e9)
    out = outputs(aten.masked_fill.Tensor, (x.to("meta"), where.to("meta"), value), {})
    assert out.is_meta and out.shape == x.masked_fill(where, value).shape


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 1, 5), (1,)])
def test_norms_along_axes_that_are_counted_from_the_end(shape: tuple[int, ...], keepdim: bool) -> None:
    for axis in range(-len(shape), len(shape)):
        expected = torch.linalg.vector_norm(torch.ones(shape), dim=axis, keepdim=keepdim)
        out = outputs(aten.linalg_vector_norm.default, (meta(*shape), 2, [axis], keepdim), {})
        assert out.shape == expected.shape
