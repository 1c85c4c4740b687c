"""How far two forms of a network differ."""

from __future__ import annotations

import copy

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
