"""Modules that nothing has reached: experts of a mixture that none of the example inputs was sent to.

Where values decide what runs, a part of the model may not have run, and nothing is known of its channels. It is taken
to read and to make those that a sibling does, a module of the same class and shapes beside it that has run; what else
is inside it stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from hfp.labels import Ledger, Place
from hfp.names import Names
from hfp.watcher import Step

Own = Mapping[str, str]
"""Place in a module -> name of a tensor."""


def follow_siblings(names: Names, ledger: Ledger, steps: Iterable[Step]) -> None:
    """Tie modules that have not run to their siblings. Of those that have none, there is a note."""
    ran = set(_reached(ledger, steps))
    shared = _Shared(ledger)
    alone = []
    for parent, path in names.modules.items():
        prefix = f"{path}." if path else ""
        own = {prefix + key: _tensors(child, prefix + key, names) for key, child in parent.named_children()}
        kinds = {
            prefix + key: (type(child), _shapes(own[prefix + key], ledger)) for key, child in parent.named_children()
        }
        idle = [child for child in own if own[child] and child not in ran and ran.isdisjoint(own[child].values())]
        if idle and path and path not in ran:
            continue  # the parent itself has not run, and was seen to
        for child in idle:
            sibling = next((other for other in own if other not in idle and kinds[other] == kinds[child]), None)
            if sibling is None:
                alone.append(child)
            else:
                shared.follow(own[child], own[sibling], Place("sibling", child, ""))
    if alone:
        ledger.notes.append(
            f"{', '.join(alone)} did not run on the example inputs, whose values decide what does: where it reads "
            "channels that are removed, the cut network will fail; give inputs that use it"
        )


def _reached(ledger: Ledger, steps: Iterable[Step]) -> Iterator[str]:
    """The tensors that were used, and the modules in which, or in parts of which, something was done."""
    steps = list(steps)
    met = {id(ids) for step in steps for ids in step.touched}
    yield from (name for name, axes in ledger.axes.items() if any(id(ids) in met for ids in axes))
    for module in {step.place.module for step in steps}:
        yield from accumulate(module.split("."), lambda path, key: f"{path}.{key}")


def _tensors(module: nn.Module, path: str, names: Names) -> Own:
    """Its parameters and buffers that have axes."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {key: names.aliases[f"{path}.{key}"] for key, tensor in every if tensor.dim()}


def _shapes(own: Own, ledger: Ledger) -> dict[str, list[int]]:
    return {key: [len(ids) for ids in ledger.axes[name]] for key, name in own.items()}


class _Shared:
    """Knows which axes of a module are tied to some outside of it, from what has run."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.root = ledger, ledger.roots()
        self.times = self._count(ledger.axes)

    def _count(self, tensors: Iterable[str]) -> Tensor:
        """Root -> how often it stands in these tensors."""
        axes = [ids for name in tensors for ids in self.ledger.axes[name]]
        return self.root[torch.cat(axes)].bincount(minlength=len(self.root))

    def follow(self, idle: Own, sibling: Own, place: Place) -> None:
        """Tie the axes of a module to those that its sibling shares, and have it read where that one reads."""
        outside = self.times > self._count(set(sibling.values()))
        for key, name in idle.items():
            for dim, (ids, others) in enumerate(
                zip(self.ledger.axes[name], self.ledger.axes[sibling[key]], strict=True)
            ):
                if bool(outside[self.root[others]].any()):
                    self.ledger.tie(ids, others, place)
                    if dim in self.ledger.readers.get(sibling[key], ()):
                        self.ledger.readers.setdefault(name, set()).add(dim)
