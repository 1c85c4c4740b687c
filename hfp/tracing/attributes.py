"""Numbers that modules hold by name: attributes, and entries of attributes (tuples, dicts, partials, a config)."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def get_size(module: nn.Module, attribute: str) -> int:
    """What `set_size` sets."""
    name, *keys = attribute.split(".")
    value = getattr(module, name)
    for key in keys:
        value = entries_of(value)[key]
    return int(value)


def set_size(module: nn.Module, attribute: str, value: int) -> None:
    """Set an integer attribute, or an entry of one (`normalized_shape.0`, `config.sizes.1`), for this module alone."""
    name, _, key = attribute.partition(".")
    setattr(module, name, with_entries(getattr(module, name), {key: value}) if key else value)
    if name[0] == "_" and key in entries_of(shown := getattr(module, name[1:], None)):
        setattr(module, name[1:], with_entries(shown, {key: value}))  # what einops shows of a layer


def entries_of(holder: Any) -> dict[str, Any]:
    """What an attribute holds by name: entries of a tuple or list by number, of a dict, of a plain object (a config).

    Of a `functools.partial`, what its function is given by name.

    >>> entries_of((3, 8)), entries_of({"heads": 4}), entries_of((("heads", 4), ("width", 8))), entries_of("text")
    ({'0': 3, '1': 8}, {'heads': 4}, {'heads': 4, 'width': 8}, {})
    """
    if type(holder) is partial:
        holder = holder.keywords
    if are_pairs(holder):
        return dict(holder)
    if type(holder) in (tuple, list, torch.Size):
        return {str(number): entry for number, entry in enumerate(holder)}
    if isinstance(holder, dict):
        return {name: entry for name, entry in holder.items() if type(name) is str}
    return {name: entry for name, entry in vars(holder).items() if name[:1] != "_"} if is_plain(holder) else {}


def numbers_in(holder: Any) -> Iterator[tuple[str, int]]:
    """(key, value) of the whole numbers among the entries, and among those of tuples and lists in it.

    >>> list(numbers_in({"heads": 4, "sizes": [8, 16], "name": "small"}))
    [('heads', 4), ('sizes.0', 8), ('sizes.1', 16)]
    """
    for key, entry in entries_of(holder).items():
        if type(entry) is int and "." not in key:
            yield key, entry
        elif type(entry) in (tuple, list) and "." not in key and not isinstance(holder, (tuple, list)):
            yield from ((f"{key}.{number}", each) for number, each in enumerate(entry) if type(each) is int)


def are_pairs(holder: Any) -> bool:
    """Whether these are the items of a dict, as layers of einops keep lengths of axes."""
    pairs = type(holder) is tuple and len(holder) > 0
    return pairs and all(type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str for pair in holder)


def is_config(holder: Any) -> bool:
    """Whether this is a dict of a class of the user's, as diffusers keeps its configs, under a private name."""
    return isinstance(holder, dict) and type(holder).__module__ not in ("builtins", "collections")


def is_plain(holder: Any) -> bool:
    """Whether this is an object with attributes and little else: a config of the user's, a state."""
    other = (type, nn.Module, Tensor, ModuleType, dict, list, tuple)
    return hasattr(holder, "__dict__") and not isinstance(holder, other) and not callable(holder)


def contents(holder: Any) -> dict[Any, Any]:
    """All that an attribute holds, whatever it is called."""
    if type(holder) is partial:
        return dict(holder.keywords)
    if isinstance(holder, (tuple, list)):
        return dict(enumerate(holder))
    return dict(holder if isinstance(holder, dict) else vars(holder))


def with_entries(holder: Any, new: Mapping[str, Any]) -> Any:
    """A copy with other entries, `sizes.1` within others: what other modules hold of it stays as it is.

    Itself, if it cannot be copied.
    """
    if type(holder) is partial:
        other = partial(holder.func, *holder.args, **with_entries(holder.keywords, new))
        vars(other).update(vars(holder))
        return other
    inner: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in new.items():
        outer, _, rest = key.partition(".")
        inner[outer][rest] = value
    own = entries_of(holder)
    new = {key: some[""] if "" in some else with_entries(own[key], some) for key, some in inner.items()}
    if are_pairs(holder):
        return tuple({**dict(holder), **new}.items())
    if type(holder) in (tuple, list, torch.Size):
        return type(holder)({**entries_of(holder), **new}.values())
    if isinstance(holder, dict):
        with suppress(Exception):  # whatever the user's class says to it
            return _made_anew(holder, new)
    try:
        other = copy.copy(holder)
        if other is not holder:
            (other if isinstance(other, dict) else vars(other)).update(new)
    except Exception:  # here as well
        return holder
    return other


def _made_anew(holder: dict[Any, Any], new: Mapping[str, Any]) -> dict[Any, Any]:
    """A dict of the same class, which may forbid that it is changed later, or show its entries as attributes too."""
    other = type(holder)({**holder, **new})
    for name, value in getattr(holder, "__dict__", {}).items():
        vars(other).setdefault(name, value)
    return other
