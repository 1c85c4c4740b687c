"""Example inputs: every form, their description, and what a wrong one is told."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import hfp
from hfp.model.inputs import arguments, describe, placed, rebuild, tells_values

X, Y = torch.zeros(1, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    "given, args, kwargs",
    [
        (X, (X,), {}),
        ((X, Y), (X, Y), {}),
        ([X, Y], (X, Y), {}),
        ({"x": X, "y": Y}, (), {"x": X, "y": Y}),
        ((X, 3, None, True, "name"), (X, 3, None, True, "name"), {}),
    ],
)
def test_every_form_of_example_inputs(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found = arguments(nn.Identity(), given)
    assert len(found[0]) == len(args) and all(a is b for a, b in zip(found[0], args, strict=True))
    assert found[1].keys() == kwargs.keys() and all(found[1][name] is kwargs[name] for name in kwargs)


def test_inputs_follow_a_model_to_its_device_and_precision() -> None:
    double = placed(((X, None), {"y": Y}), X.device, {torch.float32: torch.float64})
    assert double[0][0].dtype == torch.float64 and double[0][1] is None and double[1]["y"].dtype == torch.long
    back = placed(rebuild(describe(((X,), {"y": Y}))), X.device)
    assert torch.equal(back[0][0], X) and torch.equal(back[1]["y"], Y)


@pytest.mark.parametrize("values", [False, True])
def test_a_sparse_input_stays_sparse_but_for_its_shape_on_the_meta_device(values: bool) -> None:
    sparse = torch.eye(4).to_sparse()
    (shape,), _ = placed(((sparse,), {}), torch.device("meta"))
    assert (shape.layout, shape.shape, shape.is_meta) == (torch.strided, sparse.shape, True)
    description = json.loads(json.dumps(describe(((sparse,), {}), values)))
    assert tells_values(description) == values
    (back,), _ = placed(rebuild(description), X.device)
    assert (back.layout, back.shape, back.dtype) == (torch.sparse_coo, sparse.shape, sparse.dtype)
    assert torch.equal(back.to_dense(), sparse.to_dense() if values else torch.zeros(4, 4))


def model(**attributes: Any) -> nn.Module:
    module = nn.Linear(2, 3).double()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("attributes", [{"input_size": (3, 8, 8)}, {"default_cfg": {"input_size": (3, 8, 8)}}])
def test_a_model_may_tell_its_own_size(attributes: dict[str, Any]) -> None:
    ((image,), kwargs) = arguments(model(**attributes))
    assert image.shape == (1, 3, 8, 8) and image.dtype == torch.float64 and not kwargs


@pytest.mark.parametrize("attributes", [{}, {"default_cfg": {}}, {"input_size": 28}, {"input_size": None}])
def test_a_model_that_does_not_tell(attributes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hfp\.wrap\(model, torch\.zeros"):
        arguments(model(**attributes))


@pytest.mark.parametrize("wrong", ["picture", 3, (), (3,), {}, {"x": 3}])
def test_inputs_without_a_tensor(wrong: Any) -> None:
    with pytest.raises(ValueError, match="tensor"):
        arguments(nn.Identity(), wrong)


def test_packed_inputs_are_refused() -> None:
    packed = pack_padded_sequence(torch.randn(2, 4, 5), torch.tensor([4, 3]), batch_first=True)
    for given in (packed, (packed,), {"x": [packed]}):
        with pytest.raises(ValueError, match="holds a PackedSequence"):
            hfp.wrap(nn.LSTM(5, 6), given, target_macs=0.5)


def test_inputs_without_a_value() -> None:
    with pytest.raises(ValueError, match=r"example_inputs is empty, of shape \(0, 3, 8, 8\); pass a batch of one"):
        arguments(nn.Identity(), torch.zeros(0, 3, 8, 8))
    cache = torch.zeros(1, 2, 0, 4)  # what a language model has not seen yet
    assert arguments(nn.Identity(), (X, cache))[0][1] is cache


DESCRIBED = [
    ((X,), {}),
    ((), {"x": X, "y": Y}),
    ((X.to(torch.bfloat16), 3, None), {"flag": True, "name": "a", "scale": 0.5}),
    ((torch.zeros(()), torch.zeros(0, 3, dtype=torch.bool)), {}),
]


def test_nested_tuples_come_back_as_such() -> None:
    state = namedtuple("State", "hidden cell steps")
    given = (([X, (Y, 2)], state(X, (Y,), 3)), {"more": {"pair": (X, None)}})
    (one, two), more = again = rebuild(json.loads(json.dumps(describe(given))))
    assert isinstance(one, list) and isinstance(one[1], tuple) and one[1][1] == 2
    assert two.hidden.shape == X.shape and two.cell[0].shape == Y.shape and two.steps == 3 and len(two) == 3
    assert isinstance(more["more"]["pair"], tuple) and describe(again) == describe(given)


@pytest.mark.parametrize("given", DESCRIBED)
def test_a_description_is_json_and_gives_the_same_shapes_back(given: Any) -> None:
    again = rebuild(json.loads(json.dumps(describe(given))))
    assert describe(again) == describe(given)
    for a, b in zip((*given[0], *given[1].values()), (*again[0], *again[1].values()), strict=True):
        if isinstance(a, torch.Tensor):
            assert (b.shape, b.dtype, b.device.type) == (a.shape, a.dtype, "meta")
        else:
            assert a == b


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"args": []},
        {"args": [], "kwargs": {}, "more": 1},
        {"args": [3], "kwargs": {}},
        {"args": 3, "kwargs": {}},
        {"args": [], "kwargs": "x"},
        {"args": [], "kwargs": [["x", {"value": 1}]]},
        {"args": [{"shape": [2**40], "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": "uint8", "values": [2**70]}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": "nn"}], "kwargs": {}},
        {"args": [{"shape": [-1], "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": [True], "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": "1", "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": "float32", "value": 1}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": "__name__"}], "kwargs": {}},
        {"args": [{"shape": [2], "dtype": "float32", "values": [1.0]}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": "float32", "values": ["1.0"]}], "kwargs": {}},
        {"args": [{"value": 1, "values": [1.0]}], "kwargs": {}},
        {"args": [{"items": 3}], "kwargs": {}},
        {"args": [{"items": {"boxes": 3}}], "kwargs": {}},
        {"args": [{"tuple": 3}], "kwargs": {}},
        {"args": [{"tuple": [3]}], "kwargs": {}},
        {"args": [{"fields": ["a"]}], "kwargs": {}},
        {"args": [{"tuple": [], "fields": ["a"]}], "kwargs": {}},
        {"args": [{"tuple": [{"value": 1}], "fields": "a"}], "kwargs": {}},
        {"args": [{"tuple": [{"value": 1}], "fields": [["a"]]}], "kwargs": {}},
        {"args": [{"tuple": [{"value": 1}], "fields": ["_a"]}], "kwargs": {}},
        {"args": [{"tuple": [{"value": 1}], "fields": ["a, b"]}], "kwargs": {}},
        {"args": [{"tuple": [{"value": 1}], "fields": ["class"]}], "kwargs": {}},
    ],
)
def test_a_file_that_describes_something_else(wrong: Any) -> None:
    with pytest.raises(ValueError, match="not a description"):
        rebuild(wrong)


def test_an_input_that_no_file_can_describe() -> None:
    with pytest.raises(ValueError, match="object"):
        describe(((object(),), {}))


def test_what_a_model_is_to_find_is_told_by_value() -> None:
    """Boxes of zeros would be none; a picture is too large to be told."""
    targets = [{"boxes": torch.tensor([[0.0, 1.5, 2.0, 3.0]]), "labels": torch.tensor([7]), "crowd": False}]
    picture = torch.rand(3, 40, 40)
    given = (([picture], targets), {})
    described = describe(given, values=True)
    assert tells_values(described) and not tells_values(describe(given))
    ((image,), (target,)), _ = rebuild(json.loads(json.dumps(described)))
    assert image.is_meta and image.shape == picture.shape and target["crowd"] is False
    assert torch.equal(target["boxes"], targets[0]["boxes"]) and torch.equal(target["labels"], targets[0]["labels"])
    ((_, (target,)), _) = rebuild(describe(given))
    assert target["boxes"].is_meta
