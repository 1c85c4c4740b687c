"""What a run writes into what a model holds is put back, wherever it is."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections import OrderedDict, UserDict
from collections.abc import Callable
from enum import Enum
from types import MethodType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

import hfp
from hfp.tracing.preserved import preserved

X = torch.randn(1, 5, 4)


class Table:
    """A table of positions that is made when it is needed, and goes where it is needed; as rotary embeddings do it."""

    def __init__(self, keep: Callable[[Tensor], Any] = lambda table: table) -> None:
        self.kept: Any = None
        self.keep = keep

    def __call__(self, ids: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.keep(torch.arange(32.0)[:, None] * torch.ones(4))
        (table,) = tree_leaves(self.kept)
        if table.device != ids.device:
            table = table.to(ids.device)
            self.kept = self.keep(table)
        return table[ids]


class Slotted:
    __slots__ = ("__private", "table")

    def __init__(self) -> None:
        self.table = Table()

    def __call__(self, ids: Tensor) -> Tensor:
        self.__private = ids
        return self.table(ids)


class Outer:
    """One that holds others, and itself."""

    def __init__(self) -> None:
        self.inner = SimpleNamespace(tables={"first": (Table(),)}, outer=self)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.inner.tables["first"][0](ids)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class Positions(nn.Module):
    def __init__(self, held: Any, get: Callable[[Any], Any]) -> None:
        super().__init__()
        self.held, self.get, self.a, self.b = held, get, nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.get(self.held)(torch.arange(x.shape[1], device=x.device))
        return self.b(self.a(x + positions).relu())


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "object": (Table, lambda held: held),
    "its list": (lambda: Table(lambda table: [table]), lambda held: held),
    "its dict": (lambda: Table(lambda table: {"table": table}), lambda held: held),
    "in a list": (lambda: [Table()], lambda held: held[0]),
    "in a tuple in a dict": (lambda: {"all": (Table(),)}, lambda held: held["all"][0]),
    "in an object": (Outer, lambda held: held),
    "in slots": (Slotted, lambda held: held),
    "method": (lambda: Table().__call__, lambda held: held),
    "partial": (lambda: functools.partial(lambda table, ids: table(ids), Table()), lambda held: held),
    "in a module that is none of the model's": (lambda: [Hidden()], lambda held: held[0]),
    "in a dict of the library's": (lambda: UserDict(table=Table()), lambda held: held["table"]),
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("held, get", HELD.values(), ids=HELD.keys())
def test_a_table_that_an_object_keeps(held: Any, get: Any, called: bool) -> None:
    """It was made on the meta device, where there are no numbers, by the trace; the model is not to find it there."""
    model = Positions(held(), get).eval()
    right = copy.deepcopy(model)(X)
    if called:
        model(X)
    assert hfp.trace(model, X).channels == 16
    assert torch.equal(model(X), right)


class Strict(OrderedDict):
    """Takes new entries one by one alone, and shows them as attributes too; as outputs of transformers do."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("no update")

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        setattr(self, key, value)


def test_a_dict_with_a_will_of_its_own() -> None:
    model = nn.Module()
    model.held = Strict()
    model.held["a"], model.held["b"] = 1, 2
    with preserved(model):
        model.held["a"] = 3
        del model.held["b"]
    assert list(model.held.items()) == [("a", 1), ("b", 2)] and vars(model.held) == {"a": 1, "b": 2}


def test_slots_are_filled_and_emptied() -> None:
    class Point:
        __slots__ = ("x", "y")

    model = nn.Module()
    model.point = point = Point()
    point.x = before = [1]
    with preserved(model):
        point.x, point.y = [2], 3
    assert point.x is before and not hasattr(point, "y")
    with preserved(model):
        del point.x
    assert point.x is before


def test_distributions_and_what_is_kept_for_others() -> None:
    """What they reckon when asked is kept in them."""
    model, key = nn.Module(), nn.Module()
    model.prior, model.by_module, model.own = torch.distributions.Categorical(torch.ones(3)), WeakKeyDictionary(), {}
    model.thread = threading.local()
    before = set(vars(model.prior))
    with preserved(model):
        model.prior.logits, model.by_module[key], model.thread.h = torch.zeros(3), 1, 2
    assert set(vars(model.prior)) == before and not model.by_module and not hasattr(model.thread, "h")


def test_what_is_not_the_models_own_is_left_alone() -> None:
    class Level(Enum):
        LOW = 1

    class Images(TensorDataset):
        pass

    class Mine(torch.optim.SGD):
        pass

    model, data = nn.Linear(2, 2), Images(torch.zeros(2))
    model.log, model.level, model.data = logging.getLogger("hfp.test.preserved"), Level.LOW, data
    model.optimizer, model.library, model.kind = Mine(model.parameters(), lr=1.0), torch, Table
    model.bound = MethodType(lambda self: self, model)
    with preserved(model):
        model.log.note = model.level.note = model.kind.note = data.note = 1
        model.optimizer.param_groups[0]["lr"] = 0.5
    assert model.log.note == model.level.note == Table.note == data.note == 1  # type: ignore[attr-defined]
    assert model.optimizer.param_groups[0]["lr"] == 0.5
