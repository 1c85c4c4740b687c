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
from types import CellType, FunctionType, MethodType, ModuleType
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
    for parameter in model.parameters():  # which functions may hold
        _value(parameter, memo)
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
    if kind is tuple:
        return value if _ATOMS.issuperset(map(type, value)) else tuple(_value(entry, memo) for entry in value)
    if kind is FunctionType:
        return _function(value, memo)
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


def _function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """One that calls the copies of what it holds of the model, if it does: a lambda, a hook, a forward of its own."""
    if id(function) in memo or not any(id(held) in memo for held in _held(function, set())):
        return memo.get(id(function), function)

    def twin(held: Any) -> Any:
        owner = held.__self__ if isinstance(held, MethodType) else held
        return _value(held, memo) if isinstance(held, FunctionType) or id(owner) in memo else held

    cells = function.__closure__ or ()
    new = tuple(memo.setdefault(id(cell), CellType()) for cell in cells)
    made = FunctionType(function.__code__, function.__globals__, function.__name__, None, new)
    memo[id(function)] = made  # before it is asked for what it holds, which may be itself
    for cell, other in zip(cells, new, strict=True):
        with suppress(ValueError):  # nothing was put there
            other.cell_contents = twin(cell.cell_contents)
    made.__defaults__ = function.__defaults__ and tuple(map(twin, function.__defaults__))
    made.__kwdefaults__ = {name: twin(held) for name, held in (function.__kwdefaults__ or {}).items()}
    made.__qualname__ = function.__qualname__
    vars(made).update(vars(function))
    return made


def _held(function: FunctionType, seen: set[int]) -> Iterator[Any]:
    """What it holds of the functions around it, or by default, and what those do; of a method what it is one of."""
    seen.add(id(function))
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing was put there
            found.append(cell.cell_contents)
    for held in found:
        yield held.__self__ if isinstance(held, MethodType) else held
        if isinstance(held, FunctionType) and id(held) not in seen:
            yield from _held(held, seen)


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
    """The attributes of modules that are functions which name a part of the model, a global: a copy calls it as well.

    >>> functions = {"net": nn.Linear(2, 2)}
    >>> exec("net.double = lambda x: 2 * net(x)", functions)
    >>> shared_functions(functions["net"])
    ['double']
    """
    parts = set(model.modules())
    found = []
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            functions = [leaf for leaf in tree_leaves(value) if isinstance(leaf, FunctionType)]
            named = (f.__globals__.get(name) for f in functions for name in f.__code__.co_names)
            if any(isinstance(thing, nn.Module) and thing in parts for thing in named):
                found.append(f"{prefix}.{key}" if prefix else key)
    return found
