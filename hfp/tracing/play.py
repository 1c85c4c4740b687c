"""One forward of a model, watched; the model is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hfp.ambient import as_set
from hfp.eager import eagerly
from hfp.inputs import Arguments, placed
from hfp.labels import Place
from hfp.names import Names
from hfp.rules.own import Whole, rule_of
from hfp.tracing.functions import Functions
from hfp.tracing.told import mark


@dataclass(frozen=True)
class Subject:
    """The model that is watched, what it is called with, and the names in it."""

    model: nn.Module
    inputs: Arguments
    names: Names


def play(subject: Subject, shadows: dict[str, Tensor], functions: Functions, *, training: bool) -> None:
    """One forward under `functions` and its watcher; `shadows`: name -> tensor. Outputs are pinned."""
    device = next(iter(shadows.values())).device if functions.watcher.real else torch.device("meta")
    args, kwargs = placed(subject.inputs, device)
    if training:  # batch norm wants more than one value per channel: a batch of two, where the first axis is a batch
        args, kwargs = tree_map(_doubled, (args, kwargs))
    swapped = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
    model = subject.model
    with as_set(), preserved(model), torch.random.fork_rng(devices=[]), torch.no_grad(), eagerly():
        model.train(training)
        mark(subject.names.modules)
        for module in model.modules():
            if rule_of(module) is not None and "forward" not in vars(module):
                module.forward = Whole(module)
        with functions.watcher.position.following(), functions.watcher, functions:
            out = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
    functions.watcher.tell_used(tensors_of(out), "output")
    for tensor in tensors_of(out):
        for ids in functions.watcher.labels(tensor):
            if ids is not None:
                functions.watcher.ledger.pin(ids, "is an output of the network", Place("output", "", ""))


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever is written into its modules in here (modes, caches, counters, sizes) is put back afterwards."""
    inner = ("_parameters", "_buffers", "_modules")
    saved = [(m, type(m), dict(vars(m)), [dict(vars(m)[name]) for name in inner]) for m in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator would hide what attention is made of
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, own_class, attributes, contents in saved:
            module.__class__ = own_class
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in zip(inner, contents, strict=True):
                vars(module)[name].clear()
                vars(module)[name].update(content)


_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)


def tensors_of(out: Any, seen: frozenset[int] = frozenset()) -> list[Tensor]:
    """The tensors in what a model returns: any nesting of tuples, lists, dicts and dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in fields(leaf)], seen)
        elif isinstance(leaf, _PLAIN) or leaf is None or id(leaf) in seen:
            continue
        elif (
            hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module) and tensors_of(vars(leaf), seen | {id(leaf)})
        ):
            found += tensors_of(vars(leaf), seen | {id(leaf)})
        else:
            raise ValueError(
                f"the model returns a {type(leaf).__name__}, in which tensors cannot be found; "
                "return tensors in tuples, lists, dicts or dataclasses"
            )
    return found


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1 else value
