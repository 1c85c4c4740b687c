"""The names in a model: of its modules, and of its parameters and buffers, some of which have several."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Names:
    """Each module, parameter and buffer goes by the first of its names."""

    modules: dict[nn.Module, str]
    tensors: dict[str, Tensor]
    """Name -> parameter or buffer."""
    parameters: list[str]
    """Those of them that are parameters, in the order of the model, before all buffers."""
    aliases: dict[str, str]
    """Every place of every parameter and buffer -> the first name of the same tensor (tied weights have several).

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
        parameters: list[str] = []
        for kind in ("_parameters", "_buffers"):
            for prefix, module in modules:
                for key, tensor in getattr(module, kind).items():
                    if tensor is not None:
                        alias = f"{prefix}.{key}" if prefix else key
                        aliases[alias] = first.setdefault(id(tensor), alias)
                        tensors.setdefault(aliases[alias], tensor)
            if kind == "_parameters":
                parameters = list(tensors)
        names = {module: prefix for prefix, module in modules}
        return Names(names, tensors, parameters, aliases)


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name."""
    owner, _, key = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), key)
    return tensor
