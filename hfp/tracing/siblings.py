"""Modules that nothing has reached: experts of a mixture that none of the example inputs was sent to.

Where values decide what runs, a part of the model may not have run, and nothing is known of its channels. It is taken
to be like a sibling, a module of the same class and shapes beside it that has run: to read and to make the same
channels, and to have as many of its own. So the table does not depend on which of them the example inputs have reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from hfp.labels import NO_IDS, Ledger, Place
from hfp.model.names import Names
from hfp.tracing.operands import Operand
from hfp.tracing.watcher import Step

Own = Mapping[str, str]
"""Place in a module -> name of a tensor."""


def follow_siblings(
    names: Names, ledger: Ledger, steps: Iterable[Step], operands: Sequence[Operand]
) -> Iterator[Operand]:
    """Tie modules that have not run to their siblings. Those that have none, and parameters not used, are in a note.

    The operands of their functions, where `operands` are those of what has run.
    """
    ran = set(reached(ledger, steps))
    shared = _Shared(ledger, operands)
    named = {id(tensor): name for name, tensor in names.tensors.items()}
    alone = []
    for parent, path in names.modules.items():
        prefix = f"{path}." if path else ""
        children = {prefix + key: child for key, child in parent.named_children()}
        own = {path: _tensors(child, named) for path, child in children.items()}
        kinds = {path: (type(child), _shapes(own[path], ledger)) for path, child in children.items()}
        idle = [child for child in own if own[child] and child not in ran and ran.isdisjoint(own[child].values())]
        if idle and path and path not in ran:
            continue  # the parent itself has not run, and was seen to
        for child in idle:
            alike = (other for other in own if other not in idle and kinds[other] == kinds[child])
            if (sibling := next(alike, None)) is not None and shared.can_be_followed(own[sibling], sibling):
                yield from shared.follow(child, own[child], sibling, own[sibling])
            else:
                alone.append(child)
        weights = {key: named[id(own)] for key, own in parent.named_parameters(recurse=False) if own.dim() > 1}
        alone += [prefix + key for key, name in weights.items() if path in ran and name not in ran]
    if alone:
        ledger.notes.append(
            f"{', '.join(alone)} did not run on the example inputs, whose values decide what does: where it reads "
            "channels that are removed, the cut network will fail; give inputs that use it"
        )


def reached(ledger: Ledger, steps: Iterable[Step]) -> Iterator[str]:
    """The tensors that were used, and the modules in which, or in parts of which, something was done."""
    steps = list(steps)
    met = {id(ids) for step in steps for ids in step.touched}
    yield from (name for name, axes in ledger.axes.items() if any(id(ids) in met for ids in axes))
    for module in {step.place.module for step in steps}:
        yield from accumulate(module.split("."), lambda path, key: f"{path}.{key}")


def _tensors(module: nn.Module, named: Mapping[int, str]) -> Own:
    """Its parameters and buffers that have axes. `named`: by identity, since a module may have several names."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {key: named[id(tensor)] for key, tensor in every if tensor.dim()}


def _shapes(own: Own, ledger: Ledger) -> dict[str, list[int]]:
    return {key: [len(ids) for ids in ledger.axes[name]] for key, name in own.items()}


class _Shared:
    """Knows which axes of a module are tied to some outside of it, from what has run."""

    def __init__(self, ledger: Ledger, operands: Sequence[Operand]) -> None:
        self.ledger, self.operands, self.root = ledger, operands, ledger.roots()
        self.times = self._count(ledger.axes)
        self.produced, self.wide = ledger.among(ledger.produced), ledger.among(ledger.wide)
        # Of what is told by factors, or counted by an attribute, a copy would take more than ties.
        self.entangled = ledger.among(ids for record in ledger.products for ids in record)
        self.entangled |= ledger.among(ledger.attributes.values())
        self.pin = torch.full((ledger.size,), len(ledger.pins))  # the first that holds a root
        for number, pin in reversed(list(enumerate(ledger.pins))):
            self.pin[self.root[pin.ids]] = number

    def _count(self, tensors: Iterable[str]) -> Tensor:
        """Root -> how often it stands in these tensors."""
        return self.root[self._ids(tensors)].bincount(minlength=len(self.root))

    def _ids(self, tensors: Iterable[str]) -> Tensor:
        return torch.cat([NO_IDS, *(ids for name in tensors for ids in self.ledger.axes[name])])

    def _operands_in(self, path: str) -> list[Operand]:
        frames = (f"{path}.", f"{path}|")
        return [operand for operand in self.operands if f"{operand.site.inside}|".startswith(frames)]

    def can_be_followed(self, own: Own, path: str) -> bool:
        """Whether its functions work across channels of named tensors only, and none is told by factors."""
        channels = self.ledger.among(operand.channels for operand in self._operands_in(path))
        named = self.ledger.among([self._ids(own.values())]) | (self.times > 0)[self.root]
        return not bool((channels & (~named | self.entangled)).any())

    def follow(self, path: str, idle: Own, beside: str, sibling: Own) -> Iterator[Operand]:
        """Tie what the sibling shares to the same, and what lies inside as it does there; read where that one reads."""
        ledger, place = self.ledger, Place("sibling", path, "")
        ids, others = self._ids(idle.values()), self._ids(sibling[key] for key in idle)
        root = self.root[others]
        outside = self.times > self._count(set(sibling.values()))
        shared, inside = outside[root], ~outside[root] & ~self.entangled[root]
        first = torch.full_like(self.root, ledger.size).scatter_reduce(0, root[inside], ids[inside], "amin")
        ledger.tie(ids[shared], others[shared], place)
        ledger.tie(first[root[inside]], ids[inside], place)
        ledger.makes(ids[inside & self.produced[root]])
        ledger.wide.append(ids[inside & self.wide[root]])
        for number in self.pin[root[inside]].unique().tolist():
            if number < len(ledger.pins):
                pin = ledger.pins[number]
                ledger.pin(ids[inside & (self.pin[root] == number)], pin.reason, pin.place)
        for key, name in idle.items():
            if dims := ledger.readers.get(sibling[key]):
                ledger.readers.setdefault(name, set()).update(dims)
        own = torch.where(first < ledger.size, first, torch.arange(ledger.size))  # of each root
        for operand in self._operands_in(beside):
            site = operand.site._replace(inside=path + operand.site.inside.removeprefix(beside))
            channels = torch.where(operand.channels < 0, operand.channels, own[self.root[operand.channels]])
            yield replace(operand, site=site, channels=channels)
