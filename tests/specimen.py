"""What a specimen is: a small network that states its own answers, which channels go together and what stays whole.

A specimen names every channel group by its places, `tensor/dim` of each, with its width. What is not in a group stays
whole; `pinned` says why, by a word of the reason. Layers whose channels are outputs of the network need no mention.
`groups=None` leaves open how much is pruned: the promises must hold all the same. `zoo.py` and `traps.py` hold them.
Larger ones (`attention.py`, `normalisers.py`, `recurrent.py`) state `least`, the places that must be in some group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE = ((2, 3, 8, 8),)
"""Shapes of the default inputs: one batch of two small images."""


class Net(nn.Module):
    """A module of `parts` (layers, parameters, plain numbers) that runs `Net.run(net, *inputs)`."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@dataclass(frozen=True)
class Specimen:
    """A network, what it is called with, and the right answers."""

    name: str
    build: Callable[[], nn.Module]
    shapes: Any
    groups: dict[str, int] | None
    pinned: dict[str, str]
    random: bool
    """Whether a training step draws random numbers, so that two networks of different widths cannot be compared."""
    least: frozenset[str] = frozenset()
    """Places, `tensor/dim`, that must be in some group whatever else is."""

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network in evaluation mode, with nothing at its initial value: a BN shift of 0 hides mistakes."""
        torch.manual_seed(0)
        model = self.build().to(dtype).eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, 0.5, 1.5)
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                nn.init.uniform_(parameter, 0.5, 1.5)
        return model

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> Any:
        """As `hfp.wrap` takes them: a tuple of tensors, or a dict of keyword tensors. Integers are indices below 10."""
        generator = torch.Generator().manual_seed(seed)

        def one(shape: Any) -> Tensor:
            if isinstance(shape, list):
                return torch.randint(0, 10, shape, generator=generator)
            return torch.randn(shape, generator=generator, dtype=dtype)

        if isinstance(self.shapes, dict):
            return {name: one(shape) for name, shape in self.shapes.items()}
        return tuple(one(shape) for shape in self.shapes)


def registry() -> tuple[dict[str, Specimen], Callable[..., Any]]:
    """An empty collection, and the decorator that adds to it."""
    found: dict[str, Specimen] = {}

    def specimen(
        groups: dict[str, int] | None = None,
        pinned: dict[str, str] | None = None,
        shapes: Any = IMAGE,
        random: bool = False,
        least: str = "",
    ) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
        def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            must = frozenset(place if "/" in place else f"{place}.weight/0" for place in least.split())
            found[build.__name__] = Specimen(build.__name__, build, shapes, groups, pinned or {}, random, must)
            return build

        return add

    return found, specimen


def conv(i: int, o: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, **options)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def places(*tensors: str) -> str:
    """`places("a", "b.weight/1")`: a layer by its name alone stands for the first dims of its weight and bias."""
    return " ".join(t if "/" in t else f"{t}.weight/0 {t}.bias/0" for t in tensors)


def norm_places(name: str) -> str:
    return f"{name}.weight/0 {name}.bias/0 {name}.running_mean/0 {name}.running_var/0"


def between(run: Callable[[Tensor], Tensor], width: int = 6) -> Net:
    """conv a (3 -> 6 channels), `run`, conv b (`width` -> 4)."""
    return Net(lambda net, x: net.b(run(net.a(x))), a=conv(3, 6), b=conv(width, 4))
