"""`copied`: what `copy.deepcopy` makes of a model, quickly.

A module holds a dozen empty dicts and some names and numbers, on each of which `copy.deepcopy` spends as much as on a
tensor. Here they are seen to at once, and all else is left to `copy.deepcopy`: modules that say how they are to be
copied, and whatever else a model may hold. Activations that a module keeps are copied without their history.

`uncollected`: work that makes many objects, all of which live to its end, is not held up by garbage collection.
"""

from __future__ import annotations

import copy
import gc
import io
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_ATOMS = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type}
_SHARED = (
    ModuleType, ContextVar, io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, queue.SimpleQueue, threading.local,
    type(threading.Lock()), type(threading.RLock()), torch.jit.ScriptFunction,
)  # fmt: skip
"""What `copy.deepcopy` refuses, and a copy of a model may have in common with it."""
_STATE = nn.Module.__getstate__

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module, memo: dict[int, Any]) -> Module:
    """`copy.deepcopy(model, memo)`: `memo` tells by `id` what has a copy already, such as its parameters.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> copied(model, {id(model[0].weight): nn.Parameter(torch.zeros(1, 2))})[0].weight.shape
    torch.Size([1, 2])
    """
    plain = [module for module in model.modules() if id(module) not in memo and _is_plain(module)]
    for module in plain:  # all of them first, since they may hold each other
        memo[id(module)] = type(module).__new__(type(module))
    for module in model.modules():
        if id(module) not in memo:
            _without_history([*vars(module).values()], memo)
    for module in reversed(plain):  # inner ones first: a module that copies itself may look at what it holds
        state = {name: _value(value, memo) for name, value in _STATE(module).items()}
        memo[id(module)].__setstate__(state)
    return copy.deepcopy(model, memo)


def _is_plain(module: nn.Module) -> bool:
    """Whether a copy is a new object of its class, with copies of its attributes."""
    kind = type(module)
    return (
        kind.__getstate__ is _STATE
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__new__ is object.__new__
        and not hasattr(kind, "__deepcopy__")
        and "__deepcopy__" not in vars(module)
    )


def _without_history(value: Any, memo: dict[int, Any]) -> None:
    """Copy the activations that this holds, wherever in it, which `copy.deepcopy` refuses to do, into `memo`."""
    seen: set[int] = set()
    left = tree_leaves(value)
    while left:
        leaf = left.pop()
        if isinstance(leaf, Tensor):
            if not leaf.is_leaf and id(leaf) not in memo:
                memo[id(leaf)] = leaf.detach().clone()
        elif isinstance(leaf, _SHARED):
            memo[id(leaf)] = leaf
        elif not isinstance(leaf, (type, nn.Module)) and id(leaf) not in seen:
            seen.add(id(leaf))
            left += tree_leaves([*getattr(leaf, "__dict__", {}).values()])


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        for key, entry in value.items():
            made[_value(key, memo)] = _value(entry, memo)
        return made
    if kind is list:
        items = memo[id(value)] = []
        items += [_value(entry, memo) for entry in value]
        return items
    if kind is tuple and _ATOMS.issuperset(map(type, value)):
        return value
    if kind is set and not value:
        memo[id(value)] = set()
        return memo[id(value)]
    _without_history(value, memo)
    try:
        return copy.deepcopy(value, memo)
    except TypeError as error:
        raise ValueError(
            f"the model holds a {kind.__name__} that cannot be copied: {error}. Make it in the forward, or give the "
            "module that holds it a __deepcopy__"
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in here: a trace, or a copy, makes many objects, all of which live to its end."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def shared_functions(model: nn.Module) -> list[str]:
    """The attributes of modules that are functions which hold a part of the model: a copy goes on with the original's.

    >>> net = nn.Linear(2, 2)
    >>> net.double = lambda x: 2 * net(x)
    >>> shared_functions(net)
    ['double']
    """
    parts = set(model.modules())
    found = []
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            functions = [leaf for leaf in tree_leaves(value) if isinstance(leaf, FunctionType)]
            if any(isinstance(held, nn.Module) and held in parts for f in functions for held in _held(f)):
                found.append(f"{prefix}.{key}" if prefix else key)
    return found


def _held(function: FunctionType) -> Iterator[Any]:
    """What it holds of the functions around it, and the globals that it names."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing was put there
            yield cell.cell_contents
    yield from (function.__globals__.get(name) for name in function.__code__.co_names)
