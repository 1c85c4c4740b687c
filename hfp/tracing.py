"""Run the model once on the meta device and watch where the labels go.

The run needs no data and no memory: parameters and inputs are shapes only. It happens below the model's own code, on
ATen operators, so any Python control flow that runs can be followed. The model is run twice, in training and in
evaluation mode, since auxiliary heads and batch statistics differ; costs are counted in evaluation mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from hfp.inputs import Arguments
from hfp.labels import Ledger, Place, Planes, Term
from hfp.ptflops_count import PtflopsCounter
from hfp.rules import RULES, Call, unknown
from hfp.rules.movers import MOVERS
from hfp.rules.norms import NORMS
from hfp.rules.pointwise import FACTORIES, POINTWISE
from hfp.rules.reducers import REDUCERS

_OWN = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
SIZELESS = (set(POINTWISE) - set(FACTORIES)) | set(REDUCERS) | set(NORMS)  # operators none of whose arguments is a size
_SAME_TENSOR = {
    "t",
    "transpose",
    "permute",
    "alias",
    "detach",
    "clone",
    "contiguous",
    "_to_copy",
    "view",
    "expand",
    "unsqueeze",
    "squeeze",
}


class RuleError(RuntimeError):
    """A rule met something that its author did not think of: never the user's fault."""


@dataclass(frozen=True)
class Step:
    """One operator of a run: what a cut network has to do likewise."""

    operator: str
    scalars: tuple[Any, ...]
    """Arguments that must not depend on the number of channels."""
    shapes: tuple[torch.Size, ...]
    planes: tuple[Planes, ...]
    """Of each output."""
    touched: Planes
    """Of all arguments and outputs."""
    place: Place


@dataclass
class Run:
    """What the labelled runs of a model say: the ledger, and the steps of each mode that could be run."""

    ledger: Ledger
    steps: dict[bool, list[Step]]
    """Training or not -> the operators in the order of their execution."""


def run(model: nn.Module, inputs: Arguments) -> Run:
    """What one training and one evaluation run of `model(*args, **kwargs)` say about its channels. The model is left
    as it was."""
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
    """One forward of `model` with `shadows` (name -> meta tensor) in the place of its tensors, under `watcher`; its
    outputs are pinned."""
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


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _explained(model: nn.Module, inputs: Arguments, error: Exception) -> ValueError:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return ValueError(
            f"{name} is a TorchScript module, whose operators cannot be watched; pass the nn.Module it was made from"
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


class Watcher(TorchDispatchMode):
    """Follows every operator that runs inside it and hands its labels to the rule of its name."""

    def __init__(self, ledger: Ledger, shadows: dict[str, Tensor], on_step: Callable[[Step], None]) -> None:
        super().__init__()
        self.ledger = ledger
        self.on_step = on_step
        self.path: list[tuple[str, nn.Module | None]] = [("", None)]
        # Keyed by identity; the tensor stands beside its entry so that no other can take its id while the run lasts.
        self._names = {id(tensor): (tensor, name) for name, tensor in shadows.items()}
        self._planes = {id(tensor): (tensor, ledger.planes(name)) for name, tensor in shadows.items()}
        self._by_storage = {storage(tensor): tensor for tensor in shadows.values()}
        self._on_meta: dict[int, tuple[Tensor, Tensor]] = {}

    def planes_of(self, tensor: Any) -> Planes:
        return self._planes.get(id(tensor), (None, ()))[1]

    def name_of(self, tensor: Any) -> str | None:
        return self._names.get(id(tensor), (None, None))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if len({x.is_meta for x in tensors}) > 1:
            args, kwargs = tree_map(self._to_meta, (args, kwargs))
            leaves = tree_leaves((args, kwargs))
            tensors = [x for x in leaves if isinstance(x, Tensor)]
        out = _execute(func, args, kwargs)
        for tensor in tensors:
            if tensor.is_meta and id(tensor) not in self._planes:
                self._adopt(tensor)
        self._pass_name_on(func, args, out)
        before = tuple(plane for tensor in tensors for plane in self.planes_of(tensor))
        place = Place(func.overloadpacket.__name__, self.path[-1][0], "")
        counted = func.overloadpacket in flop_registry
        if counted or before:
            place = self._apply(func, args, kwargs, out, place, counted)
        for tensor in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
            self._planes.setdefault(id(tensor), (tensor, ()))
            self._by_storage.setdefault(storage(tensor), tensor)
        outs = labelled(out)
        after = tuple(self.planes_of(tensor) for tensor in outs)
        scalars = tuple(map(_value, leaves)) if place.operator.rstrip("_") in SIZELESS else ()
        self.on_step(Step(place.operator, scalars, tuple(t.shape for t in outs), after, before + sum(after, ()), place))
        return out

    def _apply(self, func: Any, args: Any, kwargs: Any, out: Any, place: Place, counted: bool) -> Place:
        """Let the rule of the operator speak; its place, with the source line if it pinned something."""
        name = place.operator
        in_place = name.endswith("_") and not name.endswith("__")
        rule = RULES.get(name.rstrip("_") if in_place else name, unknown)
        if in_place and name.rstrip("_") in MOVERS:
            rule = unknown
        call = Call(func, args, kwargs, out, self.planes_of, self.name_of, place, self.path[-1][1])
        macs, pins = len(self.ledger.macs), len(self.ledger.pins)
        try:
            planes = rule(self.ledger, call)
        except Exception as error:
            raise RuleError(f"the rule for {place} failed, which is a bug of hfp: {first_line(error)}") from error
        if len(self.ledger.pins) > pins:
            place = replace(place, line=source_line())
            self.ledger.pins[pins:] = [replace(pin, place=place) for pin in self.ledger.pins[pins:]]
        if counted and len(self.ledger.macs) == macs:  # a matrix product without a rule: a constant
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            self.ledger.macs.append(Term(flops // 2, (), place.module))
        if isinstance(planes, list):
            self._planes.update({id(part): (part, own) for part, own in zip(out, planes, strict=True)})
        else:
            self._planes.update({id(part): (part, planes) for part in labelled(out)})
        return place

    def _adopt(self, tensor: Tensor) -> None:
        """A tensor that no operator was seen to make (`nn.Parameter(x)` in a forward): what shares its memory is
        pinned."""
        known = self._by_storage.get(storage(tensor))
        if known is not None:
            for plane in self.planes_of(known):
                self.ledger.pin(
                    plane, "is used through a tensor that no operator made", Place("a new tensor", self.path[-1][0], source_line())
                )
        self._planes[id(tensor)] = (tensor, ())

    def _to_meta(self, value: Any) -> Any:
        """Constants that the model keeps as plain attributes are on their own device; here only shapes count."""
        if not isinstance(value, Tensor) or value.is_meta or value.dim() == 0:
            return value
        if id(value) not in self._on_meta:
            self._on_meta[id(value)] = (value, value.to("meta"))
        return self._on_meta[id(value)][1]

    def _pass_name_on(self, func: Any, args: Any, out: Any) -> None:
        """A transposed or cast parameter is still that parameter."""
        if args and isinstance(out, Tensor) and func.overloadpacket.__name__ in _SAME_TENSOR:
            name = self.name_of(args[0])
            if name is not None:
                self._names[id(out)] = (out, name)

    @contextmanager
    def module_paths(self, model: nn.Module) -> Iterator[None]:
        """Keep `self.path`, the names of the modules whose forward is running."""
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self.path.append((names.get(module, self.path[-1][0]), module))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.path.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _execute(func: Any, args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, but for batch norm on shapes: PyTorch does it in Python, in half of the time of a whole
    run."""
    if func.overloadpacket is torch.ops.aten.native_batch_norm and args[0].is_meta:
        saved = args[0].new_empty(args[0].shape[1] if args[5] else 0)
        return torch.empty_like(args[0]), saved, saved.clone()
    return func(*args, **kwargs)


def labelled(out: Any) -> list[Tensor]:
    """The outputs that carry labels: all parts of a split; else the first, and those of its shape (statistics are
    not)."""
    if isinstance(out, list):
        return out
    outs = [x for x in (out if isinstance(out, tuple) else [out]) if isinstance(x, Tensor)]
    return [x for x in outs if x.shape == outs[0].shape]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _value(argument: Any) -> Any:
    """What an argument contributes to `Step.scalars`: numbers, also those in tensors of one element off the meta
    device."""
    if isinstance(argument, Tensor):
        return argument.item() if not argument.is_meta and argument.numel() == 1 else None
    return argument if isinstance(argument, (bool, int, float, complex, str)) else None


def source_line() -> str:
    """The innermost line of the user's own code, else of a library above torch."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_OWN, _TORCH, "<")):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
