"""Networks whose output is a gradient of what they compute: forces, flows, denoisers. See `specimen.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from specimen import Net, conv, registry
from torch import Tensor, nn

GRADIENTS, specimen = registry()

POINTS = ((2, 5, 3),)


def gradient(energy: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Of the energy's sum, by the input; it can be trained."""

    def run(net: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            # A copy, since FlopCounterMode fails where a leaf is the input of a module.
            return torch.autograd.grad(energy(net, x.clone()).sum(), x, create_graph=True)[0]

    return run


def forces(act: Callable[[Tensor], Tensor]) -> Net:
    run = gradient(lambda net, x: net.c(act(net.b(act(net.a(x))))))
    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 8), c=nn.Linear(8, 1))


FORCES = "a.weight/0 b.weight/1 b.weight/0 c.weight/1"


@specimen(shapes=POINTS, least=FORCES)
def forces_by_tanh() -> Net:
    return forces(torch.tanh)


@specimen(shapes=POINTS, least=FORCES)
def forces_by_silu() -> Net:
    return forces(F.silu)


@specimen(shapes=POINTS, least=FORCES)
def forces_by_softplus() -> Net:
    return forces(F.softplus)


@specimen(shapes=POINTS, least="embed.weight/0 filter.weight/0 filter.weight/1 spread.weight/0 out.weight/1")
def forces_between_atoms() -> Net:
    """Schütt et al., 2017: filters made of distances, messages, an energy."""

    def energy(net: Any, x: Tensor) -> Tensor:
        apart = (x[:, :, None] - x[:, None]).square().sum(-1, keepdim=True).add(0.1).sqrt()
        filters = net.filter(F.softplus(net.spread(-apart)))
        return net.out(F.softplus((net.embed(torch.ones_like(x))[:, None] * filters).sum(2)))

    parts = {"embed": nn.Linear(3, 6), "spread": nn.Linear(1, 8), "filter": nn.Linear(8, 6), "out": nn.Linear(6, 1)}
    return Net(gradient(energy), **parts)


@specimen(shapes=((2, 4),), least="a.weight/0 c.weight/1")
def hamiltonian_flow() -> Net:
    """Greydanus et al., 2019: position and momentum move along the gradient, turned by a quarter."""
    flow = gradient(lambda net, x: net.c(torch.tanh(net.a(x))))
    return Net(lambda net, x: torch.roll(flow(net, x), 2, 1), a=nn.Linear(4, 8), c=nn.Linear(8, 1))


@specimen(least="a.weight/0 b.weight/1 b.weight/0 c.weight/1")
def score_of_pictures() -> Net:
    run = gradient(lambda net, x: net.c(F.elu(net.b(F.elu(net.a(x)))).mean((2, 3))))
    return Net(run, a=conv(3, 6), b=nn.Conv2d(6, 8, 3, stride=2), c=nn.Linear(8, 1))


@specimen(least="a.weight/0 b.weight/1 b.weight/0 c.weight/1")
def score_of_pooled_pictures() -> Net:
    def energy(net: Any, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.silu(net.a(x)), 2)
        return net.c(F.avg_pool2d(F.silu(net.b(h)), 2))

    return Net(gradient(energy), a=conv(3, 6), b=conv(6, 8), c=conv(8, 1))


@specimen(least="a.weight/0 c.weight/1")
def gradient_step_denoiser() -> Net:
    """Hurault et al., 2022: the gradient of half the squared distance from what a network gives."""

    def run(net: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            clean = net.c(F.elu(net.a(x.clone())))
            return clean + torch.autograd.grad(clean, x, grad_outputs=x - clean, create_graph=True)[0]

    return Net(run, a=conv(3, 6), c=conv(6, 3))


@specimen(pinned={"a.weight": "operator without a rule", "b.weight": "operator without a rule"})
def score_of_grouped_convolutions() -> Net:
    """Whose gradient has no rule: they stay whole."""
    run = gradient(lambda net, x: net.c(F.elu(net.b(F.elu(net.a(x)))).mean((2, 3))))
    return Net(run, a=conv(3, 6), b=nn.Conv2d(6, 8, 3, groups=2), c=nn.Linear(8, 1))
