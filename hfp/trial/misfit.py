"""Misfits: where a cut network does something else than the dense one, and what stays whole if nothing helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.labels import FIXED, NO_IDS, Ledger, Pin, Place, prunable
from hfp.tracing.operands import Operand
from hfp.tracing.told import Attribute


@dataclass(frozen=True)
class Extent:
    """A length that does not follow."""

    axis: int
    ids: Tensor
    dense: int
    predicted: int
    found: int
    """In the cut network."""
    followed: tuple[Tensor, ...]
    """Other labels, as many in the dense network as there are here, and as many left as were found."""
    counts: Mapping[Attribute, int] = field(default_factory=dict)
    """What the attributes that the length is reckoned from count in the cut network."""
    shared: tuple[tuple[Tensor, Tensor], ...] = ()
    """Other labels of which the length is an equal share (`width // heads`), and those that it is such a share of."""


@dataclass(frozen=True)
class Misfit:
    """Where the cut network does something else."""

    key: tuple[Any, ...]
    """Equal for the same misfit in another trial."""
    how: str
    place: Place
    touched: tuple[Tensor, ...]
    """The labels that meet there, of which some can still be cut; the last axes come first."""
    extent: Extent | None = None
    """The length that is to blame, where it is known."""
    numbers: bool = False
    """Whether it is the numbers that differ, not a shape or a channel."""
    asked: bool = False
    """Whether the length stands among the arguments of the function."""
    at: int = 0
    """How many steps of the dense run had been done likewise."""
    ends: bool = False
    """Whether the model's code failed there, so that nothing is known of what comes after it."""
    scalings: tuple[Operand, ...] = ()
    """Where another factor is all that differs: how the gated network would have to scale likewise, the likeliest
    first."""


class Pins:
    """What has to stay whole because nothing can be done about misfits: one axis at a time.

    With the others cut, all may be well; and where it is not, the axis was not to blame, and another one is tried.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.guessed: dict[tuple[Any, ...], list[Pin]] = {}
        """Of misfits of which it is not known which length is to blame: what was pinned, the last one still is."""

    def add(self, found: Sequence[Misfit], table: ChannelTable) -> None:
        """Pin something for every misfit; of misfits that share channels, for the first."""
        pinned = torch.zeros(len(table.channel_of), dtype=torch.bool)
        for misfit in found:
            extent = misfit.extent
            lengths = () if extent is None else (extent.ids, *extent.followed)
            axes = [ids for ids in (*lengths, *misfit.touched) if prunable(table.channel_of[ids[ids >= 0]])]
            channels = _channels(axes[0], table)
            if bool(pinned[channels].any()):
                continue
            pinned[channels] = True
            reason = f"does not follow when channels go: the cut network {misfit.how}"
            if extent is None:
                self._guess(misfit, axes, reason)
            else:
                self.ledger.pins.append(Pin(axes[0], reason, misfit.place))

    def _guess(self, misfit: Misfit, axes: Sequence[Tensor], reason: str) -> None:
        before = self.guessed.setdefault(misfit.key, [])
        tried = torch.cat([NO_IDS, *(pin.ids for pin in before)])
        new = [ids for ids in axes if not bool(torch.isin(ids[ids >= 0], tried).any())]
        if before and new:  # the one before was no help by itself
            self.ledger.pins = [pin for pin in self.ledger.pins if pin is not before[-1]]
        elif before:
            self.ledger.pins += before[:-1]  # nor was any other: all of them
        chosen = Pin((new or axes)[0], reason, misfit.place)
        before.append(chosen)
        self.ledger.pins.append(chosen)


def _channels(ids: Tensor, table: ChannelTable) -> Tensor:
    channels = table.channel_of[ids[ids >= 0]]
    return channels[channels != FIXED]
