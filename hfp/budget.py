"""Targets, and the loss that compares live counts with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from hfp.cost import Cost

Target = float | int


def absolute(target: Target, name: str, dense: int, least: int) -> int:
    """The absolute count that a target asks for: a float in (0, 1] is a share of the dense model, an int a count.

    `name`: what the user calls the target, for messages. `dense`, `least`: the largest and smallest count there can be.
    ValueError for a target that is none, or out of reach.

    >>> absolute(0.4, "target_macs", dense=1000, least=10)
    400
    >>> absolute(123, "target_macs", dense=1000, least=10)
    123
    """
    if isinstance(target, bool) or not isinstance(target, (int, float)):
        raise ValueError(
            f"{name}={target!r}: expected a share of the dense model, such as 0.4, or a whole number from {least:,} on"
        )
    if isinstance(target, float) and not (math.isfinite(target) and 0.0 < target <= 1.0):
        raise ValueError(
            f"{name}={target!r}: a share of the dense model lies above 0 and at most at 1, such as {name}=0.4"
        )
    if target <= 0:
        raise ValueError(f"{name}={target!r}: a count is a whole number from {least:,} on (a share: {name}=0.4)")
    count = _share(target, dense) if isinstance(target, float) else target
    if count > dense:
        raise ValueError(f"{name}={target!r} is above the {dense:,} of the dense model; nothing would be pruned")
    if count < least:
        whole = f" (a whole number is a count; the whole network is {name}=1.0)" if count == target == 1 else ""
        raise ValueError(
            f"{name}={target!r} asks for {count:,}{whole}, but cut as far as it goes this network still has {least:,} "
            f"({least / dense:.4f} of the dense {dense:,}); the smallest reachable target is {name}={least}. "
            "print(hfp.trace(model, example_inputs)) shows what stays whole, and why; ignore and round_to add to it"
        )
    return count


def _share(share: float, dense: int) -> int:
    """The largest count that is no more than this share of `dense`, as floats are compared.

    >>> _share(0.29, 100), _share(7 / 84, 84)
    (29, 7)
    """
    count = math.floor(Fraction(str(share)) * dense)
    return count + 1 if (count + 1) / dense <= share else count


@dataclass(frozen=True)
class Budget:
    """One count that has to come down: from `dense` to `target`."""

    name: str
    cost: Cost
    dense: int
    target: int

    def at(self, share: float) -> int:
        """What the count may be when the budget has come down this share of its way, in [0, 1]."""
        return self.target + math.floor((self.dense - self.target) * (1.0 - min(max(share, 0.0), 1.0)))

    def gap(self, gates: Tensor) -> Tensor:
        """How far the live count is above the target, relative to dense; linear, so it pulls until it is met."""
        return torch.relu(self.cost(gates) - self.target) / self.dense
