"""Run the model once on the meta device and watch where the labels go.

The run needs no data and no memory: parameters and inputs are shapes only. It happens below the model's own code, on
ATen operators, so any Python control flow that runs can be followed. The model is run in evaluation mode, in which
costs are counted, and once more in training mode where that could make a difference (auxiliary heads, say).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import chain
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from hfp.eager import eagerly
from hfp.inputs import Arguments, placed, shape_of
from hfp.labels import Labels, Ledger, Pin, Place
from hfp.names import Names
from hfp.rules.own import OwnRuleError, Whole, rule_of
from hfp.tracing.functions import Around, Functions
from hfp.tracing.modes import Modes
from hfp.tracing.operands import Operand
from hfp.tracing.position import Position, Site
from hfp.tracing.ptflops_count import PtflopsCounter
from hfp.tracing.siblings import follow_siblings
from hfp.tracing.sizes import reads_widths
from hfp.tracing.told import ASKING, attributes_asked, mark
from hfp.tracing.unread import pin_unread
from hfp.tracing.watcher import RuleError, Step, Watcher, caller, first_line


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


def needs_values(error: Exception) -> bool:
    """Whether this is what PyTorch says when it is to read a value off a shape."""
    told = r"\bmeta\b|no fake impl|data is not allocated yet|expected sparse"
    return isinstance(error, NotImplementedError) or re.search(told, str(error).lower()) is not None


@dataclass(frozen=True)
class Subject:
    """The model that is watched, what it is called with, and the names in it."""

    model: nn.Module
    inputs: Arguments
    names: Names


def run(subject: Subject, ptflops: bool) -> Run:
    """What an evaluation and a training run say of the channels of the model, which is left as it was.

    They run on shapes alone, where that is possible; else on the numbers of the model and the example inputs.
    `ptflops`: whether its count is wanted as well.
    """
    try:
        return _run(subject, ptflops, real=False)
    except NeedsValues:
        if not subject.names.tensors:
            raise
        _runs(subject)  # what its code computes but once (positions behind an `lru_cache`) is not to tell runs apart
        return _run(subject, ptflops, real=True)


def _shadows(subject: Subject, real: bool) -> dict[str, Tensor]:
    """What stands in for parameters and buffers: shapes alone, or the numbers, copied where a run may write."""
    tensors = subject.names.tensors.items()
    if not real:
        return {name: shape_of(tensor) for name, tensor in tensors}
    parameters = set(subject.names.parameters)
    return {name: tensor.detach() if name in parameters else tensor.clone() for name, tensor in tensors}


def _run(subject: Subject, ptflops: bool, real: bool) -> Run:
    ledger = Ledger()
    shadows = _shadows(subject, real)
    _number(subject.names, shadows, ledger)
    _state_sizes(subject.names, ledger)
    for name, tensor in subject.names.tensors.items():
        if tensor.layout != torch.strided:
            ledger.pins += [Pin(ids, "is an axis of a sparse tensor", Place("", "", "")) for ids in ledger.axes[name]]
    seen = Run(ledger, steps={}, real=real, calls={}, entered={}, sized={}, reads_widths=False, operands=[])
    alike = _watch_evaluation(subject, shadows, seen, ptflops)
    seen.reads_widths = reads_widths(subject.model, {name.partition(".")[0] for _, name in ledger.attributes})
    if not alike or seen.reads_widths or seen.sized[False]:  # a trial is told more by a training run, of a batch of two
        _watch_training(subject, shadows, seen)
    if real:
        every = chain.from_iterable(seen.steps.values())
        seen.operands += list(follow_siblings(subject.names, ledger, every, seen.operands))
        pin_unread(ledger, seen.operands)
    if True not in seen.steps:
        seen.operands += [replace(operand, training=True) for operand in seen.operands]
    return seen


def _watch_evaluation(subject: Subject, shadows: dict[str, Tensor], seen: Run, ptflops: bool) -> bool:
    """Note what a run in evaluation mode says. Whether one in training mode would say the same."""
    taken: list[Step] = []
    watcher = Watcher(seen.ledger, shadows, Position(subject.names.modules), taken.append, seen.real)
    counter = PtflopsCounter(subject.model, watcher.labels, watcher.position)
    modes = Modes(subject.model, watcher)
    try:
        with counter.watching() if ptflops else nullcontext(), modes.watching():
            _play_noted(subject, shadows, seen, watcher, taken, training=False)
    except (RuleError, OwnRuleError):
        raise
    except Exception as error:
        explained = _explained(subject, error)
        if not isinstance(explained, NeedsValues) and _runs(subject):
            explained = NeedsValues(
                f"{type(subject.model).__name__} runs on the example inputs, but not where its operators are watched "
                f"({first_line(error)}); give the module that does this a rule: hfp.rule"
            )
        raise explained from error
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
    except (RuleError, OwnRuleError):
        raise
    except Exception as error:
        explained = _explained(subject, error)
        if isinstance(explained, NeedsValues) and not seen.real:
            raise explained from error
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
    play(subject, shadows, functions, training=training)
    entered = watcher.position.calls
    seen.steps[training], seen.calls[training], seen.entered[training] = taken, calls, entered
    seen.sized[training] = seen.real or watcher.sizes > 0 or seen.ledger.groups_told
    seen.operands += [replace(operand, calls=entered[operand.site.inside]) for operand in functions.operands]


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm)
_BESIDE = "weight bias running_mean running_var".split()


def _number(names: Names, shadows: dict[str, Tensor], ledger: Ledger) -> None:
    """Give ids to every index of every tensor; the vectors of a layer have the ids of its outputs from the start."""
    first: dict[str, str] = {}
    for module, path in names.modules.items():
        if isinstance(module, _LAYERS) and type(module).__module__.startswith("torch.nn.modules."):
            if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
                continue
            tensors = {**module._parameters, **module._buffers}
            own = [key for key in _BESIDE if tensors.get(key) is not None]
            aliases = [names.aliases[f"{path}.{key}" if path else key] for key in own]
            first |= {name: aliases[0] for name in aliases[1:]}
    for name, tensor in shadows.items():
        like = ledger.axes.get(first.get(name, ""), ())[: tensor.dim()]
        if [len(ids) for ids in like] == list(tensor.shape) and like:
            ledger.axes[name] = like
        else:
            ledger.number(name, tensor.shape)


def _state_sizes(names: Names, ledger: Ledger) -> None:
    """The states of all layers and directions of a recurrent module have one size, which is kept as its attribute."""
    for module, path in names.modules.items():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            projected = getattr(module, "proj_size", 0) > 0
            for kind, size in (
                ("weight_hh", "proj_size" if projected else "hidden_size"),
                ("weight_hr", "hidden_size"),
            ):
                own = [names.aliases[f"{path}.{key}" if path else key] for key in module._parameters if kind in key]
                columns = [ledger.axes[name][1] for name in own]
                place = Place("state", path, "")
                for other in columns[1:]:
                    ledger.tie(columns[0], other, place)
                if not projected:  # each gate makes the whole state, though a run of one step does not show it
                    for name in own:
                        ledger.tie(ledger.axes[name][0].reshape(-1, len(columns[0])), columns[0], place)
                if columns:
                    ledger.attributes[path, size] = columns[0]
                if columns and kind == "weight_hr":
                    # PyTorch takes equal sizes for a state that is not projected: it has to stay the wider one. It
                    # does, if a channel of it goes with each that it is projected to, since one of the others stays.
                    projection = ledger.axes[own[0]][0]
                    ledger.tie(columns[0][: len(projection)], projection, place)
                    ledger.tie(ledger.attributes[path, "proj_size"], projection, place)


_ONE = tree_flatten(None)[1]
"""How a single value is nested."""


def _recorder(watcher: Watcher, taken: list[Step], calls: dict[Site, Called], seen: Run) -> Around:
    def around(site: Site, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
        out = call()
        leaves, spec = ([out], _ONE) if isinstance(out, Tensor) else tree_flatten(out)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if tensors or watcher.real:  # then also numbers that were read off values
            outs = [(x.shape, watcher.labels(x), x.dtype, _memory_order(x)) for x in tensors]
            rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            calls[site] = Called(len(taken), outs, rest, spec, caller())
            if site.function in ASKING and tensors and isinstance(args[0], Tensor):
                made = [labels for _, labels, *_ in outs]
                seen.told += attributes_asked(site.function, args, kwargs, watcher.labels(args[0]), made)
        return out

    return around


def _memory_order(tensor: Tensor) -> list[int]:
    if tensor.layout != torch.strided:
        return list(range(tensor.dim()))
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda axis: -strides[axis])


def play(subject: Subject, shadows: dict[str, Tensor], functions: Functions, *, training: bool) -> None:
    """One forward under `functions` and its watcher; `shadows`: name -> tensor. Outputs are pinned."""
    device = next(iter(shadows.values())).device if functions.watcher.real else torch.device("meta")
    args, kwargs = placed(subject.inputs, device)
    if training:  # batch norm wants more than one value per channel: a batch of two, where the first axis is a batch
        args, kwargs = tree_map(_doubled, (args, kwargs))
    swapped = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
    model = subject.model
    with preserved(model), torch.random.fork_rng(devices=[]), torch.no_grad(), eagerly():
        model.train(training)
        mark(subject.names.modules)
        for module in model.modules():
            if rule_of(module) is not None and "forward" not in vars(module):
                module.forward = Whole(module)
        with functions.watcher.position.following(), functions.watcher, functions:
            out = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
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


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in here: a trace, or a copy, makes many objects, all of which live to its end."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


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


def _runs(subject: Subject) -> bool:
    """Whether the model runs on the example inputs, unwatched."""
    shadows = _shadows(subject, real=True)
    args, kwargs = placed(subject.inputs, next(iter(shadows.values()), torch.zeros(0)).device)
    with preserved(subject.model), torch.random.fork_rng(devices=[]), torch.no_grad(), eagerly():
        subject.model.eval()
        try:
            swapped = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
            torch.func.functional_call(subject.model, swapped, args, kwargs, tie_weights=False)
        except Exception:
            return False
    return True


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
    args, kwargs = tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, subject.inputs)
    given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return ValueError(
        f"{name} does not run on the example inputs, which are {given}: {first_line(error)}. "
        "Pass inputs that model(...) itself accepts."
    )
