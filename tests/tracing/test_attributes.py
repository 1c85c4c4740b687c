"""Numbers that modules hold by name: read, and set for one module alone, whatever they are kept in."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp.tracing.attributes import entries_of, get_size, set_size, with_entries
from hfp.tracing.told import sizes


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


class FrozenDict(OrderedDict[str, Any]):
    """As configs of diffusers: entries are shown as attributes, and the only way to others is a new one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vars(self).update(self)

    def _refuse(self, *args: Any) -> Any:
        raise RuntimeError(f"a {type(self).__name__} is not changed")

    update = pop = setdefault = __delitem__ = __setattr__ = _refuse


class StrictDict(FrozenDict):
    """Cannot be copied either."""

    def __copy__(self) -> StrictDict:
        raise TypeError("cannot be copied")


class AttrDict(dict[str, Any]):
    """Its entries are its attributes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


HOLDERS = {
    "tuple": ((7, 4), "1"),
    "list": ([7, 4], "1"),
    "size": (torch.Size([7, 4]), "1"),
    "dict": ({"heads": 4, "name": "x"}, "heads"),
    "list in a dict": ({"sizes": [7, 4], "name": "x"}, "sizes.1"),
    "tuple in a config": (SimpleNamespace(sizes=(7, 4)), "sizes.1"),
    "ordered dict": (OrderedDict(heads=4), "heads"),
    "default dict": (defaultdict(int, heads=4), "heads"),
    "frozen dict": (FrozenDict(heads=4, name="x"), "heads"),
    "list in a frozen dict": (FrozenDict(sizes=[7, 4]), "sizes.1"),
    "strict dict": (StrictDict(heads=4), "heads"),
    "attributes of a dict": (AttrDict(heads=4), "heads"),
    "partial": (partial(print, 7, heads=4, name="x"), "heads"),
    "list in a partial": (partial(print, sizes=[7, 4]), "sizes.1"),
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


@pytest.mark.parametrize("kind", [FrozenDict, StrictDict, AttrDict])
def test_entries_that_are_attributes_as_well(kind: Any) -> None:
    module = module_with(kind(heads=4))
    if kind is FrozenDict:
        vars(module.sizes)["note"] = "kept"
    set_size(module, "sizes.heads", 3)
    assert module.sizes.heads == module.sizes["heads"] == 3
    assert kind is not FrozenDict or module.sizes.note == "kept"


class Joint(nn.Module):
    """Makes a tensor as wide as its config says."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config, self.a, self.b = config, nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        joint = x.new_zeros(*x.shape[:2], self._config.width)
        joint[:, :] = x
        return self.b(joint)


@pytest.mark.parametrize("kind", [FrozenDict, AttrDict])
def test_a_width_in_a_config_that_cannot_be_written_to(kind: Any, tmp_path: Path) -> None:
    model, x = Joint(kind(width=24, depth=24)), torch.randn(2, 6, 5)
    table = hfp.trace(model, x)
    assert table.channels == 24 and set(table.attributes) == {("", "_config.width")}
    small: Any = hfp.wrap(model, x, target_macs=0.5, verify=True).compact()
    assert small._config.width == small._config["width"] == 12 and small._config.depth == 24
    hfp.save(small, tmp_path / "small.safetensors")
    loaded: Any = hfp.load(tmp_path / "small.safetensors", Joint(kind(width=24, depth=24)))
    assert loaded._config.width == 12 and type(loaded._config) is kind
    assert torch.equal(loaded(x), small(x))
    if kind is FrozenDict:  # the other loses its attributes, whoever copies it
        assert copy.deepcopy(small)._config.width == 12


@pytest.mark.parametrize("name, others", [("config", {"config.width"}), ("_config", set())])
def test_numbers_in_private_configs_count_where_they_are_asked_for_alone(name: str, others: set[str]) -> None:
    """Else they would only be as large as something, as many numbers in a config are."""
    module = nn.Module()
    setattr(module, name, FrozenDict(width=24))
    assert {attribute for attribute, _ in sizes(module)} == others
    assert {attribute for attribute, _ in sizes(module, private=True)} == {f"{name}.width"}


def test_what_else_a_partial_holds_stays() -> None:
    module = module_with(partial(print, 7, heads=4))
    module.sizes.note = "kept"
    set_size(module, "sizes.heads", 3)
    assert (module.sizes.func, module.sizes.args, module.sizes.keywords) == (print, (7,), {"heads": 3})
    assert module.sizes.note == "kept"


def padded(x: Tensor, planes: int) -> Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], planes - x.shape[1])], 1)


class Padded(nn.Module):
    """Adds zeros up to a width, as shortcuts without weights do; two of them hold the same function for it."""

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shortcut = nn.Linear(3, 8), nn.Linear(8, 16), nn.Linear(16, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c((self.b(x) + self.shortcut(x)).relu())


def test_a_width_in_a_partial(tmp_path: Path) -> None:
    shortcut, x = partial(padded, planes=16), torch.randn(2, 3)
    model: Any = nn.Sequential(Padded(shortcut), Padded(shortcut))
    small: Any = hfp.wrap(copy.deepcopy(model), x, target_macs=0.6, verify=True, ignore=["1.*"]).compact()
    assert small[0].shortcut.keywords == {"planes": small[0].b.out_features} != {"planes": 16}
    assert small[1].shortcut.keywords == model[0].shortcut.keywords == {"planes": 16}
    hfp.save(small, tmp_path / "small.safetensors")
    loaded = hfp.load(tmp_path / "small.safetensors", model)
    assert torch.equal(loaded(x), small(x)) and torch.equal(copy.deepcopy(small)(x), small(x))
    assert shortcut.keywords == {"planes": 16}


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
