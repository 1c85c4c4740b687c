"""How far two forms of a network differ."""

from __future__ import annotations

import collections
import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from zoo import ZOO

from hfp.model.outputs import difference, tensors_of

X = torch.randn(2, 3, 8, 8)


def test_difference_sees_one_wrong_weight() -> None:
    model = ZOO["chain"].model()
    inputs = (ZOO["chain"].inputs(), {})
    other = copy.deepcopy(model)
    assert difference(model, other, inputs) == 0.0
    with torch.no_grad():
        other.a.weight[5, 2, 1, 1] += 0.1
    assert difference(model, other, inputs) > 1e-3


@pytest.mark.parametrize(
    "a, b, equal",
    [
        (lambda x: x.sum(), lambda x: x.sum(), True),
        (lambda x: {"a": x, "b": [x, None]}, lambda x: {"a": x, "b": [x, None]}, True),
        (lambda x: {"a": x, "b": [x, x]}, lambda x: {"a": x, "b": [x, x + 1]}, False),
        (lambda x: x, lambda x: x[:, :2], False),
        (lambda x: x, lambda x: x * float("nan"), False),
        (lambda x: x.clamp(0).log(), lambda x: x.clamp(0).log(), True),
        (lambda x: x * 0, lambda x: x * 0, True),
        (lambda x: x * 0, lambda x: x * 0 + 1, False),
        (lambda x: x > 0, lambda x: x > 0, True),
        (lambda x: torch.complex(x, x), lambda x: torch.complex(x, x), True),
        (lambda x: torch.complex(x, x), lambda x: torch.complex(x, 2 * x), False),
        (lambda x: torch.complex(x, x).conj(), lambda x: torch.complex(x, x), False),
        (lambda x: x[:, :0], lambda x: x[:, :0], True),
    ],
)
def test_difference_of_outputs_of_any_form(a: object, b: object, equal: bool) -> None:
    error = difference(a, b, ((X,), {}))  # type: ignore[arg-type]
    assert (error == 0.0) if equal else (error > 0.1)


def test_other_numbers_of_outputs_are_a_difference() -> None:
    assert difference(lambda x: [x], lambda x: [x, x], ((torch.zeros(1),), {})) == float("inf")


class Holder:
    def __init__(self, inner: object) -> None:
        self.inner = inner


def test_objects_in_objects_are_looked_into_once_each() -> None:
    """At a cost that does not double with each."""
    out: object = X
    for _ in range(200):
        out = Holder([out])
    assert tensors_of(out) == [X]


class Attributed(dict[str, Any]):
    """As easydict, OmegaConf and the like have them; its items are its attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self  # type: ignore[assignment]


class Named(dict[str, Any]):
    pass


class Listed(list[Any]):
    pass


class Slotted:
    __slots__ = ("__dict__", "hidden")

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


@dataclass
class Told:
    logits: torch.Tensor


def beside(out: Any, tensor: torch.Tensor) -> Any:
    out.loss = tensor
    return out


A, B = torch.zeros(1), torch.ones(2)
OBJECTS: dict[str, Any] = {
    "a dict with attributes": beside(Named(logits=A), B),
    "a list with attributes": beside(Listed([A]), B),
    "a dict of a library": beside(collections.UserDict(logits=A), B),
    "slots and attributes": beside(Slotted(A), B),
    "a dataclass with another attribute": beside(Told(A), B),
    "a dict that is its own attributes": Attributed(logits=A, loss=B),
    "dicts of such dicts": {"a": [Named(inner=Named(logits=A))], "b": Attributed(loss=B)},
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_tensors_are_found_in_items_and_attributes_once_each(kind: str) -> None:
    found = tensors_of(OBJECTS[kind])
    assert len(found) == 2 and {id(x) for x in found} == {id(A), id(B)}


def test_objects_without_tensors_are_refused_and_empty_containers_are_not() -> None:
    assert tensors_of([Named(), Listed(), {"a": ()}]) == []
    with pytest.raises(ValueError, match="returns a Holder, in which tensors cannot be found"):
        tensors_of(Holder(3))
