"""Chance taken out, so that networks of different widths can be compared: what they draw is the same number throughout.

A network may draw in evaluation mode, too: an autoencoder samples its code, `F.dropout(x)` drops whatever the mode is.
With fewer channels it draws fewer numbers, so even from the same seed every one of them is another.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DRAWN = 0.5
"""In place of every number: within most distributions, and none that would hide what it meets."""
_LAYERS = {"lstm", "gru", "rnn_relu", "rnn_tanh", "_cudnn_rnn", "miopen_rnn"}
"""Draw in training mode only."""


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """What PyTorch, NumPy and Python draw in here changes nothing outside; from a `seed`, it is the same every time.

    Without a seed only what is drawn on the CPU is put back.

    >>> with forked(0):
    ...     first = random.random(), torch.rand(())
    >>> with forked(0):
    ...     first == (random.random(), torch.rand(()))
    True
    """
    kind = _in_use()
    devices = range(torch.get_device_module(kind).device_count()) if kind and seed is not None else []
    python, numpy = random.getstate(), sys.modules.get("numpy")
    array = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices, device_type=kind or "cuda"):
        try:
            if seed is not None:
                (torch if kind else torch.default_generator).manual_seed(seed)
                random.seed(seed)
                if numpy is not None:
                    numpy.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(array)


def _in_use() -> str | None:
    """The accelerator, if it has been initialised: to ask an unused one for its state would initialise it."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module = None if device is None else torch.get_device_module(device)
    if device is None or not hasattr(module, "set_rng_state"):
        return None
    return device.type if getattr(module, "is_initialized", lambda: True)() else None


class NoChance(TorchDispatchMode):
    """Within it, operators that draw numbers from a distribution give `DRAWN`; dropout drops nothing.

    Compiled code does not run within it.

    >>> with NoChance():
    ...     torch.randn(2), torch.nn.functional.dropout(torch.ones(2), 0.5)
    (tensor([0.5000, 0.5000]), tensor([1., 1.]))
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_").removesuffix("_like")
        if name in _LAYERS:
            return func(*args, **kwargs)
        if name in ("native_dropout", "_fused_dropout"):
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "rrelu_with_noise":
            given: tuple[Any, ...] = (*args, *(1 / 8, 1 / 3)[len(args) - 2 :])  # its defaults
            x, noise, lower, upper, *_ = given
            noise.copy_(torch.where(x < 0, (lower + upper) / 2, 1.0))  # what the backward pass multiplies by
            return func(x, noise, lower, upper, False)
        names = [argument.name for argument in func._schema.arguments]
        named = dict(zip(names, args, strict=False)) | kwargs
        if "dropout_p" in names:  # a fused attention
            return func(**named | {"dropout_p": 0.0})
        return _told(name, func(*args, **kwargs), named)


def _told(name: str, out: Tensor, given: dict[str, Any]) -> Tensor:
    """`out`, filled with what draws were to lie around, such as a mean that is given, or else with one number."""
    first, mean, std = given.get("self", out), given.get("mean", 0.0), given.get("std", 1.0)
    if name == "randperm":
        return out.copy_(torch.arange(len(out), device=out.device))
    if name == "normal" and (isinstance(mean, Tensor) or isinstance(std, Tensor)):
        return out.copy_(mean + DRAWN * std)
    if name in ("poisson", "_standard_gamma") or (name == "bernoulli" and first is not out):
        return out.copy_(first)
    return out.fill_(DRAWN if out.is_floating_point() else given.get("low", 0))
