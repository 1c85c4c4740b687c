"""What networks return: the tensors in it, and how far two forms of a network differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hfp.model.ambient import as_set
from hfp.model.chance import NoChance, forked
from hfp.model.eager import eagerly
from hfp.model.inputs import Arguments

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far outputs may differ for the order of summation, relative to the largest output; see `difference`.

Of networks in double precision, too, there are parts (norms, softmaxes) whose code says that they compute in float32.
"""

_CONTAINERS = (dict, list, tuple, deque)
_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)


def tensors_of(out: Any, seen: frozenset[int] = frozenset()) -> list[Tensor]:
    """The tensors in what a model returns: any nesting of tuples, lists, dicts, dataclasses and objects like them."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, _PLAIN) or leaf is None or id(leaf) in seen:
            continue
        else:
            inner = tensors_of(_held(leaf), seen | {id(leaf)})
            if not inner and not isinstance(leaf, _CONTAINERS) and not is_dataclass(leaf):
                raise ValueError(
                    f"the model returns a {type(leaf).__name__}, in which tensors cannot be found; "
                    "return tensors in tuples, lists, dicts or dataclasses"
                )
            found += inner
    return found


def _held(leaf: Any) -> list[Any]:
    """What an object has in it and in its attributes, each thing once: a dict may be its own attributes."""
    if isinstance(leaf, (nn.Module, type)):
        return []
    inside = leaf.values() if isinstance(leaf, dict) else leaf if isinstance(leaf, _CONTAINERS) else ()
    slots = dict.fromkeys(name for kind in type(leaf).__mro__ for name in _slots(kind))
    attributes = (getattr(leaf, name, None) for name in slots)
    return list({id(each): each for each in (*inside, *getattr(leaf, "__dict__", {}).values(), *attributes)}.values())


def _slots(kind: type) -> tuple[str, ...]:
    """The attributes that a class keeps outside of `__dict__`, in order."""
    named = vars(kind).get("__slots__", ())
    names = (named,) if isinstance(named, str) else tuple(named)
    return tuple(name for name in names if not name.startswith("__"))


def difference(
    a: Callable[..., Any], b: Callable[..., Any], inputs: Arguments, as_given: bool = False, chance: bool = True
) -> float:
    """The largest difference of what `a` and `b` give for random inputs, relative to the largest output.

    `as_given`: for the inputs themselves, where not any number will do, such as the corners of a box.
    `chance`: they may draw numbers, from the same seed; without it, all that they draw is one number.
    Not a number where no output is finite: then nothing was compared.
    """
    args, kwargs = inputs if as_given else noisy(inputs)
    outs = []
    for function in (a, b):
        with torch.no_grad(), forked(0), eagerly(), nullcontext() if chance else NoChance():
            own_args, own_kwargs = tree_map(_copied, (args, kwargs))
            with as_set():
                out = function(*own_args, **own_kwargs)
            outs.append([real(x.detach().cpu()).double() for x in tensors_of(out)])
    worst = 0.0
    if len(outs[0]) != len(outs[1]):
        return float("inf")
    if any(x.numel() for x in outs[0]) and not any(bool(x.isfinite().any()) for x in outs[0]):
        return float("nan")
    for x, y in zip(*outs, strict=True):
        if x.shape != y.shape:
            return float("inf")
        apart = (x - y).abs()[~((x == y) | (x.isnan() & y.isnan()))]  # infinities and NaNs of both are no difference
        if apart.numel():
            scale = (
                x[x.isfinite()].abs().max().clamp_min(torch.finfo(torch.float32).tiny) if x.isfinite().any() else 1.0
            )
            worst = max(worst, float((apart / scale).nan_to_num(float("inf")).max()))
    return worst


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs, along an axis more."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _copied(value: Any) -> Any:
    """A forward may write to what it is given."""
    return value.clone() if isinstance(value, Tensor) else value


def noisy(inputs: Arguments) -> Arguments:
    """Noise in place of the floating point tensors among inputs."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    args, kwargs = tree_map(noise, inputs)
    return args, kwargs
