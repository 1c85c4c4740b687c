"""Numbers that modules hold by name: read, and set for one module alone, whatever they are kept in."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hfp.tracing.attributes import entries_of, get_size, set_size, with_entries


@dataclass(frozen=True)
class Frozen:
    heads: int = 4


class Guarded:
    """Objects to being told anything."""

    def __init__(self) -> None:
        self.__dict__["heads"] = 4

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Alone:
    """There can be only one of it."""

    def __init__(self) -> None:
        self.heads, self.lock = 4, threading.Lock()

    def __copy__(self) -> Alone:
        raise TypeError("cannot be copied")


HOLDERS = {
    "tuple": ((7, 4), "1"),
    "list": ([7, 4], "1"),
    "size": (torch.Size([7, 4]), "1"),
    "dict": ({"heads": 4, "name": "x"}, "heads"),
    "list in a dict": ({"sizes": [7, 4], "name": "x"}, "sizes.1"),
    "tuple in a config": (SimpleNamespace(sizes=(7, 4)), "sizes.1"),
    "ordered dict": (OrderedDict(heads=4), "heads"),
    "namespace": (SimpleNamespace(heads=4), "heads"),
    "frozen dataclass": (Frozen(), "heads"),
    "guarded": (Guarded(), "heads"),
}


def module_with(holder: Any) -> nn.Module:
    module = nn.Module()
    module.sizes = holder
    return module


@pytest.mark.parametrize("holder, key", HOLDERS.values(), ids=HOLDERS.keys())
def test_an_entry_is_set_for_one_module_alone(holder: Any, key: str) -> None:
    one, other = module_with(holder), module_with(holder)
    set_size(one, f"sizes.{key}", 3)
    assert (get_size(one, f"sizes.{key}"), get_size(other, f"sizes.{key}")) == (3, 4)
    assert type(one.sizes) is type(holder)
    set_to = key.partition(".")[0]
    rest = {name: entry for name, entry in entries_of(holder).items() if name != set_to}
    assert {name: entry for name, entry in entries_of(one.sizes).items() if name != set_to} == rest


def test_a_plain_attribute_is_set() -> None:
    module = module_with(4)
    set_size(module, "sizes", 3)
    assert get_size(module, "sizes") == module.sizes == 3


@pytest.mark.parametrize("holder", [Alone(), logging.getLogger("hfp.test")])
def test_what_cannot_be_copied_stays_as_it_is(holder: Any) -> None:
    before = dict(vars(holder))
    assert with_entries(holder, {"heads": 3, "level": 3}) is holder
    assert vars(holder) == before


@pytest.mark.parametrize("holder", ["text", 3, None, torch.zeros(2), nn.Linear(2, 2), len, int, copy])
def test_nothing_is_looked_for_in_what_is_no_holder_of_numbers(holder: Any) -> None:
    assert entries_of(holder) == {}


def test_lengths_of_axes_in_a_layer_of_einops() -> None:
    """It computes with the items, and shows the dict."""
    layers = pytest.importorskip("einops.layers.torch")
    split = layers.Rearrange("b (h d) -> b h d", h=4)
    assert get_size(split, "_axes_lengths.h") == 4
    set_size(split, "_axes_lengths.h", 3)
    assert split(torch.zeros(2, 6)).shape == (2, 3, 2) and "h=3" in repr(split)
