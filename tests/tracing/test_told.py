"""Numbers that remember which attributes they are, or are made of; what calls ask for."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfp
from hfp.tracing.told import Reckoned, Span, Told, attributes_asked, mark, parts_asked, sizes, unremembered

SPAN = Span()
DIM, HEADS = Told(32, [("a", "dim")], SPAN), Told(4, [("a", "heads")], SPAN)


@pytest.mark.parametrize(
    "number, value, of",
    [
        (DIM // HEADS, 8, {"dim", "heads"}),
        (DIM // 4, 8, {"dim"}),
        (64 // DIM, 2, {"dim"}),
        (3 * DIM, 96, {"dim"}),
        (DIM - HEADS, 28, {"dim", "heads"}),
        (1 + DIM, 33, {"dim"}),
        (DIM % 5, 2, {"dim"}),
        (2 * (DIM // HEADS) + DIM, 48, {"dim", "heads"}),
        (-DIM, -32, {"dim"}),
        (2 - DIM, -30, {"dim"}),
    ],
)
def test_reckoned_numbers_remember(number: Any, value: int, of: set[str]) -> None:
    assert number == value and isinstance(number, Reckoned) and not isinstance(number, Told)
    assert {name for _, name in number.of} == of


@pytest.mark.parametrize("number", [DIM / HEADS, DIM**-0.5, DIM * 1.5, int(DIM / 2), DIM == 32, abs(-DIM)])
def test_other_arithmetic_is_that_of_plain_numbers(number: Any) -> None:
    assert type(number) in (float, int, bool)


def test_they_are_numbers_to_everybody_else() -> None:
    assert hash(DIM) == hash(32) and list(range(HEADS)) == [0, 1, 2, 3] and f"{DIM}" == "32"
    assert torch.zeros(2, DIM).view(2, HEADS, DIM // HEADS).shape == (2, 4, 8)
    assert copy.deepcopy(DIM) == copy.copy(DIM) == 32
    with pytest.raises(ZeroDivisionError):
        DIM // 0
    with pytest.raises(TypeError):
        DIM // "4"


def test_what_is_kept_forgets() -> None:
    """A number of one model, in the cache of a function, is a plain one to the next."""
    span = Span()
    old = Told(32, [("a", "dim")], span)
    half = old // 2
    assert copy.deepcopy(half).of == half.of == (("a", "dim"),)
    assert type(pickle.loads(pickle.dumps(half))) is int
    span.over = True
    assert old.of == half.of == () == (old * 2).of and old == 32
    assert (old // HEADS).of == (HEADS // old).of == (("a", "heads"),)
    assert (old // HEADS * 2).of == (("a", "heads"),)


@lru_cache
def parted(heads: int) -> tuple[int, int]:
    return heads, -1


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.make, self.read = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.make(x).unflatten(-1, parted(self.heads))
        return self.read((h @ h.transpose(-1, -2) @ h).flatten(-2))


def test_a_trace_does_not_hang_on_those_before() -> None:
    def named(name: str) -> nn.Module:
        model = nn.Module()
        model.forward = lambda x: model.get_submodule(name)(x)  # type: ignore[method-assign]
        model.add_module(name, Attention(4))
        return model

    x = torch.zeros(2, 5, 12)
    parted.cache_clear()
    hfp.trace(named("first"), x)
    table = hfp.trace(named("second"), x)
    parted.cache_clear()
    assert set(table.attributes) == set(hfp.trace(named("second"), x).attributes) == {("second", "heads")}


def test_einops_reckons_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = SimpleNamespace(_reconstruct_from_shape_uncached=lambda n: [n])
    library._reconstruct_from_shape = lru_cache(library._reconstruct_from_shape_uncached)
    kept = library._reconstruct_from_shape
    monkeypatch.setitem(sys.modules, "einops.einops", library)
    library._reconstruct_from_shape(DIM)
    with unremembered():
        other = Told(32, [("b", "dim")], SPAN)
        assert library._reconstruct_from_shape(other)[0] is other
    assert library._reconstruct_from_shape is kept and kept(other)[0] is DIM
    monkeypatch.setitem(sys.modules, "einops.einops", SimpleNamespace())
    with unremembered():
        pass


def test_a_trace_that_is_interrupted_ends() -> None:
    """Even where the forward has written to what holds sizes, after which an error has it run again."""
    interrupts = [KeyboardInterrupt()]

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes, self.layer = {"calls": 0}, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.sizes["calls"] += 1
            if interrupts:
                raise interrupts.pop()
            return self.layer(x)

    with pytest.raises(KeyboardInterrupt):
        hfp.trace(Counting(), torch.zeros(1, 4))


def test_attributes_are_marked_for_each_module_alone() -> None:
    config = SimpleNamespace(heads=4, name="x")
    model = nn.Sequential(nn.Identity(), nn.Identity())
    for child in model:
        child.config, child.dims, child.width = config, (3, 5), 7
    mark({module: name for name, module in model.named_modules()}, SPAN)
    assert model[0].config.heads.of == (("0", "config.heads"),) and model[0].dims[1].of == (("0", "dims.1"),)
    assert model[1].config.heads.of == (("1", "config.heads"),) and model[1].width.of == (("1", "width"),)
    assert config.heads == 4 and type(config.heads) is int
    assert dict(sizes(model[0])) == {}  # what is marked is no plain number any more


def labels(*lengths: int) -> tuple[torch.Tensor, ...]:
    return tuple(100 * axis + torch.arange(length) for axis, length in enumerate(lengths))


N = Told(6, [("", "n")], SPAN)


@pytest.mark.parametrize(
    "function, args, given, made, found",
    [
        ("view", (None, 2, N, -1), (2, 12), [(2, 6, 2)], [range(100, 106)]),
        ("view", (None, 2, Told(5, [("", "n")], SPAN), -1), (2, 12), [(2, 6, 2)], []),
        ("__getitem__", (None, (slice(None), slice(None, N))), (2, 12), [(2, 6)], [range(100, 106)]),
        ("__getitem__", (None, (slice(None), slice(N, None))), (2, 12), [(2, 6)], [range(100, 106)]),
        ("__getitem__", (None, (..., slice(None, N))), (2, 3, 12), [(2, 3, 6)], [range(200, 206)]),
        ("__getitem__", (None, (0, slice(None), None, slice(None, N))), (2, 3, 12), [(3, 1, 6)], [range(200, 206)]),
        ("__getitem__", (None, slice(None, N)), (12, 2), [(6, 2)], [range(6)]),
        ("__getitem__", (None, N), (12, 2), [(2,)], []),
        ("split", (None, N, 1), (2, 12), [(2, 6), (2, 6)], [range(100, 106)]),
        ("split", (None, [4, N], 1), (2, 10), [(2, 4), (2, 6)], [range(100, 106)]),
    ],
)
def test_a_call_tells_what_its_numbers_count(function: str, args: Any, given: Any, made: Any, found: Any) -> None:
    asked = attributes_asked(function, args, {}, labels(*given), [labels(*lengths) for lengths in made])
    assert [(ids.tolist(), attribute) for ids, attribute in asked] == [(list(ids), ("", "n")) for ids in found]


def test_parts_that_are_asked_for() -> None:
    assert parts_asked("split", (None, 4), {"dim": 1}, 3) == ([4, 4], 1)  # the last may be shorter
    assert parts_asked("split", (None, 4), {}, 1) is None
    assert parts_asked("split", (None, (3, 5), -1), {}, 2) == ([3, 5], -1)
    assert parts_asked("chunk", (None, 2), {}, 2) is None
