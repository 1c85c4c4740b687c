"""What a pruning method is: where the scores of channels come from, and when channels are cut.

Everything else is the same for every method: budgets, the global threshold, gates, compaction, files, reports. A method
is a `Method`; those of this package are in `hfp.methods.METHODS`, one file each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hfp.channels import ChannelTable

if TYPE_CHECKING:
    from hfp.gated import GatedModel

ROUNDED = 1e-9  # by how much the shares of a schedule may be off: sums of floats are


def _nothing(table: ChannelTable) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Method:
    """A way to prune; give one to `hfp.wrap(..., method=...)`. Only the first three fields are needed.

    >>> import torch, hfp
    >>> last = hfp.Method("last", scores=lambda net: -torch.arange(net.table.channels), schedule=hfp.methods.at_once)
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> net = hfp.wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.5, method=last)
    >>> torch.equal(net.compact()[0].weight, model[0].weight[:4])  # the last channels went
    True

    What a method has to remember between steps lies in `net.gates`, a parameter that starts at 0, and in `buffers`:
    both are in the state dict, so a resumed run is the uninterrupted one.
    """

    name: str
    scores: Callable[[GatedModel], Tensor]
    """net -> (channels,) finite numbers, asked for whenever channels are cut: those with the highest stay."""
    schedule: Callable[[float], float]
    """Progress in [0, 1] -> the share of the way, from dense to target, that the budget has come down: from 0 to 1."""
    cuts: int | None = None
    """How often at most, in even steps, channels are cut; by default whenever `schedule` moves."""
    gate: Callable[[GatedModel], Tensor] | None = None
    """net -> (channels,) what channels are multiplied by in a forward with gradients, instead of `net.keep`: 0 and 1
    in value, with a gradient to `net.gates`."""
    penalty: Callable[[GatedModel], Tensor] | None = None
    """net -> what `net.complexity_loss()` returns where gradients are on, instead of `net.live_gap()`; a scalar."""
    forward: Callable[[GatedModel, tuple[Any, ...], dict[str, Any]], Any] | None = None
    """Stands in for the whole forward of a net: net, args, kwargs -> what `net.gated(phi, args, kwargs)` gives."""
    buffers: Callable[[ChannelTable], dict[str, Tensor]] = _nothing
    """table -> buffers of the net that the method needs besides."""
    gate_lr: float = 0.002
    """Learning rate of `net.gates`."""
    reopens: bool = False
    """Whether a channel that was cut may come back before the last cut, which fills what is left of the budget."""
    trains_gates: bool | None = None
    """Whether `net.gates` get gradients; by default where there is a gate, a penalty or a forward."""

    def __post_init__(self) -> None:
        if self.cuts is not None and self.cuts < 1:
            raise ValueError(f"cuts={self.cuts!r} of method {self.name!r}: expected one at least")
        self._course()

    def _course(self) -> list[float]:
        """How far the budget has come down after each percent of the schedule."""
        return [self._down(percent / 100) for percent in range(101)]

    def _down(self, progress: float) -> float:
        """What `schedule` says, and no float's breadth more or less than it may."""
        down = self.schedule(progress)
        if not isinstance(down, (Real, Tensor)) or not -ROUNDED <= down <= 1.0 + ROUNDED:
            raise ValueError(
                f"the schedule of method {self.name!r} gives {down!r} at a progress of {progress:.4g}; expected the "
                "share of the way that the budget has come down, a number from 0 to 1"
            )
        return min(max(float(down), 0.0), 1.0)

    @property
    def learns(self) -> bool:
        """Whether `net.gates` may get gradients. `DistributedDataParallel` waits for those of all that require them."""
        by_default = not (self.gate is self.penalty is self.forward is None)
        return by_default if self.trains_gates is None else self.trains_gates

    @property
    def gradual(self) -> bool:
        """Whether the budget comes down in several cuts, so that there is something to stop in between."""
        return any(0.0 < down < 1.0 for down in self._course())

    def share(self, step: int, steps: int) -> float:
        """How far the budget has come down after `step` of `steps` steps."""
        if step >= steps:
            return 1.0
        every = 1 if self.cuts is None else math.ceil(steps / self.cuts)
        return self._down((step - step % every) / steps)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules


def at_once(progress: float) -> float:
    """One cut, in the first step."""
    return float(progress > 0.0)


def after(share: float) -> Callable[[float], float]:
    """One cut, when this share of the schedule is done.

    >>> after(0.2)(0.1), after(0.2)(0.2)
    (0.0, 1.0)
    """
    return partial(_reached, share)


def rounds(number: int) -> Callable[[float], float]:
    """So many equal cuts, the first of them in the first step.

    >>> [rounds(2)(progress) for progress in (0.0, 0.1, 0.5, 0.6, 1.0)]
    [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    if number < 1:
        raise ValueError(f"rounds({number!r}): expected one at least")
    return partial(_round, number)


def steadily(progress: float) -> float:
    """As progress goes."""
    return progress


# Not closures: a net is to be pickled by those who train in several processes.


def _reached(share: float, progress: float) -> float:
    return float(progress >= share)


def _round(number: int, progress: float) -> float:
    return math.ceil(progress * number) / number
