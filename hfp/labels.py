"""Labels: which channel every element of a tensor belongs to, and what a run says of them.

Each dim of each named tensor (parameter or buffer) of a model gets one integer id per index, so that a convolution
weight of shape (O, I, 3, 3) holds O + I + 3 + 3 ids. The ids travel with the values: an activation is shadowed by
*planes*, integer tensors that tell for each element the id it belongs to. What operators do to planes is said in
`hfp.rules`; what they find out (these ids are one channel, that id must stay) is written down in a `Ledger`.

A plane is kept *compressed*: it has the rank of its tensor and size 1 along every axis on which it does not vary, so
the
plane of an activation of shape (32, 64, 56, 56) is (1, 64, 1, 1). A tensor may have several planes (a weight has one
for each dim); two planes of one tensor never vary along the same axis, except right after a view that merges axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIXED = -1  # the id of an element that belongs to no channel: input pixels, zero padding, constants

Planes = tuple[Tensor, ...]


def compress(plane: Tensor) -> Tensor:
    """Size 1 along every axis on which `plane` is constant."""
    for axis, size in enumerate(plane.shape):
        if size > 1:
            first = plane.narrow(axis, 0, 1)
            if plane.stride(axis) == 0 or bool((plane == first).all()):
                plane = first
    return plane


def varying(plane: Tensor) -> set[int]:
    """The axes along which a compressed plane varies."""
    return {axis for axis, size in enumerate(plane.shape) if size != 1}


def align(plane: Tensor, rank: int) -> Tensor:
    """Leading axes of size 1, as broadcasting adds them."""
    return plane.reshape((1,) * (rank - plane.dim()) + plane.shape)


def along(ids: Tensor, axis: int, rank: int) -> Tensor:
    """The plane that varies along one axis only."""
    return ids.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def prunable(channels: Tensor) -> bool:
    """Whether any index of an axis, given by its channel numbers, can be removed."""
    return bool((channels != FIXED).any())


@dataclass(frozen=True)
class Place:
    """Where in a model an operator ran."""

    operator: str
    module: str
    line: str

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.operator}{where} ({self.line})" if self.line else f"{self.operator}{where}"


@dataclass(frozen=True)
class Pin:
    """These ids must stay whole, and why."""

    ids: Tensor
    reason: str
    place: Place


@dataclass(frozen=True)
class Term:
    """One summand of a cost: `coefficient` times the live counts of the axes in `factors`, each a vector of ids."""

    coefficient: int
    factors: tuple[Tensor, ...]
    module: str


@dataclass
class Ledger:
    """What the labelled runs of one model found out."""

    axes: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Tensor name -> the ids along each of its dims."""
    ties: list[Tensor] = field(default_factory=list)
    """Pairs (2, n) of ids that are the same channel."""
    pins: list[Pin] = field(default_factory=list)
    produced: list[Tensor] = field(default_factory=list)
    """Ids that a mixer made: only these can ever be pruned."""
    readers: dict[str, set[int]] = field(default_factory=dict)
    """Tensor name -> the dims on which it reads channels: where the gates sit."""
    attributes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(module, attribute) of an integer that no tensor tells, such as groups -> one id for each that it counts."""
    wide: list[Tensor] = field(default_factory=list)
    """Ids along axes that must stay longer than 1, since a squeeze would swallow them."""
    macs: list[Term] = field(default_factory=list)
    ptflops: list[Term] | None = None
    """What ptflops' default backend counts; None where it fails on the network."""
    notes: list[str] = field(default_factory=list)
    size: int = 0

    def number(self, name: str, shape: Sequence[int]) -> None:
        """Give new ids to every dim of the tensor `name`."""
        starts = [self.size + sum(shape[:dim]) for dim in range(len(shape))]
        self.axes[name] = tuple(
            torch.arange(start, start + length) for start, length in zip(starts, shape, strict=True)
        )
        self.size += sum(shape)

    def planes(self, name: str) -> Planes:
        """The planes of the tensor `name` itself: one for each dim that is longer than 1."""
        ids = self.axes[name]
        return tuple(along(vector, dim, len(ids)) for dim, vector in enumerate(ids) if len(vector) > 1)

    def tie(self, a: Tensor, b: Tensor, place: Place) -> None:
        """Element by element, the ids in `a` and `b` (shapes that broadcast) are one channel.

        Invariant: an id that meets FIXED is pinned.
        """
        a, b = torch.broadcast_tensors(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        lost = torch.where(a == FIXED, b, a)[(a == FIXED) != (b == FIXED)]
        if lost.numel():
            self.pin(lost, "meets values that belong to no channel at the same positions", place)
        both = (a != FIXED) & (b != FIXED) & (a != b)
        if both.any():
            self.ties.append(torch.stack([a[both], b[both]]))

    def pin(self, ids: Tensor, reason: str, place: Place) -> None:
        ids = ids.reshape(-1)
        ids = ids[ids != FIXED]
        if ids.numel():
            self.pins.append(Pin(ids, reason, place))

    def vector(self, plane: Tensor, axis: int, place: Place) -> Tensor:
        """The ids along `axis`; ids that share a position on it are one channel, whatever they do along other axes."""
        rows = plane.movedim(axis, 0).reshape(plane.shape[axis], -1)
        if rows.shape[1] > 1:
            self.tie(rows[:, :1], rows, place)
        return rows[:, 0]


def components(size: int, ties: Iterable[Tensor]) -> Tensor:
    """Connected components of `size` ids under `ties`: for each id, the smallest id that it is tied to."""
    pairs = [tie for tie in ties if tie.numel()]
    root = torch.arange(size)
    if not pairs:
        return root
    a, b = torch.cat(pairs, dim=1)
    while True:
        low = torch.minimum(root[a], root[b])
        best = root.scatter_reduce(0, torch.cat([root[a], root[b]]), torch.cat([low, low]), "amin")
        while not torch.equal(shorter := best[best], best):  # every id jumps to the root of its root
            best = shorter
        if torch.equal(best, root):
            return root
        root = best
