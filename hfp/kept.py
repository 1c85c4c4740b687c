"""A value that is reckoned again only when the tensor it is of has changed: on a GPU, each look at one is a wait."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """What was reckoned of a tensor, until that is replaced, or changed in place, by whomever. Copies start empty.

    >>> import torch
    >>> count, kept = torch.tensor(3), Kept[int]()
    >>> kept.put(count, int(count))
    >>> kept.get(count)
    3
    >>> count += 1
    >>> kept.get(count) is None
    True
    """

    def __init__(self) -> None:
        self._entry: tuple[Tensor, tuple[Any, ...], T] | None = None

    def get(self, tensor: Tensor, *more: Any) -> T | None:
        """The value put for `tensor` as it is now, and for `more` that it depends on; None if there is none."""
        entry = self._entry
        return entry[2] if entry and entry[0] is tensor and entry[1] == (tensor._version, *more) else None

    def put(self, tensor: Tensor, value: T, *more: Any) -> None:
        if not tensor.is_inference():  # such tensors do not count their changes
            self._entry = tensor, (tensor._version, *more), value

    def __getstate__(self) -> dict[str, Any]:
        return {"_entry": None}  # a copy's tensors have versions of their own
