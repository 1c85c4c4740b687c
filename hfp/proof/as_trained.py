"""Weights to check with: an untrained network is made like a trained one, in whose outputs a wrong cut shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NOTHING = 1e-3  # a parameter whose largest value is below this adds nothing that a check would see


def randomise(model: nn.Module) -> nn.Module:
    """Make a network like one after a training, as far as a check needs: no parameter is constant, or next to nothing.

    With the values that layers start from, a wrong cut can go unseen: the shift of a norm is 0, so a channel that is
    gone leaves nothing behind; a branch behind a LayerScale of 1e-6, or a last layer of zeros, adds nothing.
    """
    with torch.no_grad():
        for module in model.modules():
            _randomise_norm(module)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                _randomise_weak(parameter)
    return model


@torch.no_grad()
def settle(model: nn.Module, forward: Callable[[], Any]) -> None:
    """Scale the statistics of batch norms to what they meet in a call of `forward`, as those of a trained network are.

    With others, values grow from layer to layer, and the rounding of a deep network with them, until it is all that an
    output shows. One scale for all channels of a norm: how they differ stays random.
    """

    def measure(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (*args, *kwargs.values())[0]
        across = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(x, across, unbiased=False) if x.numel() else (torch.zeros(()), torch.zeros(()))
        typical = variance.mean()
        if typical > NOTHING**2:
            _randomise_statistics(norm)
            norm.running_mean.mul_(typical.sqrt()).add_(mean)  # type: ignore[operator]
            norm.running_var.mul_(typical)  # type: ignore[operator]

    norms = [module for module in model.modules() if _has_statistics(module)]
    handles = [norm.register_forward_pre_hook(measure, with_kwargs=True) for norm in norms]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm, frozen ones of libraries as well."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


def _randomise_statistics(norm: nn.Module) -> None:
    nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def _randomise_norm(module: nn.Module) -> None:
    """The statistics of batch norms, and the shifts of all norms."""
    if _has_statistics(module):
        _randomise_statistics(module)
    bias = getattr(module, "bias", None)
    if "norm" in type(module).__name__.lower() and isinstance(bias, Tensor):
        nn.init.normal_(bias)


def _randomise_weak(parameter: Tensor) -> None:
    low, high = parameter.min().item(), parameter.max().item()
    largest = max(abs(low), abs(high))
    if low == high == 0 and parameter.dim() < 2:  # a bias, the strength of a branch
        nn.init.normal_(parameter, std=0.3)
    elif low == high and largest > NOTHING:  # the scale of a norm
        parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
    elif low == high and largest > 0:  # LayerScale
        nn.init.uniform_(parameter, 0.5, 1.5)
    elif parameter.dim() > 1:  # a weight, a table of positions
        usual = parameter[0].numel() ** -0.5
        if largest < NOTHING or parameter.std() < 0.3 * usual:
            nn.init.normal_(parameter, std=max(usual, 0.02))
