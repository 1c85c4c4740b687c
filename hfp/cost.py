"""Parameters and multiply-adds as polynomials of live counts.

Every cost is a sum of products: a coefficient times the live lengths of a few axes, and the live length of an axis is a
fixed part plus a weighted sum of gates, or of products of gates (a head of attention times a place in it). In float64
that is exact for gates of 0 and 1 (up to 2**53), and differentiable in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hfp.labels import FIXED, NO_IDS, extended, unique_rows


@dataclass(frozen=True, eq=False)
class Factor:
    """The live length of an axis: `fixed` indices that always stay, and how many indices each channel takes up."""

    fixed: int
    channels: Tensor  # (n,) long, ascending
    weights: Tensor  # (n,) long

    @staticmethod
    def of(vector: Tensor) -> Factor:
        """From the channel number at every index of the axis."""
        prunable = vector[vector != FIXED]
        if bool((prunable[1:] > prunable[:-1]).all()):  # most axes: one index a channel, in order
            return Factor(len(vector) - len(prunable), prunable, torch.ones_like(prunable))
        channels, weights = prunable.unique(return_counts=True)
        return Factor(len(vector) - len(prunable), channels, weights)

    @cached_property
    def key(self) -> tuple[int, bytes, bytes]:
        """Equal for axes of equal live length."""
        return self.fixed, self.channels.numpy().tobytes(), self.weights.numpy().tobytes()


@dataclass(frozen=True, eq=False)
class Cost:
    """The sum over t of coefficients[t] * prod over k of live[factors[t, k]], with live as in `live`."""

    channels: int
    coefficients: Tensor  # (terms,) float64
    factors: Tensor  # (terms, degree) long; the last axis is the constant 1, as padding
    fixed: Tensor  # (axes + 1,) float64
    entries: Tensor  # (2, n) long: (axis, channel or product of channels)
    weights: Tensor  # (n,) float64
    products: Tensor  # (products, factors) long, see `hfp.labels.extended`

    def live(self, gates: Tensor) -> Tensor:
        """(axes + 1,) the live length of each axis, for gates (channels,)."""
        axis, channel = self.entries
        return self.fixed.index_add(0, axis, self.weights * extended(gates.to(self.weights), self.products)[channel])

    def __call__(self, gates: Tensor) -> Tensor:
        """The cost for gates (channels,), a float64 scalar."""
        return (self.coefficients * self.live(gates)[self.factors].prod(1)).sum()

    def count(self, keep: Tensor) -> int:
        """The exact count for a boolean keep vector (channels,)."""
        return round(self(keep.to(torch.float64)).item())

    def by_group(self, group_of: Tensor, groups: int) -> Cost | None:
        """The same as a function of how many channels of each group are live: `cost(counts)`, counts (groups,).

        None where it matters which of a group are live. For products it does not if each is there of each channel of
        one group with each of another: then so many are live as one count times the other.
        """
        kinds = torch.cat([group_of, torch.tensor([FIXED])])[self.products].sort(1).values
        if bool(((kinds[:, 1:] == kinds[:, :-1]) & (kinds[:, 1:] != FIXED)).any()):
            return None
        products, kind = unique_rows(kinds)  # of groups
        sizes = extended(group_of.bincount(minlength=groups), products)
        axis, channel = self.entries
        numbers = torch.cat([group_of, groups + kind])[channel]
        pairs, place = (axis * len(sizes) + numbers).unique(return_inverse=True)
        entries = torch.stack([pairs // len(sizes), pairs % len(sizes)])
        first = torch.zeros(len(pairs), dtype=torch.float64).index_copy(0, place, self.weights)
        whole = place.bincount(minlength=len(pairs)) == sizes[entries[1]]
        if not bool(whole.all()) or not torch.equal(first[place], self.weights):
            return None
        return replace(self, channels=groups, entries=entries, weights=first, products=products)

    def dense(self) -> int:
        return self.count(torch.ones(self.channels, dtype=torch.bool))


def build(channels: int, terms: list[tuple[int, tuple[Factor, ...]]], products: Tensor) -> Cost:
    """Equal terms are added up, equal axes stored once; axes that cannot shrink go into the coefficient."""
    axes: dict[tuple[int, bytes, bytes], int] = {}
    stored: list[Factor] = []
    summed: dict[tuple[int, ...], int] = {}
    for coefficient, factors in terms:
        numbers = []
        for factor in factors:
            if not len(factor.channels):
                coefficient *= factor.fixed
                continue
            number = axes.setdefault(factor.key, len(stored))
            if number == len(stored):
                stored.append(factor)
            numbers.append(number)
        summed[tuple(sorted(numbers))] = summed.get(tuple(sorted(numbers)), 0) + coefficient
    degree = max(map(len, summed), default=0)
    one = len(stored)  # the number of the constant axis
    rows = [numbers + (one,) * (degree - len(numbers)) for numbers in summed]
    axis = [torch.full_like(factor.channels, number) for number, factor in enumerate(stored)]
    return Cost(
        channels=channels,
        coefficients=torch.tensor(list(summed.values()), dtype=torch.float64),
        factors=torch.tensor(rows, dtype=torch.long).reshape(len(rows), degree),
        fixed=torch.tensor([factor.fixed for factor in stored] + [1], dtype=torch.float64),
        entries=torch.stack([torch.cat([NO_IDS, *axis]), torch.cat([NO_IDS, *(factor.channels for factor in stored)])]),
        weights=torch.cat([NO_IDS, *(factor.weights for factor in stored)]).double(),
        products=products,
    )
