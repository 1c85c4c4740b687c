"""Rules of your own: what an operator or module that hfp has not met does to channels, said by one decorated function.

Nothing is taken on trust. What a rule leaves unsaid stays whole; the trial cut (`hfp.trial`) runs the network with
channels gone and looks whether shapes and labels are those that the rule says; `wrap` and `compact` compare numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from hfp.labels import NO_IDS, Labels, Ledger
from hfp.rules import RULES
from hfp.rules.call import Call, Rule, base_name, stays_whole, tensors_in, values_in
from hfp.rules.mixers import count_macs, read_by
from hfp.rules.pointwise import pointwise

Axis = tuple[Tensor, int]
"""An axis of a tensor that the call was given, or that is a parameter or buffer of the module: `(x, 1)`."""


class OwnRuleError(ValueError):
    """A rule of the user's says something that cannot be."""


@dataclass(eq=False)
class OwnCall(Call):
    """One call `func(*args, **kwargs) -> out` of an operator or module of yours, and what its rule can say of it.

    A rule reads `args`, `kwargs`, `out` (their shapes: most runs are on the meta device) and `module` (the one whose
    rule it is, or in whose forward the operator runs). It returns the labels of the output: a tuple with one entry for
    each axis, the channels along it or None; a list of such tuples, if several tensors are returned.

    The rule is asked again when the network has been cut, so it must read sizes off tensors, never know them.
    """

    ledger: Ledger = field(kw_only=True)
    said: list[Tensor] = field(default_factory=list, kw_only=True)
    """The ids that the rule has spoken of."""

    def elementwise(self, *tensors: Tensor) -> Labels:
        """Every number is made of those at the same place of `tensors` (by default all arguments), broadcast as usual.

        Their channels are tied, index by index, and are those of the output.
        """
        operands = tensors or tuple(self.tensors())
        self.said.extend(ids for tensor in operands for ids in self.labels(tensor) if ids is not None)
        call = Call(
            self.func, operands, {}, self.out, self.labels, self.name_of, self.is_stored, self.place, self.module
        )
        return pointwise(self.ledger, call)

    def output(self, axes: Mapping[int, Tensor | None], like: Tensor | None = None) -> Labels:
        """The labels of an output: those in `axes` {axis: channels}; on other axes those of `like`, or none."""
        rank = self.out.dim() if like is None else like.dim()
        labels = list((self.labels(like) if like is not None else ()) or (None,) * rank)
        for axis, ids in axes.items():
            if not -rank <= axis < rank:
                raise OwnRuleError(f"{self._rule} speaks of axis {axis} of an output that has {rank}")
            labels[axis] = ids
        return tuple(labels)

    def tie(self, *axes: Axis) -> None:
        """Index by index, the channels along these axes are the same.

        Where one of them has no channels (the network's input, a constant), those of the others stay whole.
        """
        lengths = {tensor.shape[axis] for tensor, axis in map(self._checked, axes)}
        if len(lengths) > 1:
            shapes = ", ".join(f"axis {axis} of {tuple(tensor.shape)}" for tensor, axis in axes)
            raise OwnRuleError(f"{self._rule} ties axes of different lengths: {shapes}")
        every = [self._spoken(axis) for axis in axes]
        labelled = [ids for ids in every if ids is not None]
        for ids in labelled[1:]:
            self.ledger.tie(labelled[0], ids, self.place)
        if len(labelled) < len(every):
            for ids in labelled:
                self.ledger.pin(ids, "is combined with a tensor of fixed size (the network's input, say)", self.place)

    def read(self, source: Axis, weight: Axis) -> None:
        """The output has sums over the channels of `source`, each times an index of `weight`: `x @ weight.t()`.

        That is where a channel is gated: with a column of the weight at 0, it must not count.
        """
        self._checked(source), self._checked(weight)
        if source[0].shape[source[1]] != weight[0].shape[weight[1]]:
            raise OwnRuleError(
                f"{self._rule} reads axis {source[1]} of {tuple(source[0].shape)} by axis {weight[1]} of a weight "
                f"{tuple(weight[0].shape)}, which is not as long"
            )
        read_by(self.ledger, self, self._spoken(source), weight[0], self._spoken(weight))

    def make(self, weight: Axis) -> Tensor | None:
        """The channels that a weight makes, one for each index of this axis: give them to the output."""
        ids = self._spoken(weight)
        self.ledger.makes(ids)
        return ids

    def macs(self, *axes: Axis, times: int = 1) -> None:
        """Count multiply-adds: `times` the product of the live lengths of these axes."""
        count_macs(self.ledger, self, times, [self._checked(axis) for axis in axes])

    def attribute(self, name: str, axis: Axis) -> None:
        """The integer attribute `name` of the module ("width", or "inner.width") says how long this axis is."""
        owner, _, attribute = name.rpartition(".")
        try:
            value = attrgetter(name)(self.module)
        except AttributeError:
            value = None
        if not isinstance(value, int) or isinstance(value, bool):
            raise OwnRuleError(
                f"{self._rule} says that {type(self.module).__name__}.{name} is a length: it is no integer"
            )
        ids = self._spoken(axis)
        if ids is not None:
            path = f"{self.place.module}.{owner}" if owner and self.place.module else owner or self.place.module
            self.ledger.attributes[path, attribute] = ids

    def pin(self, axis: Axis, reason: str) -> None:
        """The channels along an axis stay whole, for this reason: "is sorted along the channels"."""
        ids = self._spoken(axis)
        self.ledger.pin(ids, reason, self.place)

    @property
    def _rule(self) -> str:
        return f"the rule for {self.place.operator}"

    def _checked(self, axis: Axis) -> Axis:
        tensor, dim = axis
        if not isinstance(tensor, Tensor) or not -tensor.dim() <= dim < tensor.dim():
            what = f"a tensor of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
            raise OwnRuleError(f"{self._rule} speaks of axis {dim} of {what}, which has no such axis")
        return axis

    def _spoken(self, axis: Axis) -> Tensor | None:
        ids = self.ids(*self._checked(axis))
        if ids is not None:
            self.said.append(ids)
        return ids


OwnRule = Callable[[OwnCall], "Labels | list[Labels]"]
Decorated = TypeVar("Decorated", bound=OwnRule)
OWN: dict[str | type[nn.Module], Rule] = {}
"""Operators, by the name that `operator_name` gives them, and classes of modules -> their rules."""


def rule(target: str | type[nn.Module]) -> Callable[[Decorated], Decorated]:
    """Say what an operator ("namespace::name") or a module (its class) of your own does to channels.

    >>> def scale(x, factor):
    ...     return x * factor[:, None, None]
    >>> schema = "(Tensor x, Tensor factor) -> Tensor"
    >>> operator = torch.library.custom_op("example::scale", scale, mutates_args=(), schema=schema)
    >>> _ = operator.register_fake(lambda x, factor: torch.empty_like(x))

    >>> @rule("example::scale")
    ... def scale_rule(call):
    ...     x, factor = call.args
    ...     call.tie((x, 1), (factor, 0))
    ...     return call.labels(x)

    >>> class Scaled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.factor = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Parameter(torch.ones(8))
    ...     def forward(self, x):
    ...         return self.b(torch.ops.example.scale(self.a(x), self.factor))
    >>> import hfp
    >>> [group.members for group in hfp.trace(Scaled(), torch.zeros(1, 3, 8, 8)).groups]
    [(('factor', 0), ('a.weight', 0), ('a.bias', 0), ('b.weight', 1))]

    The function is given an `OwnCall` and returns the labels of the output. Channels of which it says nothing stay
    whole. Multiply-adds are those that it states. Numbers that are passed along must not depend on channels.

    An operator should have a fake (`torch.library.register_fake`), for runs on shapes alone. Most modules need no rule,
    since their operators are followed one by one; the rule of a module stands for the whole call, and what runs inside
    may be anything. What cannot run on shapes is run on the example inputs themselves.

    ValueError for a name without a namespace, for what has a rule already, and when the rule says what cannot be.
    """
    key = _key(target)

    def register(function: Decorated) -> Decorated:
        if key in OWN:
            raise ValueError(f"hfp.rule({_shown(target)}): it has a rule already")
        if not callable(function):
            raise ValueError(
                f"hfp.rule({_shown(target)}) decorates a function of the call, not a {type(function).__name__}"
            )
        OWN[key] = _watched(function)
        return function

    return register


def _key(target: Any) -> str | type[nn.Module]:
    if isinstance(target, type) and issubclass(target, nn.Module) and target is not nn.Module:
        return target
    if not isinstance(target, str):
        hint = f"; pass the class: hfp.rule({type(target).__name__})" if isinstance(target, nn.Module) else ""
        raise ValueError(
            f"hfp.rule({_shown(target)}): expected the name of an operator, such as 'mylib::scale', or a class of "
            f"modules{hint}"
        )
    if not re.fullmatch(r"\w+::\w+", target):
        parts = re.split(r"::|\.", target)
        right = "::".join(parts[:2]) if len(parts) > 1 and all(parts[:2]) else "mylib::scale"
        raise ValueError(
            f"hfp.rule({target!r}): an operator is named with its namespace and without an overload, such as {right!r}"
        )
    name = base_name(target.removeprefix("aten::"))
    if name in RULES:
        raise ValueError(f"hfp.rule({target!r}): hfp has a rule for this operator")
    return name


def _shown(target: Any) -> str:
    return target.__name__ if isinstance(target, type) else repr(target)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for the class of a module, or for the one that it has its forward from."""
    for kind in type(module).__mro__:
        if kind in OWN and kind.forward is type(module).forward:
            return OWN[kind]
    return None


class Whole:
    """The forward of a module that has a rule, as one function, so that nothing of what runs inside is seen."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward = module.forward
        self.__name__ = type(module).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return handle_torch_function(self, (), *args, **kwargs)


def _watched(function: OwnRule) -> Rule:
    """The user's function as a rule like any other, which looks at what it says."""

    def own(ledger: Ledger, call: Call) -> list[Labels]:
        if not isinstance(call.func, nn.Module) and call.func._schema.is_mutable:  # type: ignore[attr-defined]
            stays_whole(ledger, call, "meets an operator that writes to its arguments, which a rule cannot describe")
            return [()] * len(tensors_in(call.out))
        rest = call.out, call.labels, call.name_of, call.is_stored, call.place, call.module
        asked = OwnCall(call.func, call.args, call.kwargs, *rest, ledger=ledger)
        try:
            labels = function(asked)
        except OwnRuleError:
            raise
        except Exception as error:
            raise OwnRuleError(f"the rule for {call.place} failed: {type(error).__name__}: {error}") from error
        every = _fitting(asked, labels)
        _pin_unspoken(ledger, asked, every)
        return every

    return own


def _fitting(call: OwnCall, labels: Any) -> list[Labels]:
    """The labels of each output, as the rule says; ValueError if they do not fit its shape."""
    rule, outs = f"the rule for {call.place.operator}", tensors_in(call.out)
    if any(not isinstance(leaf, (Tensor, bool, int, float, str, type(None))) for leaf in values_in(call.out)):
        raise OwnRuleError(f"{call.place.operator} has a rule, so it must return tensors in tuples, lists or dicts")
    every = labels if isinstance(labels, list) else [labels]
    if len(every) != len(outs):
        raise OwnRuleError(
            f"{rule} gives labels to {len(every)} of {len(outs)} outputs: it must return a list with a tuple for each"
        )
    for out, own in zip(outs, every, strict=True):
        if not isinstance(own, tuple) or not all(ids is None or isinstance(ids, Tensor) for ids in own):
            raise OwnRuleError(
                f"{rule} returns {own!r}: expected labels, a tuple with the channels, or None, of each axis, such as "
                "call.elementwise() or call.output({1: channels})"
            )
        found = [None if ids is None else len(ids) for ids in own]
        if own and (len(own) != out.dim() or any(n not in (None, m) for n, m in zip(found, out.shape, strict=True))):
            given = ", ".join(map(str, found))
            raise OwnRuleError(f"{rule} gives labels ({given}) to an output of shape {tuple(out.shape)}")
    return [tuple(None if ids is None or len(ids) == 1 else ids for ids in own) for own in every]


def _pin_unspoken(ledger: Ledger, call: OwnCall, every: list[Labels]) -> None:
    """What is given to an operator, and neither in its output nor spoken of by its rule, stays whole."""
    said = torch.cat([NO_IDS, *call.said, *(i for own in every for i in own if i is not None)])
    inside = [*call.func.parameters(), *call.func.buffers()] if isinstance(call.func, nn.Module) else []
    for tensor in (*call.tensors(), *inside):
        for ids in call.labels(tensor):
            if ids is not None:
                ledger.pin(ids[~torch.isin(ids, said)], "is left unsaid by the rule for its operator", call.place)
