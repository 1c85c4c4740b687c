"""Parameters and multiply-adds as polynomials of live counts.

Every cost is a sum of products: a coefficient times the live lengths of a few axes, and the live length of an axis is a
fixed part plus a weighted sum of gates. In float64 that is exact for gates of 0 and 1 (up to 2**53), and differentiable
in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hfp.labels import FIXED


@dataclass(frozen=True)
class Factor:
    """The live length of an axis: `fixed` indices that always stay, and for each channel how many indices it takes
    up."""

    fixed: int
    channels: tuple[int, ...]
    weights: tuple[int, ...]

    @staticmethod
    def of(vector: Tensor) -> Factor:
        """From the channel number at every index of the axis."""
        channels, weights = vector[vector != FIXED].unique(return_counts=True)
        return Factor(int((vector == FIXED).sum()), tuple(channels.tolist()), tuple(weights.tolist()))


@dataclass(frozen=True, eq=False)
class Cost:
    """sum over terms of coefficient[t] * prod over k of live[factors[t, k]], live = fixed + weights summed over live
    channels."""

    channels: int
    coefficients: Tensor  # (terms,) float64
    factors: Tensor  # (terms, degree) long; the last axis is the constant 1, as padding
    fixed: Tensor  # (axes + 1,) float64
    entries: Tensor  # (2, n) long: (axis, channel)
    weights: Tensor  # (n,) float64

    def live(self, gates: Tensor) -> Tensor:
        """(axes + 1,) the live length of each axis, for gates (channels,)."""
        axis, channel = self.entries
        return self.fixed.index_add(0, axis, self.weights * gates.to(self.weights)[channel])

    def __call__(self, gates: Tensor) -> Tensor:
        """The cost for gates (channels,), a float64 scalar."""
        return (self.coefficients * self.live(gates)[self.factors].prod(1)).sum()

    def count(self, keep: Tensor) -> int:
        """The exact count for a boolean keep vector (channels,)."""
        return round(self(keep.to(torch.float64)).item())

    def dense(self) -> int:
        return self.count(torch.ones(self.channels, dtype=torch.bool, device=self.weights.device))

    @cache  # noqa: B019 - one entry for each device that a cost is ever used on
    def to(self, device: torch.device) -> Cost:
        moved = (
            tensor.to(device) for tensor in (self.coefficients, self.factors, self.fixed, self.entries, self.weights)
        )
        return Cost(self.channels, *moved)


def build(channels: int, terms: list[tuple[int, tuple[Factor, ...]]]) -> Cost:
    """Terms of equal factors are added up; equal axes are stored once; axes that cannot shrink go into the
    coefficient."""
    axes: dict[Factor, int] = {}
    summed: dict[tuple[int, ...], int] = {}
    for coefficient, factors in terms:
        key = []
        for factor in factors:
            if factor.channels:
                key.append(axes.setdefault(factor, len(axes)))
            else:
                coefficient *= factor.fixed
        summed[tuple(sorted(key))] = summed.get(tuple(sorted(key)), 0) + coefficient
    degree = max(map(len, summed), default=0)
    one = len(axes)
    rows = [key + (one,) * (degree - len(key)) for key in summed]
    entries = [
        (axis, channel, weight)
        for factor, axis in axes.items()
        for channel, weight in zip(factor.channels, factor.weights, strict=True)
    ]
    return Cost(
        channels=channels,
        coefficients=torch.tensor(list(summed.values()), dtype=torch.float64),
        factors=torch.tensor(rows, dtype=torch.long).reshape(len(rows), degree),
        fixed=torch.tensor([factor.fixed for factor in axes] + [1], dtype=torch.float64),
        entries=torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T,
        weights=torch.tensor([entry[2] for entry in entries], dtype=torch.float64),
    )
