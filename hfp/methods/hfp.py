"""HFP: gates that are trained together with the weights, by the task and by a complexity loss.

Holistic Filter Pruning, Enderich, Timm and Burgard, arXiv 2009.08169. Known from the paper: a gate per channel, an
indicator with a straight-through gradient, live parameters and multiplications compared with both targets after each
forward pass, gradient descent that spreads one budget over all layers. Reconstructed, since the paper's formulas,
strengths and schedules were not available (what was tried so far is in docs/tried.md):

    phi   1 for the channels above the global threshold, 0 for the others; what the network computes with
    task  d phi / d g := -(dL / d phi), so the task opens a gate by (dL / d phi)^2, however the sign
    cost  d phi / d g := g,             so the complexity loss closes it by g * (dC / d phi)

A form such as d phi / d g := sign(g) adds up dL / d phi, which is zero on average in a network that has been trained:
we argue, and have not measured, that such gates would move by noise. Its square does not vanish; it is the Fisher
information of the gate, an estimate of what removing the channel costs (Molchanov et al., arXiv 1906.10771). Gates rest
where both pulls are equal,

    g = (dL / d phi)^2 / (dC / d phi),

the loss that a channel saves per unit of complexity: a currency for one threshold over all layers. But it is the loss
of one channel alone. Many alike can be spared one by one, though not all of them, and by their gates alone the inner
layers of residual blocks are cut down to one channel, one after another. So a gate counts more, the fewer are above it
in its layer: gate * sqrt(width / rank). The root is from what was tried: without it, mild cuts cost more accuracy than
by gates alone, and deep ones no less. On ResNet-56 the paper, too, reports about equal rates within a stage.

Steps are divided by dC / d phi, so that the gate of a cheap channel gets there as fast as that of a costly one. Closed
gates keep their value; gates start at 0. No strength has to be set: only the order of the scores matters, and the
threshold follows a falling budget. Both pulls grow linearly with the scale of the loss, so a gradient scaler changes
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfp.methods.magnitude import learned, standing
from hfp.methods.method import Method

if TYPE_CHECKING:
    from hfp.gated import GatedModel

LEARNING_RATE = 0.002  # of the gates; with momentum 0.9 that averages the pulls of about 50 steps
WARM_UP = 0.1  # share of the schedule in which gates are trained and nothing is removed
CUTS = 25  # how often the live channels are chosen anew on the way to the target


class _Gate(torch.autograd.Function):
    """The live channels, with a gradient to their gates."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gates: Tensor, keep: Tensor, price: Tensor) -> Tensor:
        return keep.to(gates.dtype)


class _TaskGate(_Gate):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        keep, price = ctx.saved_tensors
        tiny = torch.finfo(torch.float32).tiny
        grad = grads[0].float().where(keep, 0.0)  # it may be infinite where a channel is closed
        largest = grad.abs().max().clamp_min(tiny)  # squares of gradients as they are may be too small for float32
        square = (grad / largest).square()
        typical = (square.sum() / keep.sum()).sqrt().clamp_min(tiny)
        usual = (price * keep).sum() / keep.sum()
        return -_per_price(largest * square / typical, price / usual).to(grads[0].dtype), None, None


class _CostGate(_Gate):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gates, keep, price = ctx.saved_tensors
        return _per_price(grads[0] * keep, price).to(gates.dtype) * gates, None, None


def _per_price(pull: Tensor, price: Tensor) -> Tensor:
    """pull / price; 0 for what costs nothing, and for everything once the budget is met."""
    return torch.where(price > 0, pull / price, 0.0)


def task_gate(gates: Tensor, keep: Tensor, price: Tensor) -> Tensor:
    """(channels,) phi as the network sees it: 0 or 1. `price`: dC / d phi of every channel.

    Backward: minus the square of the gradient, over its root mean square (so that it grows as the loss does) and the
    price, relative to its mean.
    """
    return _TaskGate.apply(gates, keep, price)


def cost_gate(gates: Tensor, keep: Tensor, price: Tensor) -> Tensor:
    """(channels,) phi as the complexity loss sees it: 0 or 1; backward, gradient / price * gate."""
    return _CostGate.apply(gates, keep, price)


def gate(net: GatedModel) -> Tensor:
    return task_gate(net.gates, net.keep, net.price())


def complexity_loss(net: GatedModel) -> Tensor:
    """The gap of the live channels, with the gradient that it has there."""
    price = net.price()
    phi = cost_gate(net.gates, net.keep, price)
    return net.live_gap() + (price * (phi - phi.detach())).sum()


def scores(net: GatedModel) -> Tensor:
    """(channels,) gate * sqrt(width / rank), of each channel in its group."""
    gates = learned(net).detach().cpu()
    return gates / standing(gates, net.table).sqrt()


def schedule(progress: float) -> float:
    """Nothing while the gates warm up; then on a cubic, fast first.

    Cubic as in Zhu and Gupta (arXiv 1710.01878): much is removed while the network has time to recover.
    """
    left = 1.0 - max(0.0, (progress - WARM_UP) / (1.0 - WARM_UP))
    return 1.0 - left**3


METHOD = Method(
    "hfp",
    scores=scores,
    schedule=schedule,
    cuts=CUTS,
    gate=gate,
    penalty=complexity_loss,
    gate_lr=LEARNING_RATE,
    reopens=True,
)
