"""A copy is what `copy.deepcopy` makes of a model."""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfp.model.copies import copied, uncollected


class Holding(nn.Module):
    """Holds all kinds of things, itself and a part of itself among them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.again = self.layer
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("lost", torch.zeros(2), persistent=False)
        self.register_parameter("none", None)
        self.lists: Any = [self.layer, {"a": (1, torch.ones(1))}, self]
        self.names = ("a", "b")
        self.odd = {1, 2}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Reconstructed(nn.Module):
    """Copies itself by a call of its class, which looks at what it is given (as torch.compile's modules do)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.width = inner.weight.shape[0]

    def __reduce__(self) -> Any:
        return Reconstructed, (self.inner,)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Copied(nn.Module):
    """Says by itself what a copy is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        twin = Copied()
        twin.mark = "made by itself"
        return twin


def test_attributes_are_copied_and_identities_kept() -> None:
    model = Holding()
    twin = copied(model, {})
    assert twin is not model and type(twin) is Holding
    assert twin.layer is not model.layer and twin.again is twin.layer and twin.lists[0] is twin.layer
    assert twin.lists[2] is twin and twin.lists[1] is not model.lists[1]
    assert twin.names == model.names and twin.odd == model.odd and twin.odd is not model.odd
    names = ["kept", "layer.weight", "layer.bias", "again.weight", "again.bias"]
    assert list(twin.state_dict()) == list(copy.deepcopy(model).state_dict()) == names
    assert list(vars(twin)) == list(vars(model)) and twin.lost is not model.lost
    twin.layer.weight.data.zero_()
    assert model.layer.weight.any()


def test_activations_that_a_module_keeps_are_copied_without_their_history() -> None:
    model = nn.Linear(2, 2)
    kept = model(torch.ones(1, 2))
    model.last, model.cache, model.every = kept, {"cpu": kept}, [kept, 2 * kept]
    made = copied(model, {})
    assert made.last is made.cache["cpu"] is made.every[0] and made.last is not kept  # type: ignore[index]
    for old, new in zip(model.every, made.every, strict=True):  # type: ignore[arg-type]
        assert torch.equal(old, new) and not new.requires_grad and old.requires_grad


@pytest.mark.parametrize("holder", [lambda x: (x, x), lambda x: SimpleNamespace(deep=[x]), lambda x: {1: deque([x])}])
def test_activations_inside_of_what_a_module_keeps(holder: Callable[[Tensor], Any]) -> None:
    model = nn.Linear(2, 3)
    model.state = holder(model(torch.ones(1, 2)))
    assert type(copied(model, {}).state) is type(model.state)


def test_activations_of_modules_that_are_left_to_deepcopy() -> None:
    """A recurrent layer has a state of its own, and keeps a list of weights, which may be computed."""
    model = nn.LSTM(2, 3)
    model.dropped = model.weight_hh_l0 * 0.5
    model._flat_weights = [model.dropped, *model._flat_weights]
    twin = copied(model, {})
    assert torch.equal(twin.dropped, model.dropped) and twin.dropped.is_leaf and twin._flat_weights[0] is twin.dropped


def test_what_is_known_already_is_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    weight = nn.Parameter(torch.zeros(1, 2))
    assert copied(model, {id(model[0].weight): weight})[0].weight is weight


def test_modules_that_copy_themselves_do() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Reconstructed(nn.Linear(3, 4)), Copied())
    twin = copied(model, {})
    assert twin[1].width == 4 and twin[1].inner is not model[1].inner
    assert torch.equal(twin[1].inner.weight, model[1].inner.weight)
    assert twin[2].mark == "made by itself"


def test_what_python_does_not_copy_is_shared() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    model.lock, model.held = threading.Lock(), SimpleNamespace(lock=threading.RLock(), more=[math, {"weight": 3}])
    model.pool = ThreadPoolExecutor(1)
    twin = copied(model, {})
    assert twin.lock is model.lock and twin.held.lock is model.held.lock and twin.held.more[0] is math
    assert twin.held is not model.held and twin.held.more[1] == {"weight": 3}
    assert twin.held.more[1] is not model.held.more[1]


class Calling(nn.Module):
    """Holds functions that hold a part of it, a weight, each other, a method; and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        layer, weight, seen = nn.Linear(2, 3), nn.Parameter(torch.ones(2)), [1]

        def even(n: int) -> Any:
            return layer if n == 0 else odd(n - 1)

        def odd(n: int) -> Any:
            return even(n - 1)

        self.layer, self.weight = layer, weight
        self.itself, self.part, self.deep = lambda: self, [lambda: layer], {"x": (1, lambda: weight)}
        self.turns, self.default, self.named = even, lambda call=self.held: call(), lambda *, call=layer: call
        self.other: Any = lambda: seen
        held = self.held
        self.through = lambda: held()

    def held(self) -> nn.Module:
        return self.layer


def test_functions_call_the_copies_of_what_they_hold() -> None:
    model = Calling()
    twin = copied(model, {})
    assert twin.itself() is twin and model.itself() is model
    calls = [twin.part[0](), twin.turns(2), twin.through(), twin.default(), twin.named()]
    assert all(called is twin.layer for called in calls) and model.turns(2) is model.default() is model.layer
    assert twin.deep["x"][1]() is twin.weight is not model.weight
    assert twin.other is model.other
    assert copied(twin, {}).turns(4) is not twin.layer


def test_a_function_without_what_it_is_to_hold() -> None:
    model = nn.Linear(2, 2)

    def call() -> Any:
        return model, later

    model.call = call
    twin = copied(model, {})
    with pytest.raises(NameError, match="later"):
        twin.call()
    later = 3
    assert model.call() == (model, 3)


def test_what_can_be_neither_copied_nor_shared() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    model.held = [(weight for weight in model.parameters())]
    with pytest.raises(ValueError, match="the model holds a generator that cannot be copied"):
        copied(model, {})


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_part() -> None:
    model = nn.Sequential(nn.Linear(2, 3), torch.compile(nn.Linear(3, 4), backend="eager"))
    twin = copied(model, {})
    x = torch.ones(1, 2)
    torch.testing.assert_close(twin(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collection_is_as_it_was(collecting: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
