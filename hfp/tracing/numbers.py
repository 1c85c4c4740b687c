"""What tensors of one element hold that are made of numbers alone: `torch.tensor(d, device=x.device).sqrt()`.

On the meta device they hold nothing; but what they would hold may depend on a width, as any number in the code may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from hfp.rules.call import base_name, tensors_in

MAKERS = {"tensor", "as_tensor", "new_tensor", "asarray"}
"""Functions that make a tensor of numbers."""
_FILLING = set("full new_full full_like fill ones new_ones ones_like zeros new_zeros zeros_like zero".split())
_FILLING |= {"scalar_tensor"}
"""Operators that do not look at what the tensors hold that they are given."""


class Numbers:
    """What is known of tensors of one element on the meta device."""

    def __init__(self) -> None:
        self._held = WeakIdKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor | None:
        """A tensor off the meta device with what this one holds, if that is known."""
        if tensor.numel() != 1:
            return None
        return self._held.get(tensor) if tensor.is_meta else tensor

    def note(self, tensor: Tensor, value: Any) -> None:
        """`tensor`, of one element, holds this."""
        if tensor.is_meta:
            self._held[tensor] = torch.as_tensor(value, dtype=tensor.dtype, device="cpu").reshape(tensor.shape)

    def reckon(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Take note of what an operator gives that is given numbers alone."""
        if not isinstance(out, Tensor) or out.numel() != 1 or not out.is_meta:
            return
        filling = base_name(name) in _FILLING
        tensors = tensors_in((args, kwargs))
        if filling or (tensors and all(self.of(x) is not None for x in tensors)):
            args, kwargs = tree_map(self._at_hand, (args, kwargs))
            elsewhere = {"device": torch.device("cpu")} if kwargs.get("device") is not None or not tensors else {}
            self.note(out, func(*args, **kwargs | elsewhere))
        else:
            self._held.pop(out, None)  # written to

    def _at_hand(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        held = self.of(argument)
        if held is not None:
            return held.clone()  # which may be written to
        return torch.empty(argument.shape if argument.numel() == 1 else 0, dtype=argument.dtype)
