"""Run the model once on the meta device and watch where the labels go.

The run needs no data and no memory: parameters and inputs are shapes only. It happens below the model's own code, on
ATen operators, so any Python control flow that runs can be followed. The model is run twice, in training and in
evaluation mode, since auxiliary heads and batch statistics differ; costs are counted in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hfp.inputs import Arguments
from hfp.labels import Ledger, Place
from hfp.ptflops_count import PtflopsCounter
from hfp.watcher import RuleError, Step, Watcher, first_line


@dataclass
class Run:
    """What the labelled runs of a model say: the ledger, and the steps of each mode that could be run."""

    ledger: Ledger
    steps: dict[bool, list[Step]]
    """Training or not -> the operators in the order of their execution."""


def run(model: nn.Module, inputs: Arguments) -> Run:
    """What a training and an evaluation run say of the channels of `model`, which is left as it was."""
    ledger = Ledger()
    tensors = named_tensors(model)
    shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        ledger.number(name, tensor.shape)
    steps: dict[bool, list[Step]] = {}
    for training in (True, False):
        taken: list[Step] = []
        watcher = Watcher(ledger, shadows, taken.append)
        counter = PtflopsCounter(model, watcher.planes_of, watcher.path)
        try:
            with nullcontext() if training else counter.watching():
                play(model, shadows, inputs, watcher, training=training)
        except RuleError:
            raise
        except Exception as error:
            if not training:
                raise _explained(model, inputs, error) from error
            ledger.notes.append(
                f"the forward in training mode could not be run on the example inputs ({first_line(error)}); "
                "its channels are those of evaluation mode"
            )
        else:
            steps[training] = taken
        if training:
            ledger.macs.clear()  # costs are those of evaluation mode
    if counter.failure:
        ledger.notes.append(f"ptflops gives no number: {counter.failure}")
    else:
        ledger.ptflops = counter.terms()
    return Run(ledger, steps)


def play(model: nn.Module, shadows: dict[str, Tensor], inputs: Arguments, watcher: Watcher, *, training: bool) -> None:
    """One forward under `watcher`, with `shadows` (name -> meta tensor) for tensors; outputs are pinned."""
    args, kwargs = tree_map(lambda x: x.detach().to("meta") if isinstance(x, Tensor) else x, inputs)
    if training:  # batch norm wants more than one value per channel: a batch of two, where the first axis is a batch
        args, kwargs = tree_map(_doubled, (args, kwargs))
    swapped = {alias: shadows[name] for alias, name in aliases(model).items()}
    with _preserved(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        model.train(training)
        with watcher.module_paths(model), watcher:
            out = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
    for tensor in tensors_of(out):
        for plane in watcher.planes_of(tensor):
            watcher.ledger.pin(plane, "is an output of the network", Place("output", "", ""))


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """Whatever the forward writes into its modules (modes, caches, counters) is put back afterwards."""
    inner = ("_parameters", "_buffers", "_modules")
    saved = [(module, dict(vars(module)), [dict(vars(module)[name]) for name in inner]) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator would hide what attention is made of
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in zip(inner, contents, strict=True):
                vars(module)[name].clear()
                vars(module)[name].update(content)


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors in what a model returns: any nesting of tuples, lists, dicts and dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in fields(leaf)])
        elif leaf is not None and not isinstance(leaf, (bool, int, float, complex, str)):
            raise ValueError(
                f"the model returns a {type(leaf).__name__}, in which tensors cannot be found; "
                "return tensors in tuples, lists, dicts or dataclasses"
            )
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, under the first of its names."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name of the same tensor (tied weights have several)."""
    first = {id(tensor): name for name, tensor in named_tensors(model).items()}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in every}


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1 else value


def _explained(model: nn.Module, inputs: Arguments, error: Exception) -> ValueError:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return ValueError(
            f"{name} is a TorchScript module, whose operators cannot be watched; pass the nn.Module it was made from"
        )
    if isinstance(error, NotImplementedError) and "fake impl" in str(error):
        return ValueError(
            f"{name} calls an operator that cannot run on shapes alone ({first_line(error)}); prune the network "
            "before it is quantized or converted"
        )
    if isinstance(error, NotImplementedError) or "meta tensor" in str(error).lower():
        return ValueError(
            f"the forward of {name} looks at the values of tensors ({first_line(error)}), which a run on shapes lacks; "
            "move the decision out of the part of the model that is to be pruned"
        )
    args, kwargs = inputs
    given = ", ".join(
        [str(tuple(x.shape)) if isinstance(x, Tensor) else repr(x) for x in args]
        + [f"{name}={tuple(x.shape) if isinstance(x, Tensor) else x!r}" for name, x in kwargs.items()]
    )
    return ValueError(
        f"{name} does not run on the example inputs, which are {given}: {first_line(error)}. "
        "Pass inputs that model(...) itself accepts."
    )
