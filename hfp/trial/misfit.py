"""Misfits: where a cut network does something else than the dense one, and what stays whole if nothing helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfp.channels import ChannelTable
from hfp.labels import FIXED, Pin, Place, prunable
from hfp.tracing.operands import Operand


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


def pins_of(found: Sequence[Misfit], table: ChannelTable) -> list[Pin]:
    """What has to stay whole because nothing can be done about a misfit; of misfits that share channels, the first."""
    pinned = torch.zeros(len(table.channel_of), dtype=torch.bool)
    pins: list[Pin] = []
    for misfit in found:
        extent = misfit.extent
        lengths = () if extent is None else (extent.ids, *extent.followed)
        # One axis at a time: with the others cut, all may be well.
        chosen = next(ids for ids in (*lengths, *misfit.touched) if prunable(table.channel_of[ids[ids >= 0]]))
        channels = table.channel_of[chosen[chosen >= 0]]
        if not bool(pinned[channels[channels != FIXED]].any()):
            pinned[channels[channels != FIXED]] = True
            reason = f"does not follow when channels go: the cut network {misfit.how}"
            pins.append(Pin(chosen, reason, misfit.place))
    return pins
