"""One forward of a model, watched; the model is left as it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfp.ambient import as_set
from hfp.chance import forked
from hfp.eager import eagerly
from hfp.inputs import Arguments, placed
from hfp.labels import Place
from hfp.names import Names
from hfp.outputs import tensors_of
from hfp.rules.own import Whole, rule_of
from hfp.tracing.attributes import is_plain
from hfp.tracing.functions import Functions
from hfp.tracing.told import Marked, Span, mark, unremembered


@dataclass(frozen=True)
class Subject:
    """The model that is watched, what it is called with, and the names in it."""

    model: nn.Module
    inputs: Arguments
    names: Names
    written: dict[int, Any] = field(default_factory=dict)
    """What modules hold and its forward writes to, by id: a dict that they share, say."""
    span: Span = field(default_factory=Span)
    """Over when the trace is."""


class WritesToHolder(Exception):
    """The forward has written to what it was given a copy of; it is to be run again, now that this is known."""


def play(subject: Subject, shadows: dict[str, Tensor], functions: Functions, *, training: bool) -> None:
    """One forward under `functions` and its watcher; `shadows`: name -> tensor. Outputs are pinned.

    Raises WritesToHolder.
    """
    device = next(iter(shadows.values())).device if functions.watcher.real else torch.device("meta")
    args, kwargs = placed(subject.inputs, device)
    if training:  # batch norm wants more than one value per channel: a batch of two, where the first axis is a batch
        args, kwargs = tree_map(_doubled, (args, kwargs))
    swapped = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
    model = subject.model
    with (
        as_set(),
        preserved(model),
        _plain_attention(),
        forked(),
        torch.no_grad(),
        eagerly(),
        unremembered(),
    ):
        set_mode(model, training)
        marked = mark(subject.names.modules, subject.span, subject.written)
        for module in model.modules():
            if rule_of(module) is not None and "forward" not in vars(module):
                module.forward = Whole(module)
        try:
            with functions.watcher.position.following(), functions.watcher, functions:
                out = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
        except Exception:  # what is written may be why
            _check_written(subject, marked)
            raise
        _check_written(subject, marked)
    functions.watcher.tell_used(tensors_of(out), "output")
    ledger = functions.watcher.ledger
    for tensor in tensors_of(out):
        for ids in functions.watcher.labels(tensor):
            ledger.pin(ids, "is an output of the network", Place("output", "", ""))
    while ledger.asks:  # of operators that no function has called which could be given something else: TorchScript
        ask = ledger.asks.pop()
        ledger.pin(ask.ids, ask.reason, ask.place)


def _check_written(subject: Subject, marked: Iterable[Marked]) -> None:
    if written := {id(one.holder): one.holder for one in marked if one.written()}:
        subject.written.update(written)
        raise WritesToHolder


@contextmanager
def _plain_attention() -> Iterator[None]:
    """A fused operator would hide what attention is made of."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


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
            _save(entry, saved)


def _flat(container: Any) -> Iterable[Any]:
    return chain.from_iterable(container.items()) if isinstance(container, dict) else container


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1 else value
