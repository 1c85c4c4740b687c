"""One call of an operator, as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfp.labels import Labels, Ledger, Place


@dataclass(frozen=True)
class Call:
    """`func(*args, **kwargs) -> out`, with the labels of its tensors."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    labels: Callable[[Any], Labels]
    name_of: Callable[[Any], str | None]
    """The name of a parameter or buffer, also when seen through transpositions and casts; None for anything else."""
    place: Place
    module: nn.Module | None = None
    """The module in whose forward the operator runs."""

    def tensors(self) -> list[Tensor]:
        return tensors_in((*self.args, *self.kwargs.values()))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position in the schema, or by its name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def ids(self, tensor: Tensor, axis: int) -> Tensor | None:
        """The ids along one axis of a tensor; None where there are none."""
        labels = self.labels(tensor)
        return labels[axis] if labels else None


def values_in(arguments: Iterable[Any]) -> list[Any]:
    """The arguments or outputs of an operator, which may be lists, one by one: `tree_leaves`, but quicker."""
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            values.extend(argument)
        else:
            values.append(argument)
    return values


def tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    return [x for x in values_in(arguments) if isinstance(x, Tensor)]


Rule = Callable[[Ledger, Call], Labels | list[Labels]]
"""Gives the labels of the output (`()`: none at all); operators that split a tensor give a list, one entry per part."""


def labelled(labels: Labels) -> list[tuple[int, Tensor]]:
    """(axis, ids) of every axis that has labels."""
    return [(axis, ids) for axis, ids in enumerate(labels) if ids is not None]


def looked_up(indices: Sequence[Tensor | None]) -> list[int]:
    """The axes that `x[indices]` looks into: as many for a mask as it has dims."""
    axes: list[int] = []
    axis = 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        if index is not None:
            axes += range(axis, axis + width)
        axis += width
    return axes


def unknown(ledger: Ledger, call: Call) -> Labels:
    """An operator without a rule: everything that it touches stays whole."""
    for tensor in call.tensors():
        for ids in call.labels(tensor):
            if ids is not None:
                ledger.pin(ids, "is touched by an operator without a rule", call.place)
                if call.name_of(tensor) is not None and tensor.dim() > 1:
                    ledger.produced.append(ids)  # a weight: so that the report names its layer
    return ()
