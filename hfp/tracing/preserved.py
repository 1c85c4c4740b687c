"""Whatever a watched run of a model writes into it is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from hfp.tracing.attributes import is_plain


def set_mode(model: nn.Module, training: bool) -> None:
    """`model.train(training)`, but for what modules of the user's do then: merge weights, drop a cache."""
    for module in model.modules():
        module.training = training


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever is written into its modules in here (modes, caches, counters, sizes) is put back afterwards.

    So is what is written into tensors that are plain attributes, but not into parameters and buffers.
    """
    classes = [(module, type(module)) for module in model.modules()]
    saved: dict[int, tuple[Any, Any]] = {id(buffer): ((), ()) for buffer in model.buffers()}
    for module, _ in classes:
        _save(vars(module), saved)
        for value in list(vars(module).values()):
            if is_plain(value):
                _save(vars(value), saved)  # of a config, or of a state that modules share
    try:
        yield
    finally:
        for module, own_class in classes:
            module.__class__ = own_class
        for container, before in saved.values():
            if isinstance(container, Tensor):
                if container.shape == before.shape and not torch.equal(container, before):
                    container.data.copy_(before)
            elif len(container) != len(before) or any(map(is_not, _flat(container), _flat(before))):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(before)


_CONTAINERS = (dict, list, set, deque)
_PLAIN = {bool, int, float, str, type(None), nn.Parameter}


def _save(value: Any, saved: dict[int, tuple[Any, Any]]) -> None:
    """Note what containers and tensors hold, those inside of others as well: id -> container, a copy."""
    if isinstance(value, tuple):
        for entry in value:
            _save(entry, saved)
    elif type(value) is Tensor and value.layout == torch.strided and not value.is_meta and id(value) not in saved:
        saved[id(value)] = value, value.detach().clone()
    elif isinstance(value, _CONTAINERS) and id(value) not in saved:
        saved[id(value)] = value, dict(value) if isinstance(value, dict) else [*value]
        for entry in _flat(saved[id(value)][1]):
            if type(entry) not in _PLAIN:
                _save(entry, saved)


def _flat(container: Any) -> Iterable[Any]:
    return chain.from_iterable(container.items()) if isinstance(container, dict) else container
