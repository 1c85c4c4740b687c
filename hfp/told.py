"""Sizes that modules keep as attributes, and numbers that remember which of them they are.

A size that stands among the arguments of a function may be just what an attribute says. Then the number itself tells,
and nothing has to be tried to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfp.labels import Labels
from hfp.rules.call import values_in
from hfp.sizes import WIDTHS

KNOWN = WIDTHS | {"kdim", "vdim"}


class Told(int):
    """An attribute's value, until something is reckoned with it."""

    attribute: tuple[str, str]
    """Module, attribute: as in `ChannelTable.attributes`."""

    @classmethod
    def by(cls, module: str, attribute: str, value: int) -> Told:
        told = cls(value)
        told.attribute = module, attribute
        return told


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
            told = Told.by(path, attribute, value)
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


def attributes_asked(function: str, args: Any, labels: Labels) -> Iterator[tuple[Tensor, tuple[str, str]]]:
    """(ids along an axis, attribute that is asked to be its length) of a call whose output has these labels."""
    lengths = asked(function, args) if labels and function in ("view", "reshape", "unflatten") else ()
    if len(lengths) == len(labels):
        for ids, length in zip(labels, lengths, strict=True):
            if ids is not None and isinstance(length, Told):
                yield ids, length.attribute
