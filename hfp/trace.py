"""`trace`: from a model to its channel table."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hfp.channels import ChannelTable, build_table
from hfp.labels import Ledger, Place
from hfp.model.ambient import plainly
from hfp.model.copies import uncollected
from hfp.model.held import held_in
from hfp.model.inputs import arguments, describe
from hfp.model.names import Names
from hfp.model.turns import one_at_a_time
from hfp.tracing.play import Subject
from hfp.tracing.run import run
from hfp.trial.misfit import Pins
from hfp.trial.repair import Repairs
from hfp.trial.trial import misfits

Ignored = Iterable[str | nn.Module] | str | nn.Module | None


@plainly
def trace(model: nn.Module, example_inputs: Any = None, *, ignore: Ignored = (), ptflops: bool = False) -> ChannelTable:
    """The channel table of `model`, from runs on the meta device; the model is left as it was.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> table = trace(model, torch.zeros(1, 3, 8, 8))
    >>> [(group.width, group.members) for group in table.groups]
    [(8, (('0.weight', 0), ('0.bias', 0), ('2.weight', 1)))]

    `example_inputs`: a tensor, a tuple of tensors or a dict of keyword tensors; only shapes and dtypes are used,
        unless the model's code looks at values.
    `ignore`: modules, or glob patterns of module names, whose output channels stay whole.
    `ptflops`: whether the table also holds what ptflops' default backend counts.
    Multiply-adds are those of one forward pass of the example inputs.
    """
    check_plain(model)
    names = Names.of(model)
    subject = Subject(model, arguments(model, example_inputs), names, held_in(names))
    with one_at_a_time, uncollected():
        try:
            return _trace(subject, ignore, ptflops)
        finally:
            subject.span.over = True


def _trace(subject: Subject, ignore: Ignored, ptflops: bool) -> ChannelTable:
    model = subject.model
    seen = run(subject, ptflops)
    _pin(ignored_modules(model, ignore), seen.ledger)
    described = describe(subject.inputs, values=seen.real)
    repairs, pins = Repairs(subject, seen), Pins(seen.ledger)

    def table() -> ChannelTable:
        return build_table(repairs.applied(), repairs.operands(), subject.names, described)

    found = misfits(subject, last := table(), seen, any_will_do=bool(repairs.kept))
    if found and repairs.kept:  # what the labelled runs told is not enough: then one after the other, where it is asked
        repairs.kept = []
        found = misfits(subject, last := table(), seen)
    while found:  # every round tries a repair, or pins a channel at least
        if not repairs.next(found, last):
            pins.add(found, last)
        found = misfits(subject, last := table(), seen)
    # An attribute may have been set because it is as large as the one that matters: then all is well without it.
    for needless in repairs.doubtful():
        with_it, repairs.kept = repairs.kept, [repair for repair in repairs.kept if repair not in needless]
        without = table()
        if misfits(subject, without, seen, any_will_do=True):
            repairs.kept = with_it
        else:
            last = without
    return last


def check_plain(model: nn.Module) -> None:
    """
    Raises:
        ValueError: it is no network, or one that is wrapped, compiled, replicated, scripted, exported or without sizes.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"hfp.trace needs an nn.Module, not a {kind}")
    if isinstance(getattr(model, "table", None), ChannelTable):
        raise ValueError("the model is wrapped, and has its table already: net.table (the plain model is net.model)")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled; pass the plain one, model._orig_mod")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"the model is in {kind}; pass the plain one, model.module")
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise ValueError(f"{kind} has layers without a size (lazy modules); call it once first: model(example_inputs)")
    if scripted := [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]:
        raise ValueError(
            f"{scripted[0] or 'the model'} is TorchScript, which has no Python code to follow, and no layers to cut; "
            "pass the model as it was before torch.jit.script or torch.jit.trace"
        )
    if exported := [name for name, module in model.named_modules() if _is_exported(module)]:
        raise ValueError(
            f"{exported[0] or 'the model'} is an exported program, which cannot be trained on; "
            "pass the model as it was before torch.export.export"
        )


def _is_exported(module: nn.Module) -> bool:
    """Whether it is the module of a `torch.export.ExportedProgram`, which refuses to change its mode."""
    if not isinstance(module, torch.fx.GraphModule) or "train" not in vars(module):
        return False
    try:
        module.train(module.training)
    except NotImplementedError:
        return True
    return False


def ignored_modules(model: nn.Module, ignore: Ignored) -> list[str]:
    """The names of the modules that `ignore` stands for."""
    first = {module: name for name, module in model.named_modules()}
    names = dict(model.named_modules(remove_duplicate=False))
    every: list[str] = []
    if ignore is None:
        ignore = ()
    for entry in ignore if isinstance(ignore, Iterable) and not isinstance(ignore, (str, nn.Module)) else (ignore,):
        if isinstance(entry, nn.Module):
            found = [name for name, module in names.items() if module is entry]
        elif isinstance(entry, str):
            found = [entry] if entry in names else [name for name in names if fnmatchcase(name, entry)]
        else:
            raise ValueError(
                f"ignore={entry!r}: expected a module or a glob pattern of module names, such as 'layer1.*'"
            )
        if not found:
            known = f"its modules are {', '.join(list(names)[1:6])} ..." if len(names) > 1 else "it has none inside"
            raise ValueError(f"ignore={entry!r} matches no module of the network; {known}")
        every += [first[names[name]] for name in found]
    return list(dict.fromkeys(every))


def _pin(modules: list[str], ledger: Ledger) -> None:
    """The channels that these modules, and those inside them, make stay whole; those that they read may go."""
    for tensor, ids in ledger.axes.items():
        owner = tensor.rpartition(".")[0]
        if any(not name or owner == name or owner.startswith(f"{name}.") for name in modules):
            for dim in set(range(len(ids))) - ledger.readers.get(tensor, set()):
                ledger.pin(ids[dim], "is ignored, as asked", Place("ignore", owner, ""))
