"""Tensors of one element that are made of numbers alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.tracing.numbers import Numbers
from hfp.tracing.watcher import operator_name


class Reckoning(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = Numbers()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **kwargs or {})
        self.numbers.reckon(func, operator_name(func), args, kwargs or {}, out)
        return out


def held(mode: Reckoning, tensor: Tensor) -> float | None:
    found = mode.numbers.of(tensor)
    return None if found is None else found.item()


X = torch.empty(2, 8, device="meta")


def test_what_is_reckoned_from_numbers_is_known_on_the_meta_device() -> None:
    with Reckoning() as mode:
        number = torch.full((1,), 16.0, device="meta")
        assert held(mode, number) == 16
        assert held(mode, number.rsqrt().view(1, 1) * 2) == 0.5
        assert held(mode, X.new_full((), 4.0).sqrt()) == 2
        assert held(mode, torch.ones(1).to("meta") + X.new_zeros(1)) == 1
        assert held(mode, torch.ones_like(number) / 4) == 0.25


def test_what_an_activation_went_into_is_not() -> None:
    with Reckoning() as mode:
        assert held(mode, X.sum() * 2) is None
        assert held(mode, X) is None
        assert held(mode, X.new_empty(1) + 1) is None


def test_what_is_written_is_followed() -> None:
    with Reckoning() as mode:
        number, at_hand = torch.ones(1, device="meta"), torch.ones(1)
        number.mul_(3)
        assert held(mode, number) == 3
        number.add_(at_hand)
        assert held(mode, number) == 4 and at_hand == 1
        number.copy_(X[0, :1])
        assert held(mode, number) is None
