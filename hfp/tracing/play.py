"""One forward of a model, watched; the model is left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hfp.labels import Place
from hfp.model.ambient import as_set
from hfp.model.chance import forked
from hfp.model.eager import eagerly
from hfp.model.held import Held, standing_in
from hfp.model.inputs import Arguments, placed
from hfp.model.names import Names
from hfp.model.outputs import tensors_of
from hfp.rules.own import Whole, rule_of
from hfp.tracing.functions import Functions
from hfp.tracing.preserved import preserved, set_mode
from hfp.tracing.told import Marked, Span, mark, unremembered


@dataclass(frozen=True)
class Subject:
    """The model that is watched, what it is called with, and the names in it."""

    model: nn.Module
    inputs: Arguments
    names: Names
    held: Sequence[Held]
    written: dict[int, Any] = field(default_factory=dict)
    """What modules hold and its forward writes to, by id: a dict that they share, say."""
    span: Span = field(default_factory=Span)
    """Over when the trace is."""


class WritesToHolder(Exception):
    """The forward has written to what it was given a copy of; it is to be run again, now that this is known."""


def play(subject: Subject, shadows: dict[str, Tensor], functions: Functions, *, training: int | None) -> None:
    """One forward under `functions` and its watcher; `shadows`: name -> tensor. Outputs are pinned.

    `training`: in that mode, with the inputs of so many axes at least in a batch of two; None for evaluation mode.

    Raises WritesToHolder.
    """
    device = next(iter(shadows.values())).device if functions.watcher.real else torch.device("meta")
    args, kwargs = placed(subject.inputs, device)
    if training is not None:
        args, kwargs = in_twos((args, kwargs), training)
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
        set_mode(model, training is not None)
        marked = mark(subject.names.modules, subject.span, subject.written)
        for module in model.modules():
            if rule_of(module) is not None and "forward" not in vars(module):
                module.forward = Whole(module)
        try:
            standing = standing_in(model, subject.held, shadows)
            with standing, functions.watcher.position.following(), functions.watcher, functions:
                out = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
        except Exception:  # what is written may be why
            _check_written(subject, marked)
            raise
        _check_written(subject, marked)
    # What a forward puts into a dict or list that it is given is an output as well.
    returned = [*tensors_of(out), *(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))]
    functions.watcher.tell_used(returned, "output")
    ledger = functions.watcher.ledger
    for tensor in returned:
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


def in_twos(inputs: Arguments, axes: int) -> Arguments:
    """Tensors of a batch of one in a batch of two, since batch norm wants more than one value per channel in training.

    Tensors of fewer than `axes` axes stay: one of a single number may be a time step for each example, or a strength.
    """
    args, kwargs = tree_map(lambda value: torch.cat([value, value]) if is_one(value, axes) else value, inputs)
    return args, kwargs


def is_one(value: Any, axes: int) -> bool:
    """Whether it is a tensor of at least so many axes that may be a batch of one."""
    return isinstance(value, Tensor) and value.dim() >= axes and value.shape[0] == 1
