"""A cut network: what is left of shapes and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.cutting.surgery import memory_format
from hfp.labels import FIXED, Labels, Ledger, Place, prunable


class Cut:
    """What the labels of the dense run become in the cut network.

    There, ids are channels themselves, and an index that belongs to several channels has an id for this set of them.
    """

    def __init__(self, table: ChannelTable, axes: Mapping[str, Sequence[Tensor]], keep: Tensor) -> None:
        """`axes`: tensor name -> the ids along each of its dims; `keep` (channels,) bool."""
        self.table = table
        self.stays = table.extended(keep)
        # By identity; the ids stand beside, so that no others can take their place.
        self._left: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive: dict[int, tuple[Tensor, bool]] = {}
        self._keys: dict[int, tuple[Tensor, bytes]] = {}
        # An axis of one channel has no labels: so the only channel left of a group goes without.
        width = table.group_of[keep].bincount(minlength=len(table.groups))
        visible = keep & (width > 1)[table.group_of]
        single = torch.where(visible, torch.arange(table.channels), FIXED)
        padded = torch.cat([single, torch.tensor([FIXED])])
        self.sets = Sets(table.channels)
        products = torch.full((len(table.products),), FIXED)
        there = self.stays[table.channels : -1]
        rows = padded[table.products[there]].tolist()
        products[there] = torch.tensor([self.sets.number(row) for row in rows], dtype=torch.long)
        shown = torch.cat([single, products, torch.tensor([FIXED])])
        channel_of = torch.cat([table.channel_of, torch.tensor([FIXED, FIXED])])  # ANY and FIXED: the last two entries
        self._prunable, self._stays, self._shown = channel_of != FIXED, self.stays[channel_of], shown[channel_of]
        self.axes = {name: tuple(map(self.left, own)) for name, own in axes.items()}
        """Tensor name -> what is left along each of its dims."""

    def left(self, ids: Tensor) -> Tensor:
        """What is left of the labels (n,) of an axis."""
        if id(ids) not in self._left:
            if bool(self._prunable[ids].any()):
                left = self._shown[ids[self._stays[ids]]]
            else:  # some of these are very long
                left = torch.tensor([FIXED]).expand(len(ids))
                self._alive[id(left)] = left, False
            self._left[id(ids)] = ids, left
        return self._left[id(ids)][1]

    def key(self, ids: Tensor) -> bytes:
        """Equal for axes of the same channels, in the same order."""
        if id(ids) not in self._keys:
            channels = torch.where(ids < 0, FIXED, self.table.channel_of[ids])
            self._keys[id(ids)] = ids, channels.numpy().tobytes()
        return self._keys[id(ids)][1]

    def alive(self, left: Tensor) -> bool:
        """Whether any channel can be seen in what is left of an axis."""
        if id(left) not in self._alive:
            self._alive[id(left)] = left, prunable(left)
        return self._alive[id(left)][1]

    def visible(self, ids: Tensor) -> Tensor | None:
        left = self.left(ids)
        return left if len(left) > 1 and self.alive(left) else None

    def length(self, ids: Tensor) -> int:
        """How many are left."""
        return len(self.left(ids))

    def shape(self, dense: Sequence[int], labels: Labels) -> list[int]:
        """The shape that is left of a tensor."""
        lengths = labels or (None,) * len(dense)
        return [n if ids is None else self.length(ids) for n, ids in zip(dense, lengths, strict=True)]

    def shadows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is left of parameters and buffers: shapes alone."""
        shadows = {}
        for name, tensor in tensors.items():
            order = memory_format(tensor)
            shape = [len(ids) for ids in self.axes[name]]
            shadows[name] = torch.empty(shape, dtype=tensor.dtype, device="meta", memory_format=order)
        return shadows

    def ledger(self) -> Ledger:
        return CutLedger(axes=self.axes, sets=self.sets, alive=self.alive)


class Sets:
    """Numbers for sets of channels: a channel is its own, FIXED is the empty set."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.numbers: dict[tuple[int, ...], int] = {}
        self.members: list[tuple[int, ...]] = []
        self._unions: dict[tuple[int, ...], int] = {}

    def union(self, row: tuple[int, ...]) -> int:
        """Of the sets with these numbers."""
        if row not in self._unions:
            self._unions[row] = self.number(sum(self.rows(row), ()))
        return self._unions[row]

    def number(self, row: Iterable[int]) -> int:
        row = tuple(row)
        members = tuple(sorted({channel for channel in row if channel >= 0}))
        if len(members) < 2:
            return members[0] if members else max(row, default=FIXED)
        if members not in self.numbers:
            self.numbers[members] = self.channels + len(self.members)
            self.members.append(members)
        return self.numbers[members]

    def rows(self, numbers: Iterable[int]) -> list[tuple[int, ...]]:
        """The members of each set."""
        return [
            self.members[n - self.channels] if n >= self.channels else (() if n == FIXED else (n,)) for n in numbers
        ]


@dataclass
class CutLedger(Ledger):
    """The ledger of a cut network: factors and products are not new ids, but those that the table knows.

    All ties, pins and asks are known from the dense run, so they are ignored here.
    """

    sets: Sets = field(default_factory=lambda: Sets(0))
    alive: Callable[[Tensor], bool] = prunable

    def labels(self, name: str) -> Labels:
        """What is left of the labels of a tensor; None where none can be seen any more."""
        return tuple(ids if len(ids) > 1 and self.alive(ids) else None for ids in self.axes[name])

    def tie(self, a: Tensor, b: Tensor, place: Place) -> bool:
        return False

    def pin(self, ids: Tensor | None, reason: str, place: Place) -> None: ...

    def ask(self, ids: Tensor, how: str, reason: str, place: Place, axis: int | None = None) -> None: ...

    def split(self, ids: Tensor, place: Place) -> list[Tensor]:
        """What all ids at the same index of an axis have in common, and do not share with all the others."""
        rows = [set(row) for row in self.sets.rows(ids.flatten().tolist())]
        grid = torch.arange(ids.numel()).reshape(ids.shape)
        everywhere = set.intersection(*rows)
        factors = []
        for axis, length in enumerate(ids.shape):
            common = [
                set.intersection(*(rows[i] for i in grid.select(axis, n).flatten().tolist())) - everywhere
                for n in range(length)
            ]
            factors.append(torch.tensor([self.sets.number(members) for members in common], dtype=torch.long))
        return factors

    def constant(self, labels: Tensor) -> Tensor:
        return labels

    def _product(self, factors: Sequence[Tensor]) -> Tensor:
        rows = zip(*(vector.tolist() for vector in factors), strict=True)
        return torch.tensor([self.sets.union(row) for row in rows], dtype=torch.long)
