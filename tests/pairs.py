"""Bilinear forms, distances of vectors, and weights divided by their largest singular value. See `specimen.py`."""

from __future__ import annotations

from typing import Any

import torch
from specimen import Net, conv, parameter, registry
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm

PAIRS, specimen = registry()

ROWS = ((4, 7),)
FORM = "form.weight/0 form.bias/0 c.weight/1"


@specimen(shapes=ROWS, least=f"a b form.weight/1 form.weight/2 {FORM}")
def bilinear_form_of_two_branches() -> Net:
    run = lambda net, x: net.c(net.form(net.a(x), net.b(x)).relu())  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(7, 5), form=nn.Bilinear(6, 5, 8), c=nn.Linear(8, 4))


@specimen(shapes=ROWS, least="a form.weight/2 form.weight/0 c.weight/1")
def bilinear_form_with_the_input() -> Net:
    run = lambda net, x: net.c(net.form(x, net.a(x)).relu())  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), form=nn.Bilinear(7, 6, 8, bias=False), c=nn.Linear(8, 4))


@specimen(shapes=ROWS, least=f"a form.weight/1 form.weight/2 {FORM}")
def bilinear_form_of_a_branch_with_itself() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.form(h, h).relu())

    return Net(run, a=nn.Linear(7, 6), form=nn.Bilinear(6, 6, 8), c=nn.Linear(8, 4))


@specimen(shapes=((2, 5, 7),), least="head tail form.weight/1 form.weight/2")
def biaffine_parser() -> Net:
    """Every word with every other, as in Dozat and Manning, 2017."""

    def run(net: Any, x: Tensor) -> Tensor:
        words = x.shape[1]
        head, tail = net.head(x).relu(), net.tail(x).relu()
        head, tail = head[:, :, None].expand(-1, -1, words, -1), tail[:, None].expand(-1, words, -1, -1)
        return net.form(head.contiguous(), tail.contiguous()).squeeze(-1)

    return Net(run, head=nn.Linear(7, 6), tail=nn.Linear(7, 6), form=nn.Bilinear(6, 6, 1))


@specimen(shapes=ROWS, least="a form/1 form/2")
def bilinear_form_with_a_computed_weight() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(nn.functional.bilinear(h, h, net.form * 0.5).relu())

    return Net(run, a=nn.Linear(7, 6), form=parameter(8, 6, 6), c=nn.Linear(8, 4))


def centres(power: float, rows: int = 8) -> Net:
    """A layer of radial basis functions."""
    run = lambda net, x: net.c((-torch.cdist(net.a(x), net.centres, power)).exp())  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), centres=parameter(rows, 6), c=nn.Linear(rows, 4))


@specimen(shapes=ROWS, least="a centres/1 centres/0 c.weight/1")
def radial_basis_functions() -> Net:
    return centres(2.0)


@specimen(shapes=ROWS, least="a centres/1 centres/0 c.weight/1")
def distances_from_computed_centres() -> Net:
    run = lambda net, x: net.c(torch.cdist(net.a(x).sigmoid(), net.centres.sigmoid()))  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), centres=parameter(8, 6), c=nn.Linear(8, 4))


@specimen(shapes=((40, 7),), least="a centres/1 centres/0 c.weight/1")
def distances_of_many() -> Net:
    """So many that PyTorch makes a product of them."""
    return centres(2.0, rows=30)


@specimen(shapes=ROWS, least="a centres/1 centres/0 c.weight/1")
def distances_in_city_blocks() -> Net:
    return centres(1.0)


@specimen(shapes=ROWS, least="a centres/1 centres/0 c.weight/1")
def largest_differences() -> Net:
    return centres(float("inf"))


@specimen(shapes=((3, 4, 7), (5, 7)), least="a a.bias/0")
def distances_from_prototypes() -> Net:
    """Mean embeddings of classes, as in Snell et al., 2017."""
    return Net(lambda net, given, x: -torch.cdist(net.a(x), net.a(given).mean(1)), a=nn.Linear(7, 6))


@specimen(shapes=((2, 5, 7),), least="a b c.weight/1")
def weighted_by_distance() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c((torch.cdist(h, h).neg().softmax(-1) @ net.b(h)).relu())

    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(6, 8), c=nn.Linear(8, 4))


@specimen(shapes=ROWS, pinned={"a.weight": "compared with values that belong to no channel"})
def distances_from_given_points() -> Net:
    run = lambda net, x: net.c(torch.cdist(net.a(x), torch.linspace(-1, 1, 18).reshape(3, 6).to(x)))  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), c=nn.Linear(3, 4))


ORIGINAL = "parametrizations.weight.original"


@specimen(least=f"a b.{ORIGINAL}/1 b.{ORIGINAL}/0 c.{ORIGINAL}/1")
def spectral_norm() -> Net:
    """Miyato et al., 2018; a step of the power iteration in every forward pass of training."""
    b, c = (parametrizations.spectral_norm(layer) for layer in (conv(6, 5), nn.Linear(5, 4)))
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu().mean((2, 3))), a=conv(3, 6), b=b, c=c)


@specimen(least="a b.weight_orig/1 b.weight_orig/0 c.weight/1")
def spectral_norm_by_a_hook() -> Net:
    run = lambda net, x: net.c(net.b(net.a(x)).relu())  # noqa: E731
    return Net(run, a=conv(3, 6), b=hooked_spectral_norm(conv(6, 5)), c=conv(5, 4))


@specimen(least=f"a b.{ORIGINAL}/0 b.{ORIGINAL}/1 c.weight/1")
def spectral_norm_of_a_transposed_convolution() -> Net:
    b = parametrizations.spectral_norm(nn.ConvTranspose2d(6, 5, 4, 2, 1))
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu()), a=conv(3, 6), b=b, c=conv(5, 4))


@specimen(least=f"a b.{ORIGINAL}/1 b.{ORIGINAL}/0 c.weight/1")
def spectral_norm_of_several_steps_on_a_residual() -> Net:
    b = parametrizations.spectral_norm(conv(6, 6), n_power_iterations=3)

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(h + net.b(h.relu()))

    return Net(run, a=conv(3, 6), b=b, c=conv(6, 4))
