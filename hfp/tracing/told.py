"""Sizes that modules keep as attributes, and numbers that remember which of them they are, or are reckoned from.

A size that stands among the arguments of a function may be just what an attribute says. Then the number itself tells,
and nothing has to be tried to find out. Of `self.dim // self.heads` it tells which attributes may have to change.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hfp.labels import Labels
from hfp.rules.call import values_in
from hfp.tracing.attributes import are_pairs, contents, entries_of, is_config, numbers_in, with_entries
from hfp.tracing.sizes import WIDTHS

KNOWN = WIDTHS | {"kdim", "vdim"}
SLICING = {"__getitem__", "narrow", "tensor_split"}
ASKING = {"view", "reshape", "unflatten", "split", "split_with_sizes"} | SLICING
"""The functions among whose arguments are lengths."""


Attribute = tuple[str, str]
"""Module, attribute: as in `ChannelTable.attributes`."""


@dataclass
class Span:
    """Until when numbers remember what they are made of: a cache in the model's code may outlive the trace."""

    over: bool = False


class Reckoned(int):
    """A whole number that is made of attributes."""

    _of: tuple[Attribute, ...]
    span: Span

    def __new__(cls, value: int, of: Sequence[Attribute], span: Span) -> Reckoned:
        number = super().__new__(cls, value)
        number._of, number.span = tuple(dict.fromkeys(of)), span
        return number

    @property
    def of(self) -> tuple[Attribute, ...]:
        return () if self.span.over else self._of

    def __neg__(self) -> Reckoned:
        return Reckoned(-int(self), self._of, self.span)

    def __copy__(self) -> Reckoned:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Reckoned:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Told(Reckoned):
    """An attribute's value."""

    def __neg__(self) -> Minus:
        return Minus(-int(self), self._of, self.span)


class Minus(Reckoned):
    """Minus an attribute's value: a bound that is counted from the end."""

    def __neg__(self) -> Told:
        return Told(-int(self), self._of, self.span)


class Width(Reckoned):
    """What a layer of PyTorch says of a parameter that it has: it is made of nothing that would have to be changed."""


def _remembering(name: str) -> Callable[[Reckoned, Any], Any]:
    """The operator of int; of what it gives is known what it is made of."""
    own = getattr(int, name)

    def reckon(number: Reckoned, other: Any) -> Any:
        value = own(number, other)
        if value is NotImplemented or not isinstance(other, Reckoned):
            return value if value is NotImplemented else Reckoned(value, number.of, number.span)
        return Reckoned(value, (*number.of, *other.of), other.span if number.span.over else number.span)

    return reckon


for _name in "add sub mul floordiv mod".split():
    setattr(Reckoned, f"__{_name}__", _remembering(f"__{_name}__"))
    setattr(Reckoned, f"__r{_name}__", _remembering(f"__r{_name}__"))


def sizes(module: nn.Module, *, private: bool = False) -> Iterator[tuple[str, int]]:
    """(attribute, value) of what may be a size; `name.1` and `config.heads` are entries (`hfp.tracing.attributes`).

    `private`: those of configs with private names as well, which are sizes only where they are seen to be asked for.
    """
    follows = _follows(module)
    for name, value in vars(module).items():
        shown = not name.startswith("_") or are_pairs(value) or (private and is_config(value))
        if not shown or (follows and name in KNOWN):
            continue  # `hfp.cutting.surgery` sees to what layers of PyTorch say of the parameters that they have
        if type(value) is int:
            yield name, value
        else:
            yield from ((f"{name}.{key}", entry) for key, entry in numbers_in(value))


def _follows(module: nn.Module) -> bool:
    """Whether it is a layer of PyTorch with parameters of its own."""
    return type(module).__module__.startswith("torch.nn.") and any(p is not None for p in module._parameters.values())


@dataclass(frozen=True)
class Marked:
    """What a module is given in place of a holder of sizes: a copy of it, whose entries remember what they are."""

    holder: Any
    copy: Any
    contents: dict[Any, Any]

    def written(self) -> bool:
        """Whether something else is in it by now, which those that share the holder do not see."""
        now = contents(self.copy)
        return now.keys() != self.contents.keys() or any(now[key] is not self.contents[key] for key in now)


@contextmanager
def unremembered() -> Iterator[None]:
    """einops caches by value, so that a cached recipe would carry the origin of an equal length from elsewhere."""
    library: Any = sys.modules.get("einops.einops")
    kept = getattr(library, "_reconstruct_from_shape", None)
    direct = getattr(library, "_reconstruct_from_shape_uncached", None)
    if kept is None or direct is None:  # of another version, or not used
        yield
        return
    library._reconstruct_from_shape = direct
    try:
        yield
    finally:
        library._reconstruct_from_shape = kept


def mark(names: Mapping[nn.Module, str], span: Span, written: Container[int] = ()) -> list[Marked]:
    """Have the attributes of modules, given with their names, remember what they are.

    Holders that forwards write to, `written` by their id, stay as they are.
    """
    marked: list[Marked] = []
    for module, path in names.items():
        own, inner = vars(module), defaultdict[str, dict[str, Told]](dict)
        if _follows(module):
            own |= {name: Width(own[name], (), span) for name in KNOWN & own.keys() if type(own[name]) is int}
        for attribute, value in list(sizes(module, private=True)):
            name, _, key = attribute.partition(".")
            told = Told(value, [(path, attribute)], span)
            if not key:
                own[name] = told
            elif id(own[name]) not in written and id(entries_of(own[name])[key.partition(".")[0]]) not in written:
                inner[name][key] = told
        for name, entries in inner.items():
            before, own[name] = own[name], with_entries(own[name], entries)
            marked.append(Marked(before, own[name], contents(own[name])))
            old, new = entries_of(before), entries_of(own[name])
            lists = dict.fromkeys(key.partition(".")[0] for key in entries if "." in key)
            marked += [Marked(old[key], new[key], contents(new[key])) for key in lists]
    return marked


def asked(function: str, args: Any) -> list[int]:
    """The lengths that a call of `view` or the like asks for, one for each axis of its output."""
    if function == "unflatten" and len(args) > 2:
        axis = args[1] % args[0].dim()
        return [*args[0].shape[:axis], *args[2], *args[0].shape[axis + 1 :]]
    if function in ("view_as", "reshape_as", "expand_as"):
        return list(args[1].shape)
    return [n for n in values_in(args[1:]) if isinstance(n, int)]


def parts_asked(function: str, args: Any, kwargs: dict[str, Any], count: int) -> tuple[list[int], int] | None:
    """The lengths of the first parts that a call of `split` asks for, and the axis that it splits into `count` parts.

    >>> parts_asked("split", (None, [3, 5], 1), {}, 2), parts_asked("split", (None, 4), {"dim": 1}, 2)
    (([3, 5], 1), ([4], 1))
    """
    if function not in ("split", "split_with_sizes") or len(args) < 2:
        return None
    sizes, axis = args[1], args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if isinstance(sizes, int):  # the last part may be shorter
        return ([sizes] * (count - 1), axis) if count > 1 else None
    return (list(sizes), axis) if isinstance(sizes, (list, tuple)) else None


def attributes_asked(
    function: str, args: Any, kwargs: dict[str, Any], given: Labels, made: Sequence[Labels]
) -> Iterator[tuple[Tensor, Attribute]]:
    """(ids, attribute that is asked to be their number) of a call, by the labels of its input and of its outputs."""
    counted: list[tuple[Tensor | None, Any]] = []
    if function in ("view", "reshape", "unflatten") and len(made) == 1:
        lengths = asked(function, args)
        counted = [*zip(made[0], lengths, strict=True)] if len(lengths) == len(made[0]) else []
    elif function in SLICING:
        bounds = [(ids, bound) for ids, bound in _bounds(function, args, kwargs, given) if ids is not None]
        counted = [(ids[:bound], bound) for ids, bound in bounds if isinstance(bound, Told)]
        counted += [(ids[bound:], -bound) for ids, bound in bounds if isinstance(bound, Minus)]
        if function == "narrow" and len(args) > 3 and made[0]:
            counted.append((made[0][args[1]], args[3]))
    elif (parts := parts_asked(function, args, kwargs, len(made))) is not None:
        counted = [(labels[parts[1]], size) for labels, size in zip(made, parts[0], strict=False) if labels]
    for ids, number in counted:
        if ids is not None and isinstance(number, Told) and number.of and number == len(ids):
            yield ids, number.of[0]


def bounds_reckoned(function: str, args: Any, kwargs: dict[str, Any], given: Labels) -> dict[int, bool]:
    """The bounds in a call that cuts slices, of those that are made of attributes -> whether they are what one says."""
    found = _bounds(function, args, kwargs, given) if function in SLICING else ()
    return {
        int(bound): isinstance(bound, (Told, Minus, Width))
        for _, bound in found
        if isinstance(bound, Reckoned) and not bound.span.over
    }


def _bounds(function: str, args: Any, kwargs: dict[str, Any], given: Labels) -> Iterator[tuple[Tensor | None, Any]]:
    """(labels of an axis, where a slice of it begins or ends)."""
    if not given:
        return
    if function == "__getitem__":
        for ids, index in _by_axis(given, args[1]):
            if isinstance(index, slice):
                yield ids, index.start
                yield ids, index.stop
    elif function == "narrow" and len(args) > 3 and not isinstance(args[2], Tensor):
        yield given[args[1]], args[2]
        yield given[args[1]], args[2] + args[3]
    elif function == "tensor_split" and len(args) > 1 and isinstance(args[1], (list, tuple)):
        axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        yield from ((given[axis], bound) for bound in args[1])


def _by_axis(labels: Labels, index: Any) -> Iterator[tuple[Tensor | None, Any]]:
    """(labels of an axis, how it is indexed); of those before an ellipsis, and of those behind it."""
    indices = [entry for entry in (index if isinstance(index, tuple) else (index,)) if entry is not None]
    ellipsis = next((number for number, entry in enumerate(indices) if entry is ...), len(indices))
    before, behind = indices[:ellipsis], indices[ellipsis + 1 :]
    yield from zip(labels, before, strict=False)
    yield from zip(labels[len(labels) - len(behind) :], behind, strict=False)
