"""The trial cut: does the model's own code follow when channels go?

A trace cannot tell `x.view(b, -1)` from `x.view(b, 512)`, nor see the Python arithmetic of `x / x.shape[1] ** 0.5`. So
the network is cut, on the meta device, to a random half of its channels, and run again beside the record of the dense
run. At every operator the cut network must do the same to what is left: the same operator, the same numbers, outputs of
the shape that the labels predict, with the labels that are left. Where it does not, the channels that meet at that
operator are pinned, with its name and source line.
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
from hfp.tracing import RuleError, Step, Watcher, first_line, named_tensors, play, source_line


class _Differs(Exception):
    """The cut network does something else, at step `number`."""

    def __init__(self, number: int, how: str) -> None:
        super().__init__(how)
        self.number = number
        self.line = source_line()


def misfit(model: nn.Module, inputs: Arguments, table: ChannelTable, steps: dict[bool, list[Step]]) -> Pin | None:
    """What the trial found out first, as a pin; None if the cut network does what the dense one does."""
    keep = random_half(table)
    if bool(keep.all()):
        return None
    small = cut(model, table, keep, device="meta")
    axes = {name: tuple(vector[live(vector, keep)] for vector in ids) for name, ids in table.axes.items()}
    for training, expected in steps.items():
        count = 0

        def compare(step: Step, expected: list[Step] = expected) -> None:
            nonlocal count
            _compare(count, step, expected, table.channel_of, keep)
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
            return _blamed(number, how, getattr(error, "line", ""), expected, table)
    return None


def random_half(table: ChannelTable) -> Tensor:
    """(channels,) bool: about half of every group, two at least, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        chosen = torch.randperm(group.width, generator=generator)[: max(2, group.width // 2)]
        keep[group.channels[chosen]] = True
    return keep


def _compare(number: int, step: Step, expected: Sequence[Step], channel_of: Tensor, keep: Tensor) -> None:
    dense = expected[number] if number < len(expected) else None
    if dense is None or step.operator != dense.operator:
        raise _Differs(number, f"runs {step.operator} instead of {dense.operator if dense else 'nothing'}")
    if step.scalars != dense.scalars:
        raise _Differs(number, f"{step.operator} gets other numbers")
    for shape, dense_shape, planes, dense_planes in zip(step.shapes, dense.shapes, step.planes, dense.planes, strict=True):
        left = [_left(channel_of, plane, keep) for plane in dense_planes]
        predicted = list(dense_shape)
        for before, after in zip(dense_planes, left, strict=True):
            for axis in varying(before):
                predicted[axis] = after.shape[axis]
        if list(shape) != predicted:
            raise _Differs(number, f"{step.operator} gives the shape {tuple(shape)} where {tuple(predicted)} is left")
        if not _same(left, planes):
            raise _Differs(number, f"{step.operator} moves other channels")


def _left(channel_of: Tensor, plane: Tensor, keep: Tensor) -> Tensor:
    """The channel numbers of what is left of a plane of the dense run."""
    channels = torch.where(plane == FIXED, FIXED, channel_of[plane])
    for axis in varying(plane):
        stays = torch.cat([keep, keep.new_ones(1)])[channels].movedim(axis, 0).reshape(plane.shape[axis], -1).any(1)
        channels = channels.index_select(axis, stays.nonzero().flatten())
    return channels


def _same(left: Sequence[Tensor], planes: Planes) -> bool:
    """Whether the planes of the cut run are those that are left, but for axes on which nothing varies any more."""
    found = [plane for plane in planes if varying(plane)]
    for plane in left:
        plane = compress(plane)
        if varying(plane) and not any(plane.shape == other.shape and torch.equal(plane, other) for other in found):
            return False
    return True


def _blamed(number: int, how: str, line: str, expected: Sequence[Step], table: ChannelTable) -> Pin:
    """The channels at the step where the runs part; if none can be cut there, those of the last step before it where some can."""
    for step in reversed(expected[: number + 1]):
        ids = torch.cat([plane.flatten() for plane in step.touched]) if step.touched else torch.empty(0, dtype=torch.long)
        ids = ids[ids != FIXED]
        ids = ids[table.channel_of[ids] != FIXED]
        if ids.numel():
            return Pin(ids, f"does not follow when channels go: the cut network {how}", replace(step.place, line=line or step.place.line))
    every = (table.channel_of != FIXED).nonzero().flatten()
    return Pin(every, f"does not follow when channels go: the cut network {how}", replace(expected[0].place, line=line))
