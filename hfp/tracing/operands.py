"""Operands: what a function that works across channels is given, so that removed ones are hidden from it.

A weight that reads channels is gated by itself (`hfp.gates`). A mean over channels, a softmax, a product of two
activations has no weight: there its argument is changed, so that the function computes what it would if the removed
channels were not there.

    zero     times the gate: sums, products of activations
    again    the same, for the second factor of a product: it does not train the gate once more
    mean     times the gate and width / live width
    root     times the gate and sqrt(width / live width): the default scale of attention
    power    times a power of live width / width, of channels that need not be its own: a scale that the model's code
             reckons from a width (`scores / math.sqrt(q.size(-1))`), and that will be another one in the cut network
    lowest   the least number there is, where the gate is 0: softmax, maximum
    highest  the largest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hfp.labels import Ask
from hfp.tracing.position import Site

LEAVES = {
    "mean": "mean",
    "root": "scaled_dot_product_attention scaled_scores",
    "lowest": "softmax log_softmax _softmax _log_softmax max amax logsumexp",
    "highest": "min amin",
}
"""Functions that do nothing else with their argument. Zeros can be given to any function."""
_HARMLESS = {"softmax": 0.5, "log_softmax": -1.0}
_MULTIPLYING = ("einsum", "tensordot")


@dataclass(frozen=True)
class Operand:
    """An argument in which removed channels have to be hidden."""

    site: Site
    training: bool
    """In which mode of the model it was met."""
    argument: int
    """Its place among all arguments, nested ones counted one by one."""
    axis: int
    """Counted from the end."""
    channels: Tensor
    """Ids in a ledger, channel numbers in a table."""
    how: str
    power: float = 0.0
    calls: int = 0
    """How often what the site is inside of was entered, with and without this operand."""
    line: str | None = None
    """Where in the model's code that is; None where the same code calls it for other things as well."""
    period: int = 0
    """How many channels come again for every example of the batch, where that lies on the same axis; 0 elsewhere."""


def find(
    ask: Ask, function: str, args: Any, kwargs: Any, labels_of: Any, factors_of: Callable[[Tensor], Tensor | None]
) -> list[tuple[int, int, Tensor]]:
    """(argument, axis, ids) wherever a function's arguments carry the channels which an operator in it works across.

    A function that multiplies its arguments merges the axes that it sums over. It is given the factors of the channels
    (`factors_of`, (n, k)) along one axis each, or channels along one axis that stand beside each other on the merged
    one. Empty where hiding is not possible.
    """
    if function in ("__ior__", "__iadd__") or writes_in_place(function):
        return []
    if kwargs.get("out") is not None or function not in LEAVES.get(ask.how, function).split():
        return []
    carried = [
        (number, axis - x.dim(), ids)
        for number, x in enumerate(tree_flatten((args, kwargs))[0])
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
        for axis, ids in enumerate(labels_of(x))
        if ids is not None
    ]
    found = [place for place in carried if torch.equal(place[2], ask.ids)]
    if ask.axis in {axis for _, axis, _ in found}:  # a mean over one side of a matrix of channels by channels
        found = [place for place in found if place[1] == ask.axis]
    if found or function not in _MULTIPLYING:
        return found
    factors = factors_of(ask.ids)
    columns = [column.unique() for column in (ask.ids[:, None] if factors is None else factors).unbind(1)]
    kinds = [ids.unique() for *_, ids in carried]
    same = [[torch.equal(own, column) for column in columns] for own in kinds]
    if not all(map(any, zip(*same, strict=True))):
        return []
    return [place for place, fits in zip(carried, same, strict=True) if any(fits)]


def writes_in_place(function: str) -> bool:
    return function.endswith("_") and not function.endswith("__")


def hide(operands: Sequence[Operand], gates: Sequence[Tensor], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with removed channels hidden. `gates`: for each operand, those along its axis."""
    leaves, spec = tree_flatten((args, kwargs))
    for operand, gate in zip(operands, gates, strict=True):
        x = leaves[operand.argument]
        gate = _for_batch(operand, gate, x)
        if not isinstance(x, Tensor) or (
            operand.how != "power" and (x.dim() < -operand.axis or x.shape[operand.axis] != len(gate))
        ):
            raise RuntimeError(
                f"the forward takes another path than on the example inputs: {operand.site.function} in "
                f"{operand.site.inside or 'the network'} gets other arguments; wrap the model with inputs like these"
            )
        leaves[operand.argument] = _hidden(x, gate, operand)
    args, kwargs = tree_unflatten(leaves, spec)
    return args, kwargs


def with_periods(operands: Sequence[Operand]) -> list[Operand]:
    """The same; those whose axis holds the same channels once per example are marked, so that any batch size fits.

    `x.view(1, b * c, h, w)` makes such an axis. Known from runs with two examples, and maybe with one besides.
    """
    periods = {_argument(operand): channels for operand in operands if len(channels := _once(operand.channels))}
    found = []
    for operand in operands:
        once = periods.get(_argument(operand))
        if once is not None and len(operand.channels) % len(once) == 0:
            alike = torch.equal(operand.channels, once.repeat(len(operand.channels) // len(once)))
            operand = replace(operand, period=len(once) if alike else 0)
        found.append(operand)
    return found


def _argument(operand: Operand) -> tuple[Any, ...]:
    return operand.site, operand.argument, operand.axis, operand.how


def _once(channels: Tensor) -> Tensor:
    """Those of one example, if the same channels stand on the axis again and again; else none."""
    again = (channels == channels[:1]).nonzero().flatten()[1:2]
    period = int(again) if len(again) and len(channels) % int(again) == 0 else 0
    first, rows = channels[:period], channels.reshape(-1, period or len(channels))
    return first if len(first.unique()) == period and bool((rows == rows[0]).all()) else channels[:0]


def _for_batch(operand: Operand, gate: Tensor, x: Any) -> Tensor:
    """The gates along the axis, for as many examples as there are."""
    if not operand.period or operand.how in ("lowest", "highest") or not isinstance(x, Tensor):
        return gate
    length = x.shape[operand.axis] if x.dim() >= -operand.axis else 0
    if length == len(gate) or length % operand.period:
        return gate
    return gate[: operand.period].repeat(length // operand.period)


def _hidden(x: Tensor, gate: Tensor, operand: Operand) -> Tensor:
    # A model may be on several devices; shares of its width are reckoned in its precision at least.
    gate = gate.to(x.device, torch.promote_types(gate.dtype, x.dtype.to_real()))
    if operand.how == "power":
        factor = (gate.detach().sum() / len(gate)).pow(operand.power).to(x.dtype)
        in_place = operand.site.function in ("__imul__", "__itruediv__") or writes_in_place(operand.site.function)
        return x.mul_(factor) if in_place else x * factor
    shape = [len(gate) if axis == operand.axis else 1 for axis in range(-x.dim(), 0)]
    if operand.how in ("lowest", "highest"):
        limits = torch.finfo(x.dtype)
        return x.masked_fill((gate == 0).reshape(shape), limits.min if operand.how == "lowest" else limits.max)
    if operand.how == "again":
        gate = gate.detach()
    elif operand.how in ("mean", "root"):
        share = len(gate) / gate.detach().sum()
        gate = gate * (share if operand.how == "mean" else share.sqrt())
    return x * gate.to(x.dtype).reshape(shape)


def settled(operands: Sequence[Operand], gates: Sequence[Tensor], out: Any) -> Any:
    """What a function gave, with `_HARMLESS` where a softmax has hidden channels.

    They are hidden from whatever works across channels next. But a logarithm or a root of 0 is infinite, or has an
    infinite derivative, and no gate makes a number of that again.
    """
    for operand, gate in zip(operands, gates, strict=True):
        filler = _HARMLESS.get(operand.site.function.strip("_"))
        if filler is not None and operand.how == "lowest" and isinstance(out, Tensor):
            closed = (gate == 0).to(out.device)
            out = out.masked_fill(
                closed.reshape([-1 if axis == operand.axis else 1 for axis in range(-out.dim(), 0)]), filler
            )
    return out
