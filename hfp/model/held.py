"""Tensors of a model that its modules hold in lists, tuples and dicts as well: `self.layers = [(self.w1, self.b1)]`.

What stands in for such a tensor under its name, as `torch.func.functional_call` puts it there, is to stand there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hfp.model.names import Names

_OWN = {"_parameters", "_buffers", "_modules"}


@dataclass(frozen=True)
class Held:
    """An attribute of a module that is a container."""

    module: str
    attribute: str
    spec: TreeSpec
    names: Sequence[str | None]
    """Of the tensor that each of its leaves is, if it is one of the model's."""


def held_in(names: Names) -> list[Held]:
    """The containers in which modules hold tensors that have names.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(2, 2), nn.PReLU()
    ...         self.both = {"first": self.a.weight, "then": [self.b.weight, 3]}
    >>> [(one.attribute, one.names) for one in held_in(Names.of(Net()))]
    [('both', ['a.weight', 'b.weight', None])]
    """
    known = {id(tensor): name for name, tensor in names.tensors.items()}
    found = []
    for module, path in names.modules.items():
        if type(module).__module__.startswith("torch.nn."):  # a recurrent layer sees to its list by itself
            continue
        for key, value in vars(module).items():
            if isinstance(value, (list, tuple, dict)) and value and key not in _OWN:
                leaves, spec = tree_flatten(value)
                of_leaves = [known.get(id(leaf)) for leaf in leaves]
                if any(name is not None for name in of_leaves):
                    found.append(Held(path, key, spec, of_leaves))
    return found


@contextmanager
def standing_in(model: nn.Module, held: Sequence[Held], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """In here containers hold `tensors`, by name, in place of the model's own. Such as have changed are left alone."""
    before = []
    for one in held:
        attributes = vars(model.get_submodule(one.module))
        container = attributes.get(one.attribute)
        leaves, spec = tree_flatten(container)
        if spec == one.spec:
            before.append((attributes, one.attribute, container))
            pairs = zip(leaves, one.names, strict=True)
            stand = [leaf if name is None else tensors.get(name, leaf) for leaf, name in pairs]
            attributes[one.attribute] = tree_unflatten(stand, spec)
    try:
        yield
    finally:
        for attributes, attribute, container in before:
            attributes[attribute] = container
