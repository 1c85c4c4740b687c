"""Whatever a watched run of a model writes into it is put back."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache, partial
from itertools import chain
from operator import is_not
from threading import local
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.optim import Optimizer
from torch.utils.data import Dataset


def set_mode(model: nn.Module, training: bool) -> None:
    """`model.train(training)`, but for what modules of the user's do then: merge weights, drop a cache."""
    for module in model.modules():
        module.training = training


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever is written into its modules in here (modes, caches, counters, sizes) is put back afterwards.

    So is what is written into objects that they hold, at any depth, and into tensors that are plain attributes, but not
    into parameters and buffers.
    """
    classes = [(module, type(module)) for module in model.modules()]
    saved, slots = _saved(model)
    try:
        yield
    finally:
        for module, own_class in classes:
            module.__class__ = own_class
        for container, before in saved.values():
            if isinstance(container, Tensor):
                if container.shape == before.shape and not torch.equal(container, before):
                    container.data.copy_(before)
            elif len(container) != len(before) or any(map(is_not, _flat(container), _flat(before))):
                _refill(container, before)
        for holder, slot, value in slots:
            if _value(holder, slot) is not value:
                slot.__delete__(holder) if value is _EMPTY else slot.__set__(holder, value)


_CONTAINERS = (dict, list, set, deque)
_PLAIN = {bool, int, float, str, type(None), type, FunctionType, BuiltinFunctionType, nn.Parameter}
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy"}
_HOLDERS = (
    nn.Module, Distribution, Transform, SimpleNamespace, Namespace, UserDict, UserList, WeakKeyDictionary,
    WeakValueDictionary, local,
)  # fmt: skip
"""What libraries have for others to keep things in; their loggers, locks and graphs are not looked into."""
_LEFT_ALONE = (int, str, Tensor, Optimizer, Dataset, Enum, ModuleType, type)
"""Nor are these, whoever has written the class."""
_EMPTY = object()


def _saved(model: nn.Module) -> tuple[dict[int, tuple[Any, Any]], list[tuple[Any, MemberDescriptorType, Any]]]:
    """All that a model holds, at any depth: id -> container or tensor, a copy; (object, slot, what is in it)."""
    saved: dict[int, tuple[Any, Any]] = {id(buffer): ((), ()) for buffer in model.buffers()}
    slots: dict[int, list[tuple[Any, MemberDescriptorType, Any]]] = {}
    slots_of: Callable[[type], list[MemberDescriptorType] | None] = cache(_slots)
    left: list[Any] = [*model.modules()]
    while left:
        value = left.pop()
        kind = type(value)
        if kind in _PLAIN or id(value) in saved or id(value) in slots:
            continue
        if kind is Tensor:
            if value.layout == torch.strided and not value.is_meta:
                saved[id(value)] = value, value.detach().clone()
        elif isinstance(value, tuple):
            left += value
        elif isinstance(value, partial):
            left += value.func, value.args, value.keywords
        elif isinstance(value, MethodType):
            left.append(value.__self__)
        elif isinstance(value, _CONTAINERS):
            before = dict(value) if isinstance(value, dict) else [*value]
            saved[id(value)] = value, before
            entries = before.values() if isinstance(before, dict) else before
            left += [entry for entry in entries if type(entry) not in _PLAIN]
        if (members := slots_of(kind)) is not None:
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                left.append(attributes)
            if members:
                slots[id(value)] = [(value, slot, _value(value, slot)) for slot in members]
                left += [entry for _, _, entry in slots[id(value)]]
    return saved, [*chain.from_iterable(slots.values())]


def _slots(kind: type) -> list[MemberDescriptorType] | None:
    """The slots of objects of a class. None, if a model's forward has no business to write into them."""
    library = kind.__module__.partition(".")[0] in _LIBRARIES and not issubclass(kind, _HOLDERS)
    if library or issubclass(kind, _LEFT_ALONE):
        return None
    bases = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    return [entry for base in bases for entry in base.values() if isinstance(entry, MemberDescriptorType)]


def _value(holder: Any, slot: MemberDescriptorType) -> Any:
    """What is in a slot."""
    try:
        return slot.__get__(holder)
    except AttributeError:
        return _EMPTY


def _refill(container: Any, before: Any) -> None:
    """Put back what was in a container, past what a class of the user's forbids, or does besides."""
    kind: Any = next(kind for kind in (OrderedDict, *_CONTAINERS) if isinstance(container, kind))
    kind.clear(container)
    if isinstance(container, dict):
        for key, value in before.items():
            kind.__setitem__(container, key, value)
    else:
        (kind.update if kind is set else kind.extend)(container, before)


def _flat(container: Any) -> Iterable[Any]:
    return chain.from_iterable(container.items()) if isinstance(container, dict) else container
