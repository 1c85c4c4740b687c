"""One call of an operator, as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfp.labels import Labels, Ledger, Place


@dataclass(eq=False)
class Call:
    """`func(*args, **kwargs) -> out`, with the labels of its tensors."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    labels: Callable[[Any], Labels]
    name_of: Callable[[Any], str | None]
    """The name of a tensor of the model, also when seen through transpositions and casts; None for anything else."""
    is_stored: Callable[[Tensor], bool]
    """Whether a tensor is one of the model, or computed from such alone."""
    place: Place
    module: nn.Module | None = None
    """The module in whose forward the operator runs."""
    follows: Mapping[int, bool] = field(default_factory=dict)
    """Bounds of a slice that the model's code takes from attributes, which may change with the channels -> whether each
    is what an attribute says, and not reckoned from it."""

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, nested ones too."""
        return tensors_in((self.args, self.kwargs))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position in the schema, or by its name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def ids(self, tensor: Tensor, axis: int) -> Tensor | None:
        """The ids along one axis of a tensor; None where there are none."""
        labels = self.labels(tensor)
        return labels[axis] if labels else None


def values_in(nested: Any) -> list[Any]:
    """What is in nested arguments or outputs, one by one: `tree_leaves` in a fraction of its time."""
    if isinstance(nested, Tensor):
        return [nested]
    found: list[Any] = []
    _gather(nested, found)
    return found


def lies_at(tensor: Tensor) -> tuple[Any, ...]:
    """Where in memory the numbers of a tensor are: equal for tensors of one shape that share all of them."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.stride()


def _gather(value: Any, found: list[Any]) -> None:
    if isinstance(value, (tuple, list)):
        for entry in value:
            if isinstance(entry, Tensor):
                found.append(entry)
            else:
                _gather(entry, found)
    elif isinstance(value, dict):
        for entry in value.values():
            _gather(entry, found)
    else:
        found.append(value)


def tensors_in(nested: Any) -> list[Tensor]:
    return [x for x in values_in(nested) if isinstance(x, Tensor)]


Rule = Callable[[Ledger, Call], Labels | list[Labels]]
"""Gives the labels of the output (`()`: none at all); operators that split a tensor give a list, one entry per part."""


def base_name(operator: str) -> str:
    """`relu` for `relu_`: the name of the operator that an in-place one is a variant of."""
    return operator if operator.endswith("__") else operator.removesuffix("_")


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


def stays_whole(
    ledger: Ledger, call: Call, reason: str = "is touched by an operator in a way that has no rule"
) -> Labels:
    """Everything that the operator touches stays whole."""
    for tensor in call.tensors():
        for ids in call.labels(tensor):
            ledger.pin(ids, reason, call.place)
            if call.name_of(tensor) is not None and tensor.dim() > 1:
                ledger.makes(ids)  # a weight: so that the report names its layer
    return ()


def unknown(ledger: Ledger, call: Call) -> Labels:
    """An operator without a rule."""
    if call.func._schema.is_mutable:  # type: ignore[attr-defined]
        return stays_whole(ledger, call, "is written to by an operator without a rule")
    name = base_name(call.place.operator)
    name = name if "::" in name else f"aten::{name}"
    return stays_whole(ledger, call, f'is touched by an operator without a rule (@hfp.rule("{name}") gives it one)')
