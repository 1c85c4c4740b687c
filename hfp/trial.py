"""The trial cut: does the model's own code follow when channels go?

A trace cannot tell `x.view(b, -1)` from `x.view(b, 512)`, nor see the Python arithmetic of `x / x.shape[1] ** 0.5`. So
the network is cut, on the meta device, to a random half of its channels and to the fewest, and run again beside the
record of the dense run. At every operator the cut network must do the same to what is left: the same operator, the
same numbers, outputs of the shape that the labels predict, with the labels that are left. Where it does not, the
channels that meet at that operator are pinned, with its name and source line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hfp.channels import ChannelTable
from hfp.inputs import Arguments
from hfp.labels import FIXED, Ledger, Pin, Planes, compress, varying
from hfp.surgery import cut, live
from hfp.tracing import named_tensors, play
from hfp.watcher import SIZELESS, RuleError, Step, Watcher, first_line, source_line

COPIES = {"clone", "contiguous", "copy", "empty_like", "_to_copy", "lift_fresh", "detach"}


class _Differs(Exception):
    """The cut network does something else, at step `number`."""

    def __init__(self, number: int, how: str) -> None:
        super().__init__(how)
        self.number = number
        self.line = source_line()


def misfit(model: nn.Module, inputs: Arguments, table: ChannelTable, steps: dict[bool, list[Step]]) -> Pin | None:
    """What the trials found out first, as a pin; None if the cut networks do what the dense one does."""
    for keep in (random_half(table), smallest_cut(table)):
        if not bool(keep.all()):
            pin = _trial(model, inputs, table, steps, keep)
            if pin is not None:
                return pin
    return None


def random_half(table: ChannelTable) -> Tensor:
    """(channels,) bool: about half of every group, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        # Two at least, where that is a cut: a single channel is not followed by name (see `_trial`).
        some = max(group.least, group.width // 2, 2 if group.width > 2 else 1)
        chosen = torch.randperm(group.width, generator=generator)[:some]
        keep[group.channels[chosen]] = True
    return keep


def smallest_cut(table: ChannelTable) -> Tensor:
    """(channels,) bool: the last channel of every group (the last two where one is not enough)."""
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        keep[group.channels[-group.least :]] = True
    return keep


def _trial(
    model: nn.Module, inputs: Arguments, table: ChannelTable, steps: dict[bool, list[Step]], keep: Tensor
) -> Pin | None:
    small = cut(model, table, keep, device="meta")
    # An axis of one channel looks like one without labels: so the only channel left of a group goes without.
    visible = keep.clone()
    for group in table.groups:
        if int(keep[group.channels].sum()) == 1:
            visible[group.channels] = False
    shown = torch.cat([torch.where(visible, torch.arange(table.channels), FIXED), torch.tensor([FIXED])])
    axes = {name: tuple(shown[vector[live(vector, keep)]] for vector in ids) for name, ids in table.axes.items()}
    channel_of = table.channel_of
    for training, dense in steps.items():
        expected = [
            step for step in dense if _matters(step, [shown[channel_of[_labelled(plane)]] for plane in step.touched])
        ]
        count = 0

        def compare(step: Step, expected: list[Step] = expected) -> None:
            nonlocal count
            if _matters(step, step.touched):
                _compare(count, step, expected, channel_of, keep, shown)
                count += 1

        shadows = named_tensors(small)
        try:
            play(small, shadows, inputs, Watcher(Ledger(axes=axes), shadows, compare), training=training)
            if count < len(expected):
                raise _Differs(count, "ends early")
        except RuleError:
            raise
        except Exception as error:
            number = error.number if isinstance(error, _Differs) else count
            how = str(error) if isinstance(error, _Differs) else f"fails ({first_line(error)})"
            return _blamed(expected[: number + 1] or dense, how, getattr(error, "line", ""), table)
    return None


def _matters(step: Step, channels: Sequence[Tensor]) -> bool:
    """Whether a step is compared: it touches channels, or does arithmetic. Copies of what is pinned may differ."""
    arithmetic = step.operator.rstrip("_") in SIZELESS - COPIES
    return arithmetic or any(bool((channel != FIXED).any()) for channel in channels)


def _labelled(plane: Tensor) -> Tensor:
    """The ids in a plane, without FIXED."""
    return plane[plane != FIXED]


def _compare(
    number: int, step: Step, expected: Sequence[Step], channel_of: Tensor, keep: Tensor, shown: Tensor
) -> None:
    dense = expected[number] if number < len(expected) else None
    if dense is None or step.operator != dense.operator:
        raise _Differs(number, f"runs {step.operator} instead of {dense.operator if dense else 'nothing'}")
    if step.scalars != dense.scalars:
        raise _Differs(number, f"gives {step.operator} other numbers")
    if len(step.shapes) != len(dense.shapes):
        raise _Differs(number, f"gets {len(step.shapes)} parts from {step.operator} instead of {len(dense.shapes)}")
    for shape, dense_shape, planes, dense_planes in zip(
        step.shapes, dense.shapes, step.planes, dense.planes, strict=True
    ):
        left = [_left(channel_of, plane, keep) for plane in dense_planes]
        predicted = list(dense_shape)
        for before, after in zip(dense_planes, left, strict=True):
            for axis in varying(before):
                predicted[axis] = after.shape[axis]
        if list(shape) != predicted:
            raise _Differs(
                number, f"gets the shape {tuple(shape)} from {step.operator}, where {tuple(predicted)} is left"
            )
        if not _same([shown[plane] for plane in left], planes):
            raise _Differs(number, f"gets other channels from {step.operator}")


def _left(channel_of: Tensor, plane: Tensor, keep: Tensor) -> Tensor:
    """The channel numbers of what is left of a plane of the dense run."""
    channels = torch.where(plane == FIXED, FIXED, channel_of[plane])
    for axis in varying(plane):
        stays = torch.cat([keep, keep.new_ones(1)])[channels].movedim(axis, 0).reshape(plane.shape[axis], -1).any(1)
        channels = channels.index_select(axis, stays.nonzero().flatten())
    return channels


def _same(left: Sequence[Tensor], planes: Planes) -> bool:
    """Whether the planes of the cut run are those that are left, but for axes on which nothing varies any more."""
    found = [plane for plane in map(compress, planes) if varying(plane)]
    for plane in map(compress, left):
        if varying(plane) and not any(plane.shape == other.shape and torch.equal(plane, other) for other in found):
            return False
    return True


def _blamed(steps: Sequence[Step], how: str, line: str, table: ChannelTable) -> Pin:
    """The channels at the last of these steps at which some can still be cut."""
    reason = f"does not follow when channels go: the cut network {how}"
    for step in reversed(steps):
        ids = (
            torch.cat([_labelled(plane) for plane in step.touched])
            if step.touched
            else torch.empty(0, dtype=torch.long)
        )
        ids = ids[table.channel_of[ids] != FIXED]
        if ids.numel():
            return Pin(ids, reason, replace(step.place, line=line or step.place.line))
    return Pin((table.channel_of != FIXED).nonzero().flatten(), reason, replace(steps[0].place, line=line))
