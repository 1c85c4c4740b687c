"""Run the model once on the meta device and watch where the labels go.

The run needs no data and no memory: parameters and inputs are shapes only, but for models whose code looks at values;
of these a copy is run, on the example inputs. It happens below the model's own code, on ATen operators, so any Python
control flow that runs can be followed. The model is run in evaluation mode, in which costs are counted, and once more
in training mode where that could make a difference (auxiliary heads, say).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from hfp.labels import Labels, Ledger
from hfp.model.ambient import as_set
from hfp.model.chance import forked
from hfp.model.eager import eagerly
from hfp.model.inputs import placed, shape_of
from hfp.model.source import caller, line_at
from hfp.rules.own import OwnRuleError
from hfp.tracing.functions import Around, Functions, mapped
from hfp.tracing.modes import Modes
from hfp.tracing.numbering import numbered
from hfp.tracing.operands import Operand
from hfp.tracing.play import Subject, WritesToHolder, is_one, play
from hfp.tracing.position import Position, Site
from hfp.tracing.preserved import preserved, set_mode
from hfp.tracing.ptflops_count import PtflopsCounter
from hfp.tracing.siblings import follow_siblings, reached
from hfp.tracing.sizes import reads_widths
from hfp.tracing.told import ASKING, attributes_asked
from hfp.tracing.unread import pin_unread
from hfp.tracing.watcher import RuleError, Step, Watcher
from hfp.words import first_few, first_line

"""Layers in a note."""


class Called(NamedTuple):
    """What a function gave in a run: enough to stand in for it."""

    end: int
    """How many steps had been taken when it was done."""
    outs: list[tuple[torch.Size, Labels, torch.dtype, list[int]]]
    """Of each tensor: shape, labels, dtype, axes in the order of memory."""
    leaves: list[Any]
    """What else it gave; None in place of tensors."""
    spec: Any
    caller: tuple[CodeType | None, int]
    """The place in the user's code."""


@dataclass
class Run:
    """What the labelled runs of a model say: the ledger, and the steps of each mode that was run.

    Training mode is left out where it cannot be run, and where it would say the same (see `hfp.tracing.modes`).
    """

    ledger: Ledger
    steps: dict[bool, list[Step]]
    """Training or not -> the operators in the order of their execution."""
    real: bool
    """Whether it ran on real numbers, since the model's code looks at them."""
    calls: dict[bool, dict[Site, Called]]
    """Training or not -> where a function was called -> what it gave."""
    entered: dict[bool, Mapping[str, int]]
    """Training or not -> how often what functions are called inside of (`Site.inside`) was entered."""
    sized: dict[bool, bool]
    """Training or not -> whether the model's code met the size of an axis with channels (see `hfp.tracing.sizes`)."""
    reads_widths: bool
    """Whether it mentions what says how many channels there are (see `hfp.tracing.sizes`)."""
    operands: list[Operand]
    """Arguments in which removed channels have to be hidden; their channels are ids of the ledger."""
    twos: int = 1
    """Inputs of so many axes are in a batch of two in training mode (`hfp.tracing.play.in_twos`)."""
    told: list[tuple[Tensor, tuple[str, str]]] = field(default_factory=list)
    """(ids, (module, attribute) that was asked to be their number)."""

    def training_shows_all(self) -> bool:
        """Whether every function that was called on channels in evaluation mode was so in training, by the same code.

        In the same order, that is, perhaps with others between them.
        """
        if self.calls.keys() != {True, False}:
            return False
        evaluation, training = (
            [
                (site.inside, site.call, site.function, called.caller)
                for site, called in self.calls[mode].items()
                if any(labels for _, labels, *_ in called.outs)
            ]
            for mode in (False, True)
        )
        rest = iter(training)
        return all(call in rest for call in evaluation)


class NeedsValues(ValueError):
    """The model's code looks at the values of tensors, or does not run on shapes alone for another reason."""


class OneInTwos(Exception):
    """The forward in training mode fails on inputs in a batch of two; those of so many axes may be no batch."""

    def __init__(self, axes: int) -> None:
        super().__init__(axes)
        self.axes = axes


def needs_values(error: Exception) -> bool:
    """Whether this is what PyTorch says when it is to read a value off a shape."""
    told = r"\bmeta\b|no fake impl|data is not allocated yet|expected sparse"
    return isinstance(error, NotImplementedError) or re.search(told, str(error).lower()) is not None


def run(subject: Subject, ptflops: bool) -> Run:
    """What an evaluation and a training run say of the channels of the model, which is left as it was.

    They run on shapes alone, where that is possible; else on the numbers of the model and the example inputs.
    `ptflops`: whether its count is wanted as well.
    """
    real, twos = False, 1
    while True:
        try:
            return _run(subject, ptflops, real, twos)
        except WritesToHolder:
            pass  # again: each time more is known of what it writes to
        except OneInTwos as error:
            twos = error.axes + 1
        except NeedsValues:
            if real or not subject.names.tensors:
                raise
            # It runs unwatched first, so that caches (`lru_cache`) are filled and every watched run sees the same code.
            failure = _failure(subject)
            if failure is not None and not any(tensor.is_meta for tensor in subject.names.tensors.values()):
                raise _does_not_run(subject, failure) from failure
            real = True


def _shadows(subject: Subject, real: bool) -> dict[str, Tensor]:
    """What stands in for parameters and buffers: shapes alone, or copies of the numbers, since a run may write."""
    tensors = subject.names.tensors.items()
    if not real:
        return {name: shape_of(tensor) for name, tensor in tensors}
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _run(subject: Subject, ptflops: bool, real: bool, twos: int) -> Run:
    shadows = _shadows(subject, real)
    ledger = numbered(subject.names, shadows)
    seen = Run(ledger, steps={}, real=real, calls={}, entered={}, sized={}, reads_widths=False, operands=[], twos=twos)
    alike = _watch_evaluation(subject, shadows, seen, ptflops)
    seen.reads_widths = reads_widths(subject.model, {name.partition(".")[0] for _, name in ledger.attributes})
    if not alike or seen.reads_widths or seen.sized[False]:  # a trial is told more by a training run, of a batch of two
        _watch_training(subject, shadows, seen)
    every = [*chain.from_iterable(seen.steps.values())]
    if not real:
        _note_unused(subject, ledger, every)
    else:
        seen.operands += list(follow_siblings(subject.names, ledger, every, seen.operands))
        pin_unread(ledger, seen.operands)
    entered = seen.entered.get(True, {})  # layers that are dropped at random may be left out of a training run
    missed = [each for each in seen.operands if not each.training and each.site.inside not in entered]
    seen.operands += [replace(operand, training=True) for operand in missed]
    return seen


def _note_unused(subject: Subject, ledger: Ledger, steps: list[Step]) -> None:
    """Layers that the example inputs did not reach may read channels, or make some, that a cut would take from them."""
    used = {*reached(ledger, steps)}
    wide = [name for name in subject.names.parameters if any(len(ids) > 1 for ids in ledger.axes[name])]
    unused = [name for name in wide if name not in used]
    layers = dict.fromkeys(name.rpartition(".")[0] or name for name in unused)
    running = used.union(name.rpartition(".")[0] for name in subject.names.parameters if name in used)
    idle = [layer for layer in layers if layer not in running]
    if idle:
        ledger.notes.append(
            f"{first_few(idle)} did not run on the example inputs: what they do to channels is not known, and a cut "
            "network may fail where they run; give inputs that use them (weights that the forward takes from an object "
            "of your own are not seen to be used: take them from the module)"
        )


def _watch_evaluation(subject: Subject, shadows: dict[str, Tensor], seen: Run, ptflops: bool) -> bool:
    """Note what a run in evaluation mode says. Whether one in training mode would say the same."""
    taken: list[Step] = []
    watcher = Watcher(seen.ledger, shadows, Position(subject.names.modules), taken.append, seen.real)
    counter = PtflopsCounter(subject.model, watcher.labels, watcher.position)
    modes = Modes(subject.model, watcher)
    try:
        with counter.watching() if ptflops else nullcontext(), modes.watching():
            _play_noted(subject, shadows, seen, watcher, taken, training=False)
    except (RuleError, OwnRuleError, WritesToHolder):
        raise
    except Exception as error:
        explained = _explained(subject, error)
        if not isinstance(explained, NeedsValues) and _failure(subject) is None:
            explained = NeedsValues(
                f"{type(subject.model).__name__} runs on the example inputs, but not where its operators are watched "
                f"({first_line(error)}); give the module that does this a rule: hfp.rule"
            )
        try:
            raise explained from error
        finally:
            del explained  # whose traceback holds this frame, and so the model: no cycle is to outlive the run
    if ptflops and counter.failure:
        seen.ledger.notes.append(f"ptflops gives no number: {counter.failure}")
    elif ptflops:
        seen.ledger.ptflops = counter.terms()
    return modes.alike()


def _watch_training(subject: Subject, shadows: dict[str, Tensor], seen: Run) -> None:
    """Note what a run in training mode says, of all but the costs, which are those of evaluation mode."""
    taken: list[Step] = []
    watcher = Watcher(seen.ledger, shadows, Position(subject.names.modules), taken.append, seen.real)
    macs = list(seen.ledger.macs)
    try:
        _play_noted(subject, shadows, seen, watcher, taken, training=True)
    except (RuleError, OwnRuleError, WritesToHolder):
        raise
    except Exception as error:
        explained = _explained(subject, error)
        if isinstance(explained, NeedsValues) and not seen.real:
            try:
                raise explained from error
            finally:
                del explained
        if ones := [value.dim() for value in tree_leaves(subject.inputs) if is_one(value, seen.twos)]:
            raise OneInTwos(min(ones)) from None
        seen.ledger.notes.append(
            f"the forward in training mode could not be run on the example inputs ({first_line(error)}); "
            "its channels are those of evaluation mode"
        )
    seen.ledger.macs = macs


def _play_noted(
    subject: Subject, shadows: dict[str, Tensor], seen: Run, watcher: Watcher, taken: list[Step], training: bool
) -> None:
    calls: dict[Site, Called] = {}
    functions = Functions(watcher, training, _recorder(watcher, taken, calls, seen))
    play(subject, shadows, functions, training=seen.twos if training else None)
    watcher.note_replaced(shadows)
    entered = watcher.position.calls
    seen.steps[training], seen.calls[training], seen.entered[training] = taken, calls, entered
    seen.sized[training] = seen.real or watcher.sizes > 0 or seen.ledger.groups_told
    lines = _lines(calls, functions.operands)
    for operand in functions.operands:
        entries = entered[operand.site.inside]
        seen.operands.append(replace(operand, calls=entries, line=lines.get(operand.site)))


def _lines(calls: Mapping[Site, Called], operands: Sequence[Operand]) -> dict[Site, str]:
    """Site -> line of code, where every call by that line has operands: a loop may take more turns elsewhere."""
    if not operands:
        return {}
    parts = [operand.site.inside.split("|") for operand in operands]
    opened = {"|".join(names[:count]) for names in parts for count in range(2, len(names) + 1)}
    hiding = {operand.site for operand in operands}
    by_line: dict[tuple[str, str, str], list[Site]] = defaultdict(list)
    for site, called in calls.items():
        by_line[site.inside, site.function, line_at(called.caller)].append(site)
    found: dict[Site, str] = {}
    for (_, _, line), sites in by_line.items():
        if all(site in hiding or site.frame in opened for site in sites):
            found |= dict.fromkeys(sites, line)
    alone = {site.frame for site in calls if site.frame in opened and site not in found}
    return {site: line for site, line in found.items() if site.inside not in alone}


_ONE = tree_flatten(None)[1]
"""How a single value is nested."""


def _recorder(watcher: Watcher, taken: list[Step], calls: dict[Site, Called], seen: Run) -> Around:
    def around(site: Site, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
        out = call()
        if mapped():
            return out
        leaves, spec = ([out], _ONE) if isinstance(out, Tensor) else tree_flatten(out)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if tensors or watcher.real:  # then also numbers that were read off values
            outs = [(x.shape, watcher.labels(x), x.dtype, _memory_order(x)) for x in tensors]
            rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            calls[site] = Called(len(taken), outs, rest, spec, caller())
            if site.function in ASKING and tensors and args and isinstance(args[0], Tensor):
                made = [labels for _, labels, *_ in outs]
                seen.told += attributes_asked(site.function, args, kwargs, watcher.labels(args[0]), made)
        return out

    return around


def _memory_order(tensor: Tensor) -> list[int]:
    if tensor.layout != torch.strided:
        return list(range(tensor.dim()))
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda axis: -strides[axis])


def _failure(subject: Subject) -> Exception | None:
    """What the model raises on the example inputs, unwatched."""
    shadows = _shadows(subject, real=True)
    for name in subject.names.parameters:  # whose gradient a forward may ask for
        shadows[name].requires_grad_(subject.names.tensors[name].requires_grad)
    args, kwargs = placed(subject.inputs, next(iter(shadows.values()), torch.zeros(0)).device)
    with as_set(), preserved(subject.model), forked(), torch.no_grad(), eagerly():
        set_mode(subject.model, False)
        try:
            swapped = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
            torch.func.functional_call(subject.model, swapped, args, kwargs, tie_weights=False)
        except Exception as error:
            return error
    return None


def _explained(subject: Subject, error: Exception) -> ValueError:
    name = type(subject.model).__name__
    if isinstance(error, NotImplementedError) and "fake impl" in str(error):
        return NeedsValues(
            f"{name} calls an operator that cannot run on shapes alone ({first_line(error)}); prune the network "
            "before it is quantized or converted"
        )
    if needs_values(error):
        return NeedsValues(
            f"the forward of {name} looks at the values of tensors ({first_line(error)}), which a run on shapes lacks; "
            "move the decision out of the part of the model that is to be pruned"
        )
    return _does_not_run(subject, error)


def _does_not_run(subject: Subject, error: Exception) -> ValueError:
    args, kwargs = tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, subject.inputs)
    given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return ValueError(
        f"{type(subject.model).__name__} does not run on the example inputs, which are {given}: {first_line(error)}. "
        "Pass inputs that model(...) itself accepts."
    )
