"""The names in a model: of its modules, and of its tensors, some of which have several.

Its tensors are parameters, buffers, and constants: tensors that a module makes in its `__init__` and keeps as plain
attributes, such as a table of positions. What its other methods store, a cache or the last activation, is none of them.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.model.code import codes, functions_in

MOVES = frozenset({"to", "cuda", "cpu", "type_as"})
"""Methods of a tensor that give the same numbers elsewhere."""


@dataclass(frozen=True)
class Names:
    """Each module and tensor goes by the first of its names."""

    modules: dict[nn.Module, str]
    tensors: dict[str, Tensor]
    """Name -> parameter, buffer or constant."""
    parameters: list[str]
    """Those of them that are parameters, in the order of the model, before all others."""
    constants: frozenset[str]
    """Those of them that are plain attributes."""
    aliases: dict[str, str]
    """Every place of every tensor -> the first name of the same tensor (tied weights have several).

    A module that is registered twice has its places once: put in by both names, a tensor would not come out again.
    """

    @staticmethod
    def of(model: nn.Module) -> Names:
        """The names in `model` as it is now.

        >>> tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> tied[1].weight = tied[0].weight
        >>> Names.of(tied).aliases
        {'0.weight': '0.weight', '0.bias': '0.bias', '1.weight': '0.weight', '1.bias': '1.bias'}
        """
        modules = list(model.named_modules())
        first: dict[int, str] = {}
        tensors: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        counts: list[int] = []
        for kind in (attrgetter("_parameters"), attrgetter("_buffers"), _constants):
            for prefix, module in modules:
                for key, tensor in kind(module).items():
                    if tensor is not None:
                        alias = f"{prefix}.{key}" if prefix else key
                        aliases[alias] = first.setdefault(id(tensor), alias)
                        tensors.setdefault(aliases[alias], tensor)
            counts.append(len(tensors))
        names = {module: prefix for prefix, module in modules}
        every = list(tensors)
        return Names(names, tensors, every[: counts[0]], frozenset(every[counts[1] :]), aliases)


def _constants(module: nn.Module) -> dict[str, Tensor]:
    kind: type = type(module)
    if kind.__module__.startswith("torch.nn."):
        return {}
    found = {name: value for name, value in vars(module).items() if isinstance(value, Tensor) and _is_constant(value)}
    return {name: value for name, value in found.items() if name not in _made_later(kind)} if found else {}


def _is_constant(tensor: Tensor) -> bool:
    """Whole numbers are indices and counts, which are worth more as numbers than as axes."""
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return tensor.dim() > 0 and numbers and not tensor.requires_grad and tensor.layout == torch.strided


@lru_cache(256)
def _made_later(kind: type) -> frozenset[str]:
    """The attributes that methods of a class other than `__init__` store, and those that it computes when asked."""
    own = [
        entry for base in kind.__mro__ if not base.__module__.startswith("torch.nn.") for entry in vars(base).items()
    ]
    methods = [method for name, value in own if name != "__init__" for method in functions_in(value)]
    stored = {name for method in methods for code in codes(method.__code__) for name in _stored(code)}
    return frozenset(stored | {name for name, value in own if isinstance(value, cached_property)})


def _stored(code: CodeType) -> Iterator[str]:
    """The attributes that code stores; not where it only moves one: `self.table = self.table.to(x.device)`."""
    statement: list[tuple[str, Any]] = []
    for step in dis.get_instructions(code):
        statement.append((step.opname, step.argval))
        if step.opname == "STORE_ATTR" and not _is_moved(step.argval, statement):
            yield step.argval
        if step.opname.startswith(("STORE_", "POP_", "JUMP_")):
            statement.clear()


def _is_moved(name: str, statement: list[tuple[str, Any]]) -> bool:
    """Whether a statement that stores this attribute is one call of a method in `MOVES`, of what it was."""
    calls = [number for number, (operation, _) in enumerate(statement) if operation.startswith("CALL")]
    asked = any(one == ("LOAD_ATTR", name) and method in MOVES for one, (_, method) in pairwise(statement))
    return asked and calls == [len(statement) - 3]  # then come the module, and the attribute


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or constant of this name."""
    owner, _, key = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), key)
    return tensor
