"""Weights that PyTorch computes of other tensors before it uses them: weight and spectral norm, its own pruning.

The newer kind are parametrizations; the older are hooks, which leave what they have computed in the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Own = Callable[[str], Tensor | None]
"""The tensors of a module by name."""
_OF: tuple[tuple[type, str, str], ...] = (
    (WeightNorm, "name", "_v"),
    (SpectralNorm, "name", "_orig"),
    (BasePruningMethod, "_tensor_name", "_orig"),
)
"""(hook, its attribute that names the weight, what is added for the tensor of the same shape of which it is made)."""


def computed(module: nn.Module, key: str, own: Own) -> Tensor | None:
    """A tensor of the shape that the weight `key` of a module has if its tensors are `own`; None if it is not computed.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
    >>> tensors = {"weight.original0": torch.zeros(4, 1), "weight.original1": torch.zeros(4, 2)}
    >>> computed(layer, "weight", lambda name: tensors[name.removeprefix("parametrizations.")]).shape
    torch.Size([4, 2])
    """
    if is_parametrized(module, key):
        made: Any = module.parametrizations[key]  # type: ignore[index]
        names = [name for name, _ in chain(made.named_parameters(), made.named_buffers())]
        parts = {name: own(f"parametrizations.{key}.{name}") for name in names}
        with suppress(Exception), torch.no_grad():  # a user's own may look at numbers; then nothing can be told
            return functional_call(made, {name: part.to("meta") for name, part in parts.items()}, ())  # type: ignore
    return next((own(f"{name}{of}") for _, name, of in _hooks(module) if name == key), None)


def compute(module: nn.Module) -> None:
    """Let hooks leave in a module what they would before its next forward."""
    for hook, _, _ in _hooks(module):
        training, module.training = module.training, False  # in training mode a spectral norm also goes a step on
        try:
            with torch.no_grad():
                hook(module, None)
        finally:
            module.training = training


def _hooks(module: nn.Module) -> Iterator[tuple[Any, str, str]]:
    for hook in module._forward_pre_hooks.values():
        for kind, name, of in _OF:
            if isinstance(hook, kind):
                yield hook, getattr(hook, name), of
