"""The labels of a run's tensors, by identity.

Once an object is gone, another may have its id. So a tensor of shapes alone is held until the run is over; one with
values may go, and takes its entry along: all activations of a detector would be gigabytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hfp.labels import ANY, Labels
from hfp.rules.call import lies_at


class _Entry:
    __slots__ = ("held", "labels", "stored")

    def __init__(self, held: Any) -> None:
        self.held = held  # what keeps the id from being another's: the tensor, or a weak reference to it
        self.labels: Labels = ()
        self.stored = False


class Memory:
    """Which tensors a run has met, and what labels they have."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._first: dict[int, tuple[Any, _Entry, Callable[[], Tensor | None]]] = {}
        """By the address of a storage: what keeps the address from being another's; the entry of the first tensor that
        was on it; and that tensor, if it is still there."""
        self._alike: dict[tuple[Any, ...], _Entry] = {}
        """By storage and the place on it: the entry of the last tensor there."""

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._entries

    def labels(self, tensor: Any) -> Labels:
        """The labels of a tensor, `()` if it has none on any axis."""
        entry = self._entries.get(id(tensor))
        return () if entry is None else entry.labels

    def label(self, tensor: Tensor, labels: Labels) -> None:
        self._entry(tensor).labels = labels

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or a buffer, or computed from such alone."""
        entry = self._entries.get(id(tensor))
        return entry is not None and entry.stored

    def meet(self, tensor: Tensor, stored: bool = False) -> None:
        """An operator has made this tensor, or a view of another."""
        entry = self._entry(tensor)
        entry.stored = stored
        if tensor.layout != torch.strided:  # a sparse tensor is no view of another
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._first:
            held = tensor if tensor.is_meta else StorageWeakRef(storage)
            self._first[storage._cdata] = held, entry, weakref.ref(tensor)
        self._alike[_view(tensor)] = entry

    def adopt(self, tensor: Tensor) -> Labels:
        """A tensor that no operator has made has the labels of one that is the same numbers, `x.as_subclass(...)`.

        If there is none, it has no labels; those of the first tensor that was on its storage are what it may hide.
        """
        entry = self._entry(tensor)
        if tensor.layout != torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return ()  # it has no storage
        first = self._first.get(tensor.untyped_storage()._cdata)
        if first is None:
            return ()
        alike = self._alike.get(_view(tensor))
        if alike is None:
            return first[1].labels
        entry.labels, entry.stored = alike.labels, alike.stored
        return ()

    def write_through(self, view: Tensor, labels: Labels) -> None:
        """These labels were written into a view; where the tensor that it is a view of was uniform, it takes them over.

        `out = torch.zeros(b, n, c)` has the channels of h once `out[:, 0] = h` has run.
        """
        _, entry, first = self._first.get(view.untyped_storage()._cdata, (None, None, lambda: None))
        base = first()
        if base is None or base is view or entry is None or not entry.labels:
            return
        found = list(entry.labels)
        for axis, ids in enumerate(labels):
            step = view.stride(axis)
            for place, own in enumerate(found):
                if ids is None or own is None or base.stride(place) != step or step == 0:
                    continue
                start = (view.storage_offset() - base.storage_offset()) // step % len(own)
                if start + len(ids) <= len(own) and bool((part := own[start : start + len(ids)]).eq(ANY).any()):
                    filled = torch.where(part == ANY, ids, part)
                    found[place] = torch.cat([own[:start], filled, own[start + len(ids) :]])
        entry.labels = tuple(found)

    def _entry(self, tensor: Tensor) -> _Entry:
        number = id(tensor)
        entry = self._entries.get(number)
        if entry is None:
            held = tensor if tensor.is_meta else weakref.ref(tensor, lambda _: self._entries.pop(number))
            entry = self._entries[number] = _Entry(held)
        return entry


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return lies_at(tensor), tensor.shape, tensor.dtype
