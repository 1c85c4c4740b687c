"""The watcher: follows every operator below a model's code and hands its labels to the rule of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from hfp.labels import ANY, Labels, Ledger, Place, Term
from hfp.model.inputs import shape_of
from hfp.model.source import source_line
from hfp.rules import RULES, Call, custom
from hfp.rules.call import base_name, stays_whole, tensors_in, values_in
from hfp.rules.mixers import MIXERS
from hfp.rules.movers import MOVERS, MOVERS_IN_PLACE
from hfp.rules.norms import NORMS
from hfp.rules.own import OWN, OwnRuleError, rule_of
from hfp.rules.pointwise import FACTORIES, POINTWISE, UNIFORM
from hfp.rules.reducers import REDUCERS
from hfp.tracing.memory import Memory
from hfp.tracing.numbers import Numbers
from hfp.tracing.position import Position
from hfp.tracing.shapes import outputs
from hfp.tracing.sizes import SIZE_FREE
from hfp.words import first_line

_PLACES = set("roll flip rot90 glu gather index_select pixel_shuffle pixel_unshuffle".split())
SIZELESS = (set(POINTWISE) - set(FACTORIES)) | set(REDUCERS) | set(NORMS) | _PLACES
"""Operators none of whose arguments is a size: the numbers that they are given must not depend on the channels."""
_LABELLING = {"expand", "repeat", "cat", "stack", *UNIFORM}  # their output has labels, even if no input does
_MOVED_IN_PLACE = set(MOVERS) - {"t", "transpose", "swapaxes", "as_strided"}  # all but those that leave the rank
_SAME_TENSOR = set("t transpose permute alias detach clone contiguous _to_copy view expand unsqueeze squeeze".split())


UNKNOWN = ...
"""Among the numbers that an operator is given: what a tensor holds."""


class RuleError(RuntimeError):
    """A rule met something that its author did not think of: never the user's fault."""


class Step(NamedTuple):
    """One operator of a run: what a cut network has to do likewise."""

    operator: str
    scalars: tuple[Any, ...]
    """Arguments that must not depend on the number of channels."""
    shapes: tuple[torch.Size, ...]
    labels: tuple[Labels, ...]
    """Of each output."""
    touched: tuple[Tensor, ...]
    """The labels of all arguments and outputs."""
    place: Place
    own: bool
    """Whether it is an operator or module with a rule of the user's."""


class Watcher(TorchDispatchMode):
    """Follows every operator that runs inside it and hands its labels to the rule of its name."""

    supports_higher_order_operators = True  # else PyTorch refuses to run torch.cond, flex_attention and their like

    def __init__(
        self,
        ledger: Ledger,
        shadows: dict[str, Tensor],
        position: Position,
        on_step: Callable[[Step], None],
        real: bool = False,
    ) -> None:
        super().__init__()
        self.ledger = ledger
        self.position = position
        self.on_step = on_step
        self.real = real  # whether tensors have values, which then differ from run to run
        self.sizes = 0  # how often channels have met an operator that is given a size
        self.read: Tensor | None = None
        """The tensor whose size was read last."""
        self.follows: Mapping[int, bool] = {}
        """Of the slice that is being taken, see `Call.follows`."""
        self._paused = False
        self._widths = {len(ids) for axes in ledger.axes.values() for ids in axes}
        # A plain table, since many operators ask for it. The tensor stands beside its name so that no other can take
        # its id while the run lasts.
        self._names = {id(tensor): (tensor, name) for name, tensor in shadows.items()}
        self._stored = {x.untyped_storage()._cdata: name for name, x in shadows.items() if x.layout == torch.strided}
        self._memory = Memory()
        self._numbers = Numbers()
        for name, tensor in shadows.items():
            self._memory.label(tensor, ledger.labels(name))
            self._memory.meet(tensor, stored=True)
        self._on_meta = WeakIdKeyDictionary()
        self._moved = WeakIdKeyDictionary()
        """Tensors that the model's code has made elsewhere, and what it has on the meta device was written to."""
        self._largest = WeakIdKeyDictionary()
        """Indices of largest and smallest numbers, and the labels of the axis that they are indices of."""

    def labels(self, tensor: Any) -> Labels:
        """The labels of a tensor, `()` if it has none on any axis."""
        if isinstance(tensor, Tensor) and tensor not in self._memory:
            self._adopt(tensor)
        return self._memory.labels(tensor)

    @property
    def is_paused(self) -> bool:
        return self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operators in here are not the model's."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def label(self, tensor: Tensor, labels: Labels) -> None:
        """Say what the labels of a tensor are that no operator made."""
        self._memory.label(tensor, labels if _some(labels) else ())

    def pin(self, tensor: Tensor | None, reason: str, operator: str) -> None:
        """The channels of a tensor stay whole for what is done to it here, which is no operator."""
        self._pin(self.labels(tensor), reason, operator)

    def _pin(self, labels: Labels, reason: str, operator: str) -> None:
        for ids in _some(labels):
            self.ledger.pin(ids, reason, Place(operator, self.position.path, source_line()))

    def tell_size(self, tensor: Any, axes: int | slice) -> None:
        """The model's code has read the size of a tensor, along some of its axes."""
        labels = self.labels(tensor)
        read = labels[axes] if isinstance(axes, slice) else labels and (labels[axes],)
        if any(ids is not None for ids in read):
            self.sizes += 1
            self.read = tensor

    def tell_number(self, tensor: Any, arguments: Any) -> None:
        """A tensor was made of the number that is the first of these arguments."""
        given = next((value for value in values_in(arguments) if not isinstance(value, Tensor)), None)
        if isinstance(tensor, Tensor) and tensor.numel() == 1 and isinstance(given, Number):
            with self.paused():
                self._numbers.note(tensor, given)

    def tell_used(self, tensors: Iterable[Tensor], operator: str) -> None:
        """Where an index among these is one of channels, it will be another once some are gone."""
        for tensor in tensors if self._largest else ():
            self._pin((self._largest.get(tensor),), "is asked for the index of its largest or smallest", operator)

    def name_of(self, tensor: Any) -> str | None:
        return self._names.get(id(tensor), (None, None))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if isinstance(func, HigherOrderOperator):
            return self._stand_aside(func, args, kwargs)
        out = outputs(func, args, kwargs)
        name = operator_name(func)
        if writes := arguments_written(func):
            self._note_written(writes, args, kwargs)
        self._pass_name_on(name, args, out)
        self._numbers.reckon(func, name, args, kwargs, out)
        self._follow(func, args, kwargs, out, name, func.overloadpacket in flop_registry)
        return out

    def _note_written(self, writes: Sequence[tuple[int, str]], args: Any, kwargs: Any) -> None:
        """Also through a view, or through what `.data` gives."""
        written = [args[n] if n < len(args) else kwargs.get(name) for n, name in writes]
        storages = {x.untyped_storage()._cdata for x in tensors_in(written) if x.layout == torch.strided}
        self.ledger.written |= {self._stored[storage] for storage in storages & self._stored.keys()}

    def note_replaced(self, shadows: dict[str, Tensor]) -> None:
        """Those that the forward has given other `data`."""
        dense = ((name, x) for name, x in shadows.items() if x.layout == torch.strided)
        self.ledger.written |= {name for name, x in dense if self._stored.get(x.untyped_storage()._cdata) != name}

    def _stand_aside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator that is given functions: what these do to channels is not followed, so all of them stay whole."""
        for tensor in tensors_in((args, kwargs)):
            self._pin(self.labels(tensor), f"is given to {func.__name__}, which takes functions", func.__name__)
        with self.paused(), self:
            return func(*args, **kwargs)

    def follow_function(self, func: Callable[..., Any], args: Any) -> Any:
        """A function of several operators that has a rule of its own is called, and is one step."""
        with self.paused(), _pop_mode_temporarily():
            out = outputs(func, args, {})
            self._follow(func, args, {}, out, func.__name__.strip("_"), counted=True)
        return out

    def follow_module(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A call of a module that has a rule is one step."""
        with self.paused():
            self._follow(module, args, kwargs, out, type(module).__name__, counted=False)

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any, name: str, counted: bool) -> None:
        values = values_in((args, kwargs) if kwargs else args)
        tensors = [value for value in values if isinstance(value, Tensor)]
        before: tuple[Tensor, ...] = ()
        for tensor in tensors:
            if tensor not in self._memory:
                self._adopt(tensor)
            before += _some(self._memory.labels(tensor))
        self.tell_used(tensors, name)
        place = Place(name, self.position.path, "")
        own = isinstance(func, nn.Module) or base_name(name) in OWN
        if counted or before or own or place.operator in _LABELLING:
            place = self._apply(func, args, kwargs, out, place, counted)
        stored = bool(tensors) and all(map(self._memory.is_stored, tensors))
        for tensor in tensors_in(out):
            self._memory.meet(tensor, stored)
        outs = tensors_in(out) if own else carriers(out)
        after = tuple(self.labels(tensor) for tensor in outs)
        touched = sum(map(_some, after), before)
        if own or (touched and name.rstrip("_") not in SIZE_FREE and (before or self._as_wide(outs))):
            self.sizes += 1
        scalars = self._scalars(name, values, kwargs, own)
        self.on_step(Step(name, scalars, tuple(t.shape for t in outs), after, touched, place, own))

    def _as_wide(self, made: list[Tensor]) -> bool:
        """Whether any length of these tensors, which are made from numbers, could be one of channels."""
        return any(length > 1 and length in self._widths for x in made for length in x.shape)

    def _apply(self, func: Any, args: Any, kwargs: Any, out: Any, place: Place, counted: bool) -> Place:
        """Let the rule of the operator speak; its place, with the source line if it pinned something."""
        name = base_name(place.operator)
        own = rule_of(func) if isinstance(func, nn.Module) else OWN.get(name)
        rule = own or RULES.get(name, custom)
        moved = name != place.operator and name in _MOVED_IN_PLACE
        if moved:
            rule = MOVERS_IN_PLACE.get(place.operator, stays_whole)
        module = func if isinstance(func, nn.Module) else self.position.module
        call = Call(
            func, args, kwargs, out, self.labels, self.name_of, self._memory.is_stored, place, module, self.follows
        )
        macs, pins = len(self.ledger.macs), len(self.ledger.pins)
        try:
            labels = rule(self.ledger, call)
        except OwnRuleError:
            raise
        except Exception as error:
            raise RuleError(f"the rule for {place} failed, which is a bug of hfp: {first_line(error)}") from error
        if len(self.ledger.pins) > pins:
            place = place._replace(line=source_line())
            self.ledger.pins[pins:] = [replace(pin, place=place) for pin in self.ledger.pins[pins:]]
        if counted and len(self.ledger.macs) == macs:  # a matrix product without a rule: a constant
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            self.ledger.macs.append(Term(flops // 2, (), place.module))
        if name in ("max", "min") and isinstance(out, tuple) and (read := self.labels(args[0])):
            ids = read[call.argument(1, "dim")]
            self._largest[out[1]] = ids
        parts = tensors_in(out) if own or isinstance(labels, list) else carriers(out)
        every = labels if isinstance(labels, list) else [labels] * len(parts)
        for part, axes in zip(parts, every, strict=True):
            assert not axes or len(axes) == part.dim(), f"{place} gives {len(axes)} labels to {part.dim()} axes"
            self.label(part, axes)
            if name != place.operator and not moved and _some(axes):
                self._memory.write_through(part, axes)
        return place

    def _adopt(self, tensor: Tensor) -> None:
        """What is on the memory of one that no operator made, and is not the whole of it, is pinned."""
        self._pin(self._memory.adopt(tensor), "is used through a tensor that no operator made", "a new tensor")

    def to_meta(self, arguments: Any, numbers: bool = False, writes: bool = False) -> Any:
        """Arguments of one function on one device: the meta device, if one of them is there.

        `numbers`: also tensors without an axis, which most functions take from anywhere. `writes`: the function writes
        to the first one, which is there from then on.
        """
        tensors = tensors_in(arguments)
        moved = bool(self._moved) and any(x in self._moved for x in tensors)
        if not moved and len({x.is_meta for x in tensors}) < 2:
            return arguments
        if writes and not tensors[0].is_meta:
            self._moved[tensors[0]] = True
        with self.paused():
            return tree_map(lambda value: self._to_meta(value, numbers), arguments)

    def _to_meta(self, value: Any, numbers: bool) -> Any:
        """Constants that the model keeps as plain attributes are on their own device; here only shapes count."""
        if not isinstance(value, Tensor) or value.is_meta or (value.dim() == 0 and not numbers):
            return value
        if value not in self._on_meta:
            twin = self._on_meta[value] = shape_of(value)
            if value.numel() == 1:
                self._numbers.note(twin, value)
            self.label(twin, self.labels(value))
            self._memory.meet(twin)
        return self._on_meta[value]

    def _scalars(self, name: str, values: list[Any], kwargs: Any, own: bool) -> tuple[Any, ...]:
        """`Step.scalars`. What is reckoned from numbers alone matters only where it meets other tensors."""
        base = base_name(name)
        tensors = [value for value in values if isinstance(value, Tensor)]
        if base in MIXERS and not own:
            values = [*tensors, kwargs.get("alpha"), kwargs.get("beta")]
        elif not own and base not in SIZELESS:
            return ()
        reckoned = tensors and not self.real and all(self._numbers.of(x) is not None for x in tensors)
        scalars = () if reckoned else tuple(map(self._value, values))
        return (*scalars, *self._alike(tensors[0])) if base == "sum" else scalars

    def _alike(self, tensor: Tensor) -> Iterator[Any]:
        """Of each axis how many numbers are on it, if all are alike: their sum is that many times one of them."""
        for ids in self.labels(tensor) or (None,) * tensor.dim():
            yield UNKNOWN if ids is None or not bool((ids == ANY).all()) else len(ids)

    def _value(self, argument: Any) -> Any:
        """What an argument adds to `Step.scalars`: numbers, also in tensors of one element."""
        if isinstance(argument, Tensor):
            held = None if self.real else self._numbers.of(argument)
            return UNKNOWN if held is None else held.item()
        return argument if isinstance(argument, (bool, int, float, complex, str)) else None

    def _pass_name_on(self, operator: str, args: Any, out: Any) -> None:
        """A transposed or cast parameter is still that parameter."""
        if args and isinstance(out, Tensor) and operator in _SAME_TENSOR:
            name = self.name_of(args[0])
            if name is not None:
                self._names[id(out)] = (out, name)


def _some(labels: Labels) -> tuple[Tensor, ...]:
    """Those of the axes that have any."""
    return tuple([ids for ids in labels if ids is not None]) if labels else ()


def carriers(out: Any) -> list[Tensor]:
    """The outputs that carry labels: all parts of a split; else the first, and those of its shape."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, list):
        return out
    outs = [x for x in (out if isinstance(out, tuple) else [out]) if isinstance(x, Tensor)]
    return [x for x in outs if x.shape == outs[0].shape]


@cache
def arguments_written(func: Any) -> tuple[tuple[int, str], ...]:
    """(place, name) of the arguments that an operator writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple((n, a.name) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def operator_name(func: Any) -> str:
    """`relu` for those of PyTorch itself, `namespace::name` for others, which may mean something else by it."""
    name: str = func.overloadpacket.__name__
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"
