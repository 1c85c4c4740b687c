"""Sizes that modules keep as attributes, and numbers that remember which of them they are.

In a trial, a size that stands among the arguments of a function may be just what an attribute says. Then the number
itself tells, and nothing has to be tried to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

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
