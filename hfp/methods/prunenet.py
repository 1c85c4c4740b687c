"""PruneNet: a light, data-driven step on a trained network finds the width of every layer; then one cut.

Channel Pruning via Global Importance, Khetan and Karnin, arXiv 2005.11282. Known from the paper: it starts from a
pretrained network; a computationally light optimisation discovers the necessary width of every layer; then the
network is pruned and fine-tuned. Known from a reader's note: the importance is the variance of an input channel's
contribution after filtering, with a new regularisation scheme. Reconstructed: all formulas. In the first fifth of the
schedule the weights and the statistics of norms stand still, and a scalar s = 1 + gate on every channel is trained by

    task loss + strength * sum over channels of weight * |s|,  weight = (typical variance / variance)^(1/2), at most 4

where the variance of channel c, for a layer that reads x with the weights w, is ||w_c||^2 Var(x_c): little variance,
much pressure (as in the adaptive lasso, Zou 2006). The strength is such that with no resistance of the task a channel
of typical variance would be closed at the end of the step. The channels with the lowest scalars go; the scalars
themselves go too: the weights that stay are those of the pretrained network. While the weights stand still they get no
gradient, which DistributedDataParallel has to be told: find_unused_parameters=True.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hfp.channels import ChannelTable
from hfp.groups import with_products
from hfp.labels import FIXED
from hfp.methods.magnitude import learned, relative
from hfp.methods.method import Method, after
from hfp.model.names import tensor_of
from hfp.model.turns import turn

if TYPE_CHECKING:
    from hfp.gated import GatedModel

LIGHT = 0.2  # share of the schedule
GATE_LR = 0.05
TRAVEL = 10 * GATE_LR  # of a gate in a step by a gradient of 1: 1 / (1 - momentum), for a momentum of 0.9
NARROW, WIDE = 0.01, 4.0  # of the scalars; norms over channels divide by their sum
HEAVIEST = 4.0


def running(net: GatedModel) -> bool:
    """Whether the light step is on."""
    return net.training and net.progress < LIGHT and torch.is_grad_enabled()


def forward(net: GatedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not running(net):
        return net.gated(net.keep.to(net.gates.dtype), args, kwargs)
    scalars = 1.0 + net.gates
    # A clamp without the zero in its gradient: a scalar that left the range can come back.
    scalars = scalars + (scalars.clamp(NARROW, WIDE) - scalars).detach()
    with turn(net.model), _watching(net):
        return net.gated(scalars, args, kwargs, frozen=True)


def penalty(net: GatedModel) -> Tensor:
    loss = net.live_gap()
    if not running(net):
        return loss
    strength = 1.0 / (TRAVEL * max(1.0, LIGHT * net.steps))
    return loss + strength * (pressure(net.get_buffer("variance"), net.table) * (1.0 + net.gates).abs()).sum()


def pressure(variance: Tensor, table: ChannelTable) -> Tensor:
    """(channels,) weights of the penalty, for the variance of contributions; 1 where none was seen."""
    seen = variance.detach().cpu().double()
    typical = relative(seen, table)
    weights = typical.rsqrt().clamp_max(HEAVIEST)
    for group in table.groups:
        if not bool(seen[group.channels].any()):
            weights[group.channels] = 1.0
    return weights.to(variance)


@contextmanager
def _watching(net: GatedModel) -> Iterator[None]:
    """Within it, `net.variance` gathers the variance of what each channel contributes to the layers that read it."""
    with ExitStack() as stack:
        for name, dim in net.table.readers:
            owner, _, attribute = name.rpartition(".")
            module = net.model.get_submodule(owner)
            dense = isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1)
            if attribute == "weight" and dim == 1 and dense:
                hook = partial(_gather, net, net.table.axes[name][dim], tensor_of(net.model, name))
                stack.enter_context(_removed(module.register_forward_pre_hook(hook)))
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _gather(net: GatedModel, vector: Tensor, weight: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Add the variance, over that of a typical channel of the layer, to the channels in `vector`."""
    if not inputs:  # it was given by its name
        return
    x = inputs[0].float()
    x = (x if x.dim() >= weight.dim() else x[None]).movedim(1 - weight.dim(), 0).flatten(1)  # (C, B H W); no batch: one
    values = x.var(1, correction=0) * weight.float().square().transpose(0, 1).flatten(1).sum(1)
    values = (values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)).cpu()
    live, table, variance = vector != FIXED, net.table, net.get_buffer("variance")
    sums = values.new_zeros(table.channels + len(table.products)).index_add(0, vector[live], values[live])
    variance += with_products(sums, table.channels, table.products).to(variance)


def buffers(table: ChannelTable) -> dict[str, Tensor]:
    return {"variance": torch.zeros(table.channels, dtype=torch.float32)}


METHOD = Method(
    "prunenet",
    scores=learned,
    schedule=after(LIGHT),
    penalty=penalty,
    forward=forward,
    buffers=buffers,
    gate_lr=GATE_LR,
)
