"""Factors that the model's code reckons from a width, such as `scores / math.sqrt(q.size(-1))`.

The cut network has another one there. Where it is a power of the share of some channels that are left, the gated
network can be scaled likewise (`power` in `hfp.tracing.operands`), so that both still compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from hfp.rules.call import base_name
from hfp.tracing.operands import Operand
from hfp.tracing.position import Site
from hfp.tracing.watcher import UNKNOWN, Step
from hfp.trial.cut import Cut

_NAMES = "mul multiply div divide true_divide"
FACTORS = {*_NAMES.split(), *(f"{name}_" for name in _NAMES.split())}
FACTORS |= set("__mul__ __rmul__ __truediv__ __imul__ __itruediv__ scaled_dot_product_attention".split())
"""Functions that scale their first tensor by a number, or what they make of it."""
POWERS = (-0.5, 0.5, -1.0, 1.0, -0.25, 0.25, -2.0, 2.0)
NOT_AT_ALL = 0.0
EXACT = 1e-6  # relative: the number may be in a tensor of float32
MANY = 64  # lengths that are looked at


def ratio(step: Step, dense: Step) -> float | None:
    """How much larger the output is for the one number that differs, where it is proportional to it."""
    operator = base_name(step.operator)
    pairs = [(new, old) for new, old in zip(step.scalars, dense.scalars, strict=False) if new not in (None, UNKNOWN)]
    numbers = [pair for pair in pairs if all(type(value) in (int, float) and value for value in pair)]
    if operator not in ("mul", "div") or len(pairs) != 1 or len(numbers) != 1:
        return None
    new, old = numbers[0]
    return new / old if operator == "mul" else old / new


def is_power(factor: float, share: float) -> bool:
    """Whether it is one of the powers that a model's code would take."""
    return any(math.isclose(factor, share**power, rel_tol=EXACT) for power in POWERS)


def is_followed(step: Step, dense: Step, scaling: Operand, cut: Cut) -> bool:
    """Whether the other factor is what the gated network will be scaled by."""
    found = ratio(step, dense)
    share = cut.stays[scaling.channels].double().mean().item()
    return found is not None and math.isclose(found, share**scaling.power, rel_tol=EXACT)


class Lengths:
    """The lengths that the steps of a dense run have met, those met last first."""

    def __init__(self, steps: Sequence[Step], cut: Cut) -> None:
        self.steps, self.cut = steps, cut
        self.read = 0
        self.met: dict[bytes, Tensor] = {}  # by their channels: what is tied is one length, however often it is met

    def until(self, at: int) -> list[Tensor]:
        """In the steps before `at`, which is not to fall from call to call; as many as are looked at."""
        for step in self.steps[self.read : at]:
            for ids in reversed(step.touched):
                key = self.cut.key(ids)
                self.met.pop(key, None)
                self.met[key] = ids
        self.read = max(self.read, at)
        return list(islice(reversed(self.met.values()), MANY))


def candidates(
    step: Step, dense: Step, lengths: Iterable[Tensor], site: Site, arguments: Iterable[Any], training: bool, cut: Cut
) -> tuple[Operand, ...]:
    """How the gated network would have to scale: by which of the lengths met last, and in what power.

    `dense`: what `step` was in the dense run; `arguments`: of the function at `site`.
    """
    found = ratio(step, dense)
    tensors = (n for n, x in enumerate(arguments) if isinstance(x, Tensor) and x.is_floating_point())
    tensor = next(tensors, None)
    if found is None or tensor is None or site.function not in FACTORS:
        return ()
    if math.isclose(found, 1.0, rel_tol=EXACT):  # it was scaled for an attribute that is no longer changed
        return (Operand(site, training, tensor, 0, step.touched[0][:0], "power", NOT_AT_ALL),)
    return tuple(
        Operand(site, training, tensor, 0, ids, "power", power)
        for ids in lengths
        for power in POWERS
        if math.isclose(found, (cut.length(ids) / len(ids)) ** power, rel_tol=EXACT)
    )
