"""Labels: which channel every index of a tensor's axes belongs to, and what a run says of them.

Each dim of each tensor that a model keeps (see `hfp.model.names`) gets one integer id per index, so that a convolution
weight of shape (O, I, 3, 3) holds O + I + 3 + 3 ids. The ids travel with the values: every axis of an activation has a
vector of ids, or None where nothing on it can be removed. What operators do to labels is said in `hfp.rules`; what they
find out (these ids are one channel, that id must stay) is written down in a `Ledger`.

A view that splits a labelled axis (the 12 * 64 outputs of a query projection into 12 heads of 64) makes *factors*: ids
for the heads, and ids for the places within a head. An index of the axis that was split lives if and only if all its
factors do, which is written down as a *product*. A view that merges two labelled axes makes products likewise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

FIXED = -1  # the id of an index that belongs to no channel: input pixels, zero padding, constants
ANY = -2  # the id of an index that is like its neighbours, and can belong to any channel: zeros(8), x.expand(8)
NO_IDS = torch.empty(0, dtype=torch.long)
LONG = 2**16  # of so many ids along an axis, most are alike: every anchor at every pixel, say

Made = TypeVar("Made")
Labels = tuple[Tensor | None, ...]
"""For each axis of a tensor the ids (n,) along it, or None. An axis of length 1 has none: it cannot get shorter."""


def anything(length: int) -> Tensor:
    """The labels of an axis on which all values are alike."""
    return torch.full((length,), ANY)


def prunable(channels: Tensor) -> bool:
    """Whether any index of an axis, given by its channel numbers, can be removed."""
    return bool((channels >= 0).any())


def extended(values: Tensor, products: Tensor) -> Tensor:
    """What holds for channels (channels,), extended to products (n, factors) of channels, and 1 for FIXED, the last.

    Differentiable; a boolean vector stays one.

    >>> extended(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[0, 1], [0, 2]]))
    tensor([1., 0., 1., 0., 1., 1.])
    """
    one = values.new_ones(1)
    if not len(products):
        return torch.cat([values, one])
    factors = torch.cat([values, one])[products].unbind(1)
    return torch.cat([values, functools.reduce(torch.mul, factors), one])


class Place(NamedTuple):
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


@dataclass(frozen=True)
class Ask:
    """An operator works across these channels: removed ones have to be hidden from it (`hfp.tracing.operands`)."""

    ids: Tensor
    how: str
    reason: str
    """Why they must stay whole if they cannot be hidden."""
    place: Place
    axis: int | None = None
    """Along which it does, counted from the end, where the same channels may lie along another one as well."""


@dataclass
class Ledger:
    """What the labelled runs of one model found out."""

    axes: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Tensor name -> the ids along each of its dims."""
    ties: list[Tensor] = field(default_factory=list)
    """Pairs (2, n) of ids that are the same channel."""
    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(ids (n,), their factors (n, k)): an id lives if and only if all its factors do."""
    pins: list[Pin] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    produced: list[Tensor] = field(default_factory=list)
    """Ids that a mixer made."""
    written: set[str] = field(default_factory=set)
    """Names of tensors that a forward has written to."""
    readers: dict[str, set[int]] = field(default_factory=dict)
    """Tensor name -> the dims on which it reads channels: where the gates sit."""
    attributes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(module, attribute) of an integer that no tensor tells, such as groups -> one id for each that it counts."""
    wide: list[Tensor] = field(default_factory=list)
    """Ids along axes that must stay longer than 1, since a squeeze would swallow them."""
    constants: list[Tensor] = field(default_factory=list)
    """Ids of constants that stand beside channels, see `constant`."""
    groups_told: bool = False
    """Whether the model's code tells a convolution in how many groups it is, and so how many channels there are."""
    macs: list[Term] = field(default_factory=list)
    ptflops: list[Term] | None = None
    """What ptflops' default backend counts; None unless asked for, and where it fails on the network."""
    notes: list[str] = field(default_factory=list)
    size: int = 0
    _joined: tuple[int, Tensor | None] = (0, None)
    """How many ties have been followed, and what came out."""
    _known: dict[tuple[Any, ...], tuple[Sequence[Tensor], Any]] = field(default_factory=dict)
    _held: dict[int, Tensor] = field(default_factory=dict)
    """By identity: vectors that are pinned."""
    _beside: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By identity: vectors of ANY, and the first ids that they met."""

    def number(self, name: str, shape: Sequence[int]) -> None:
        """Give new ids to every dim of the tensor `name`."""
        self.axes[name] = tuple(self.fresh(length) for length in shape)

    def fresh(self, count: int) -> Tensor:
        """(count,) new ids."""
        self.size += count
        return torch.arange(self.size - count, self.size)

    def constant(self, labels: Tensor) -> Tensor:
        """Ids in the place of ANY, where what is alike all along (a first state of zeros) is joined to channels.

        There its length counts, and has to follow those of whatever it will be tied to.
        """
        self.constants.append(self.fresh(len(labels)))
        return self.constants[-1]

    def roots(self) -> Tensor:
        """Id -> the smallest id that it is tied to."""
        done, root = self._joined
        if root is None or len(root) < self.size:
            done, root = 0, torch.arange(self.size)
        root = components(self.size, self.ties[done:], root)
        self._joined = len(self.ties), root
        return root

    def among(self, vectors: Iterable[Tensor]) -> Tensor:
        """(ids,) bool: which ids are in these, or tied to some that are."""
        root, found = self.roots(), torch.zeros(self.size, dtype=torch.bool)
        for ids in vectors:
            found[root[ids[ids >= 0]]] = True
        return found[root]

    def labels(self, name: str) -> Labels:
        """The labels of the tensor `name` itself."""
        return tuple(ids if len(ids) > 1 else None for ids in self.axes[name])

    def tie(self, a: Tensor, b: Tensor, place: Place) -> bool:
        """Element by element, the ids in `a` and `b` (shapes that broadcast) are one channel.

        Invariant: an id that meets FIXED is pinned. True if there are two vectors, of nothing but ids.
        """
        if a is b:
            return False
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        if len(a) and int(torch.minimum(a, b).min()) >= 0:  # most of the ties
            differ = a != b
            if bool(differ.all()):
                self.ties.append(torch.stack([a, b]))
            elif bool(differ.any()):
                self.ties.append(torch.stack([a[differ], b[differ]]))
            return True
        lost = torch.where(a == FIXED, b, a)[(a == FIXED) != (b == FIXED)]
        if lost.numel():
            self.pin(lost, "meets values that belong to no channel at the same positions", place)
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self.ties.append(torch.stack([a[both], b[both]]))
        return False

    def meet(self, a: Tensor, b: Tensor, place: Place) -> Tensor:
        """(n,) the labels of what is computed, index by index, from values with the labels a (n,) and b (n,): a tie."""

        def tied() -> Tensor:
            ids = self.tie(a, b, place)
            # Zeros that are added here and there are one tensor, of one length.
            for alike, other in () if ids else ((a, b), (b, a)):
                if bool((alike == ANY).all()) and bool((other >= 0).all()):
                    self.tie(self._beside.setdefault(id(alike), (alike, other))[1], other, place)
            return a if ids or bool((a >= 0).all()) else torch.where(a >= 0, a, torch.maximum(a, b))

        return a if a is b else self.once((a, b), "meet", tied)

    def once(self, vectors: Sequence[Tensor], how: Hashable, make: Callable[[], Made]) -> Made:
        """`make()`; asked again with the same vectors, it gives the same and notes nothing: a model is run twice."""
        key = (how, *map(id, vectors))
        if key not in self._known:
            self._known[key] = vectors, make()  # with the vectors, so that no others can take their ids
        made: Made = self._known[key][1]
        return made

    def pin(self, ids: Tensor | None, reason: str, place: Place) -> None:
        """These ids, if any, stay whole. Of what is said of the same vector again the first reason counts."""
        if ids is None or id(ids) in self._held:
            return
        self._held[id(ids)] = ids
        ids = ids.reshape(-1)
        if len(ids) > LONG:
            ids = (ids - ANY).bincount()[-ANY:].nonzero().flatten()
        ids = ids[ids >= 0]
        if ids.numel():
            self.pins.append(Pin(ids, reason, place))

    def makes(self, ids: Tensor | None) -> None:
        """A mixer, or a weight, makes these ids, if any: only what is made can ever be pruned."""
        if ids is not None:
            self.produced.append(ids)

    def ask(self, ids: Tensor, how: str, reason: str, place: Place, axis: int | None = None) -> None:
        """Have removed channels hidden from the operator that is running; if that cannot be done, they are pinned."""
        self.asks.append(Ask(ids, how, reason, place, axis))

    def split(self, ids: Tensor, place: Place) -> list[Tensor]:
        """Factors of the ids (a, b, ...) that a view has spread over several axes: one vector for each axis."""
        factors = [self._factor(ids.movedim(axis, 0).flatten(1)) for axis in range(ids.dim())]
        grid = torch.cartesian_prod(*factors)
        ids = ids.flatten()
        self.pin(grid[ids == FIXED].unique(), "meets values that belong to no channel at the same positions", place)
        self.products.append((ids[ids >= 0], grid[ids >= 0]))
        return factors

    def _factor(self, rows: Tensor) -> Tensor:
        """Ids for the places of `rows` of ids: the same where the row is the same (heads, once for each example)."""
        if len(rows[:, 0].unique()) == len(rows):
            return self.fresh(len(rows))
        distinct, kind = unique_rows(rows)
        return self.fresh(len(distinct))[kind]

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """(n,) the ids of an axis on which several vectors (n,) of ids have come to lie."""
        factors = [vector for vector in factors if bool((vector != ANY).any())] or [factors[0]]
        return factors[0] if len(factors) == 1 else self.once(factors, "merge", lambda: self._product(factors))

    def factors_of(self, ids: Tensor) -> Tensor | None:
        """(n, k) the factors of products (n,); None for other ids."""
        return next((factors for products, factors in reversed(self.products) if torch.equal(products, ids)), None)

    def _product(self, factors: Sequence[Tensor]) -> Tensor:
        ids = self.fresh(len(factors[0]))
        self.products.append((ids, torch.stack(list(factors), 1)))
        return ids


def components(size: int, ties: Iterable[Tensor], root: Tensor | None = None) -> Tensor:
    """Connected components of `size` ids under `ties`: for each id, the smallest id that it is tied to.

    `root`: what is known already, from other ties. (Of long vectors, PyTorch selects much more quickly than it indexes:
    `root[a]` takes five times as long.)
    """
    pairs = [tie for tie in ties if tie.numel()]
    root = torch.arange(size) if root is None else root
    if not pairs:
        return root
    a, b = torch.cat(pairs, dim=1)
    while True:
        a, b = root.index_select(0, a), root.index_select(0, b)
        if torch.equal(a, b):
            return root
        root = root.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(shorter := root.index_select(0, root), root):  # every id jumps to the root of its root
            root = shorter


def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows, in ascending order, and for each row the number of its like: `unique(dim=0)`, but quicker."""
    if not len(rows):
        return rows, NO_IDS
    kind = torch.zeros(len(rows), dtype=torch.long)
    for column in rows.unbind(1):
        lowest, highest = column.aminmax()
        kind = (kind * (highest - lowest + 1) + column - lowest).unique(return_inverse=True)[1]
    first = torch.empty(int(kind.max()) + 1, dtype=torch.long)
    first[kind.flip(0)] = torch.arange(len(rows)).flip(0)
    return rows[first], kind
