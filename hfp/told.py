"""Sizes that modules keep as attributes, and numbers that remember which of them they are, or are reckoned from.

A size that stands among the arguments of a function may be just what an attribute says. Then the number itself tells,
and nothing has to be tried to find out. Of `self.dim // self.heads` it tells which attributes may have to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfp.labels import Labels
from hfp.rules.call import values_in
from hfp.sizes import WIDTHS

KNOWN = WIDTHS | {"kdim", "vdim"}


Attribute = tuple[str, str]
"""Module, attribute: as in `ChannelTable.attributes`."""


class Reckoned(int):
    """A whole number that is made of attributes."""

    of: tuple[Attribute, ...]

    def __new__(cls, value: int, of: Sequence[Attribute] = ()) -> Reckoned:
        number = super().__new__(cls, value)
        number.of = tuple(dict.fromkeys(of))
        return number


class Told(Reckoned):
    """An attribute's value."""

    @property
    def attribute(self) -> Attribute:
        return self.of[0]


def _remembering(name: str) -> Callable[[Reckoned, Any], Any]:
    """The operator of int; of what it gives is known what it is made of."""
    own = getattr(int, name)

    def reckon(number: Reckoned, other: Any) -> Any:
        value = own(number, other)
        return value if value is NotImplemented else Reckoned(value, (*number.of, *getattr(other, "of", ())))

    return reckon


for _name in "add sub mul floordiv mod".split():
    setattr(Reckoned, f"__{_name}__", _remembering(f"__{_name}__"))
    setattr(Reckoned, f"__r{_name}__", _remembering(f"__r{_name}__"))


def sizes(module: nn.Module) -> Iterator[tuple[str, int]]:
    """(attribute, value) of what may be a size; `name.1` is an entry of a tuple or list, see `hfp.surgery.set_size`."""
    follows = type(module).__module__.startswith("torch.nn.") and any(
        p is not None for p in module._parameters.values()
    )
    for name, value in vars(module).items():
        if name.startswith("_") or (follows and name in KNOWN):
            continue  # `hfp.surgery` sees to what layers of PyTorch say of the parameters that they have
        if type(value) is int:
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from ((f"{name}.{number}", entry) for number, entry in enumerate(value) if type(entry) is int)


def mark(names: Mapping[nn.Module, str]) -> None:
    """Have the attributes of modules, given with their names, remember what they are."""
    for module, path in names.items():
        own = vars(module)
        for attribute, value in list(sizes(module)):
            name, _, index = attribute.partition(".")
            told = Told(value, [(path, attribute)])
            if not index:
                own[name] = told
            elif type(own[name]) in (tuple, list, torch.Size):
                entries = list(own[name])
                entries[int(index)] = told
                own[name] = type(own[name])(entries)


def asked(function: str, args: Any) -> list[int]:
    """The lengths that a call of `view` or the like asks for, one for each axis of its output."""
    if function == "unflatten" and len(args) > 2:
        axis = args[1] % args[0].dim()
        return [*args[0].shape[:axis], *args[2], *args[0].shape[axis + 1 :]]
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


def attributes_asked(function: str, args: Any, labels: Labels) -> Iterator[tuple[Tensor, Attribute]]:
    """(ids along an axis, attribute that is asked to be its length) of a call whose output has these labels."""
    lengths = asked(function, args) if labels and function in ("view", "reshape", "unflatten") else ()
    if len(lengths) == len(labels):
        for ids, length in zip(labels, lengths, strict=True):
            if ids is not None and isinstance(length, Told):
                yield ids, length.attribute
