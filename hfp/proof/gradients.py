"""Whether a gated network learns what the compact one would: a backward pass of both, compared.

Outputs that agree are not enough. What a `torch.autograd.Function` does in its backward pass may work across channels,
or run layers of the model again, where no gate reaches; a function that a copy of a model shares with it reads the
tensors of the original; and what is hidden behind a zero in the forward may be infinite in the derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfp.cutting import surgery
from hfp.model.ambient import as_set
from hfp.model.chance import NoChance, forked
from hfp.model.eager import eagerly
from hfp.model.inputs import Arguments
from hfp.model.names import Names
from hfp.model.outputs import real, tensors_of
from hfp.words import first_line

SMALL = 1e-3  # of the largest gradient: what is smaller may be a zero, but for rounding


def apart(
    gated: Callable[..., Any],
    model: nn.Module,
    small: nn.Module,
    lives: Mapping[str, Sequence[Tensor | None]],
    inputs: Arguments,
    chance: bool,
) -> tuple[float, str]:
    """How far gradients of the parameters of `model` in `gated` are from those in `small`, and what is, in words.

    Relative to the largest of each parameter; infinite where one of them has none, not a number where those under
    gates are not finite. `lives`: of tensors that were cut, the indices that stay along each dim. 0 where the compact
    network itself has no gradients, or none that are finite.
    """
    try:
        right = _gradients(small, small, inputs, chance)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # it cannot be trained in this mode, and so not be compared: cuDNN's recurrent layers, say
        return 0.0, ""
    largest = max(
        (float(grad.abs().max()) for grad in right.values() if grad is not None and grad.numel()), default=0.0
    )
    if largest == 0.0 or not math.isfinite(largest):
        return 0.0, ""
    try:
        found = _gradients(gated, model, inputs, chance)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as failure:
        return math.inf, f"its backward pass fails under gates ({first_line(failure)})"
    worst, words = 0.0, ""
    for name, expected in right.items():
        own = found.get(name)
        if own is not None and not own.isfinite().all():
            return math.nan, f"the gradient of {name} is not finite under gates"
        if own is not None and name in lives:
            own = surgery.sliced(own, lives[name])
        sizes = [0.0 if grad is None or not grad.numel() else float(grad.abs().max()) for grad in (own, expected)]
        if own is None or expected is None:
            if max(sizes) > SMALL * largest:
                return math.inf, f"the gradient of {name} is none in {'the former' if own is None else 'the latter'}"
        elif expected.numel():
            error = float((own - expected).abs().max()) / max(sizes[1], SMALL * largest)
            if error > worst:
                worst, words = error, f"the gradient of {name} is another by {error:.1e} of its largest"
    return worst, words


def _gradients(
    function: Callable[..., Any], network: nn.Module, inputs: Arguments, chance: bool
) -> dict[str, Tensor | None]:
    """Name -> gradient of a fixed random sum of all outputs; None where they do not depend on the parameter."""
    tensors = Names.of(network).tensors
    learning = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad and tensor.is_leaf}
    args, kwargs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad(), forked(0), eagerly(), nullcontext() if chance else NoChance():
        with as_set():
            torch.clear_autocast_cache()  # of weights that were rounded where nothing was to learn, PyTorch before 2.9
            out = function(*args, **kwargs)
        outs = [real(x) for x in tensors_of(out) if x.requires_grad]
        if not outs or not learning:
            return {}
        weights = [torch.randn(x.shape, generator=generator).to(x) for x in outs]
        total = torch.stack([(x * weight).sum().double().cpu() for x, weight in zip(outs, weights, strict=True)]).sum()
        grads = torch.autograd.grad(total, [*learning.values()], allow_unused=True)
    dense = (None if grad is None else real(grad.to_dense()) for grad in grads)  # of an embedding it may be sparse
    return dict(zip(learning, dense, strict=True))
