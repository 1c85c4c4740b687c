"""Example inputs: what `model(*args, **kwargs)` is called with, and how a file describes it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

TOLD = 1024  # elements of the largest tensor whose values a description tells
LARGEST = 2**28  # elements of an input that a description asks for: a file may not make us follow labels without bound
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(model: nn.Module, example_inputs: Any = None) -> Arguments:
    """The positional and keyword arguments that `example_inputs` stands for.

    A tensor is the only argument, a tuple or list gives the positional ones, a dict the keyword ones. Without any, the
    model is asked: `model.input_size` or timm's `model.default_cfg["input_size"]`, both (channels, height, width).

    >>> arguments(nn.Linear(2, 3), torch.zeros(1, 2))
    ((tensor([[0., 0.]]),), {})
    """
    if example_inputs is None:
        return (_own_example(model),), {}
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        raise ValueError(
            f"example_inputs is a {type(example_inputs).__name__}; expected a tensor, a tuple of tensors or a dict of "
            f"keyword tensors, for example hfp.wrap(model, torch.zeros(1, 3, 224, 224), target_macs=0.4)"
        )
    leaves = tree_leaves(example_inputs, is_leaf=lambda value: isinstance(value, PackedSequence))
    if any(isinstance(leaf, PackedSequence) for leaf in leaves):
        raise ValueError(
            "example_inputs holds a PackedSequence, which has no shape apart from its values; let the model's forward "
            "pack what it is given, and pass padded tensors and lengths"
        )
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise ValueError(
            f"example_inputs holds no tensor ({kinds}); pass what the model's forward takes, such as "
            "torch.zeros(1, 3, 224, 224): tensors, or tuples, lists and dicts of them"
        )
    if all(tensor.numel() == 0 for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"example_inputs is empty, of shape {shapes}; pass a batch of one at least")
    return args, kwargs


def _own_example(model: nn.Module) -> Tensor:
    config = getattr(model, "default_cfg", None)
    size = getattr(model, "input_size", None) or (config.get("input_size") if isinstance(config, Mapping) else None)
    if not isinstance(size, (tuple, list)) or not all(isinstance(n, int) for n in size):
        raise ValueError(
            f"{type(model).__name__} does not tell its input size; pass example_inputs, "
            f"for example hfp.wrap(model, torch.zeros(1, 3, 224, 224), target_macs=0.4)"
        )
    parameter = next(model.parameters(), torch.zeros(0))
    return torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device)


def placed(
    inputs: Arguments, device: torch.device, dtypes: Mapping[torch.dtype, torch.dtype] | None = None
) -> Arguments:
    """Copies of inputs on `device`, with other dtypes where `dtypes` says so; those without data become zeros.

    A forward may write to what it is given: the inputs stay as they are.

    >>> args, _ = placed(((torch.zeros(2), 3), {}), torch.device("cpu"), {torch.float32: torch.float64})
    >>> args
    (tensor([0., 0.], dtype=torch.float64), 3)
    """

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = (dtypes or {}).get(value.dtype, value.dtype)
        if device.type == "meta":
            return shape_of(value, dtype)
        if value.is_meta:
            return torch.zeros_like(value, device=device, dtype=dtype)
        return value.to(device, dtype, copy=True)

    args, kwargs = tree_map(one, inputs)
    return args, kwargs


def shape_of(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same without data, on the meta device; sparse tensors as dense ones, since PyTorch has no operators there."""
    dtype = dtype or tensor.dtype
    if tensor.layout != torch.strided:
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    return torch.empty_like(tensor, dtype=dtype, device="meta")


def home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model is, and its precision: those of its first parameter that is not an integer."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    return first.device, first.dtype


def example_for(description: Mapping[str, Any], model: nn.Module) -> Arguments:
    """Zeros (or the values that are told) as `description` has them, where `model` is and of its precision.

    >>> example_for({"args": [{"shape": [1, 2], "dtype": "float32"}], "kwargs": {}}, nn.Linear(2, 3).double())
    ((tensor([[0., 0.]], dtype=torch.float64),), {})
    """
    device, dtype = home(model)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return placed(rebuild(description), device, dict.fromkeys(floats, dtype))


def batched(inputs: Arguments, size: int) -> Arguments | None:
    """The first example of the inputs, `size` times.

    None if the tensors do not share one batch size (a list of pictures, say); for a `size` of 1 the inputs as they are.

    >>> batched(((torch.tensor([[1, 2], [3, 4]]),), {}), 3)
    ((tensor([[1, 2],
            [1, 2],
            [1, 2]]),), {})
    """
    lengths = {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    lists = any(isinstance(value, (list, tuple)) for value in (*inputs[0], *inputs[1].values()))
    if len(lengths) != 1 or 0 in lengths or lists:
        return inputs if size == 1 else None
    args, kwargs = tree_map(lambda x: torch.cat([x[:1]] * size) if isinstance(x, Tensor) else x, inputs)
    return args, kwargs


def describe(inputs: Arguments, values: bool = False) -> dict[str, Any]:
    """Shapes and dtypes as plain JSON, enough to trace the model again.

    `values`: also those of small tensors, for a model that looks at them, such as the boxes to be found in a picture.
    """

    def one(value: Any) -> Any:
        entry: dict[str, Any]
        if isinstance(value, Tensor):
            entry = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
            if value.layout == torch.sparse_coo:
                entry["sparse"] = True
            told = values and value.numel() <= TOLD and not value.is_meta and not value.is_complex()
            return entry | ({"values": value.to_dense().flatten().tolist()} if told else {})
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {"items": {name: one(item) for name, item in value.items()}}
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        if isinstance(value, list):
            return [one(item) for item in value]
        if isinstance(value, tuple):
            entry = {"tuple": [one(item) for item in value]}
            return entry | {"fields": list(value._fields)} if hasattr(value, "_fields") else entry
        raise ValueError(
            f"cannot describe an example input of type {type(value).__name__}; "
            "pass tensors, numbers, or lists and dicts of them"
        )

    args, kwargs = inputs
    return {"args": [one(value) for value in args], "kwargs": {name: one(value) for name, value in kwargs.items()}}


def tells_values(entry: Any) -> bool:
    """Whether a description tells the values of any tensor."""
    if isinstance(entry, list):
        return any(map(tells_values, entry))
    told = isinstance(entry, dict) and set(entry) - {"sparse"} == {"shape", "dtype", "values"}
    return told or (isinstance(entry, dict) and any(map(tells_values, entry.values())))


def rebuild(description: Mapping[str, Any]) -> Arguments:
    """The inverse of `describe`; tensors of which no values are told are on the meta device: shapes without data.

    Raises:
        ValueError: it is no description.
    """
    if not isinstance(description, Mapping) or set(description) != {"args", "kwargs"}:
        raise ValueError("not a description of example inputs: expected 'args' and 'kwargs'")
    args, kwargs = description["args"], description["kwargs"]
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError("not a description of example inputs: expected a list of 'args' and named 'kwargs'")
    return tuple(map(_rebuilt, args)), {name: _rebuilt(entry) for name, entry in kwargs.items()}


def _rebuilt(entry: Any) -> Any:
    match entry:
        case list():
            return [_rebuilt(item) for item in entry]
        case {"value": value, **others} if not others:
            return value
        case {"items": dict(items), **others} if not others:
            return {name: _rebuilt(item) for name, item in items.items()}
        case {"tuple": list(items), **others} if not others:
            return tuple(map(_rebuilt, items))
        case {"tuple": list(items), "fields": list(fields), **others} if not others:
            return _named(fields, [_rebuilt(item) for item in items])
        case {"shape": list(shape), "dtype": str(dtype), **others} if others.keys() <= {"values", "sparse"}:
            return _tensor(shape, getattr(torch, dtype, None), others.get("sparse") is True, others.get("values"))
    raise ValueError(f"not a description of an example input: {entry!r:.200}")


def _named(fields: list[Any], items: list[Any]) -> Any:
    """A named tuple: of a class of its own, since nothing that a file names is imported."""
    if len(fields) != len(items) or {type(name) for name in fields} - {str}:
        raise ValueError(f"not a description of an example input: a named tuple of {fields!r:.200}")
    try:
        return namedtuple("Inputs", fields)(*items)
    except ValueError as error:  # no names
        raise ValueError(f"not a description of an example input: {error}") from error


def _tensor(shape: list[Any], dtype: Any, sparse: bool, values: Any) -> Tensor:
    if not isinstance(dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"not a description of an example input: {shape!r:.200} of {dtype}")
    if prod(shape) > LARGEST:
        raise ValueError(f"not a description of an example input: {shape} has more than {LARGEST:,} elements")
    if values is None:
        return torch.empty(shape, dtype=dtype, layout=torch.sparse_coo if sparse else torch.strided, device="meta")
    if not isinstance(values, list) or len(values) != prod(shape) or {type(x) for x in values} - {bool, int, float}:
        raise ValueError(f"not a description of an example input: {shape} of {values!r:.200}")
    try:
        tensor = torch.tensor(values, dtype=dtype).reshape(shape)
        return tensor.to_sparse() if sparse else tensor
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # a number that the dtype has not
        raise ValueError(f"not a description of an example input: {error}") from error
