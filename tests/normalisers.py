"""Normalisers over channels and statistics of them: what is removed must not count any more. See `specimen.py`.

A removed channel is absent from the mean, not a zero in it: gates before the normaliser are not enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from specimen import Net, between, conv, parameter, registry
from torch import Tensor, nn
from torch.nn.utils import parametrizations

NORMALISERS, specimen = registry()

AB = "a b.weight/1"
ROWS = ((2, 5, 7),)


def normed(norm: nn.Module, width: int = 6) -> Net:
    """conv a (3 -> width), `norm`, conv b."""
    return Net(lambda net, x: net.b(net.norm(net.a(x))), a=conv(3, width), norm=norm, b=conv(width, 4))


def rows(norm: nn.Module, width: int = 6) -> Net:
    """The same of linear layers on the last dim."""
    run = lambda net, x: net.b(net.norm(net.a(x)))  # noqa: E731
    return Net(run, a=nn.Linear(7, width), norm=norm, b=nn.Linear(width, 4))


# ---------------------------------------------------------------------------------------------- layer norm


@specimen(shapes=ROWS, least=f"{AB} norm norm.bias/0")
def layer_norm_of_rows() -> Net:
    return rows(nn.LayerNorm(6))


@specimen(shapes=((6, 6, 7),), least=f"{AB} norm norm.bias/0")
def layer_norm_of_rows_alike() -> Net:
    return rows(nn.LayerNorm(6))


@specimen(shapes=ROWS, least=AB)
def layer_norm_without_affine() -> Net:
    return rows(nn.LayerNorm(6, elementwise_affine=False))


@specimen(shapes=ROWS, least=f"{AB} norm")
def layer_norm_without_bias() -> Net:
    return rows(nn.LayerNorm(6, eps=0.1, bias=False))


@specimen(least=f"{AB} norm")
def layer_norm_between_permutations() -> Net:
    """As in ConvNeXt."""
    run = lambda net, x: net.b(net.norm(net.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))  # noqa: E731
    return Net(run, a=conv(3, 6), norm=nn.LayerNorm(6), b=conv(6, 4))


@specimen(least=f"{AB} norm")
def functional_layer_norm() -> Net:
    """The size is read off the weight, as in torchvision and timm."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x).permute(0, 2, 3, 1)
        return net.b(F.layer_norm(h, net.norm.weight.shape, net.norm.weight, net.norm.bias, 1e-6).permute(0, 3, 1, 2))

    return Net(run, a=conv(3, 6), norm=nn.LayerNorm(6), b=conv(6, 4))


@specimen(least=f"{AB} scale/0 shift/0")
def layer_norm_by_hand() -> Net:
    """LayerNorm2d as it is written in SAM, ConvNeXt and many others."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        u = h.mean(1, keepdim=True)
        s = (h - u).pow(2).mean(1, keepdim=True)
        h = (h - u) / torch.sqrt(s + 1e-6)
        return net.b(net.scale[:, None, None] * h + net.shift[:, None, None])

    return Net(run, a=conv(3, 6), b=conv(6, 4), scale=parameter(6), shift=parameter(6))


@specimen(least=AB)
def layer_norm_of_channels_and_space() -> Net:
    return between(lambda h: F.layer_norm(h, h.shape[1:]))


@specimen(least=f"{AB} norm")
def layer_norm_of_everything_with_affine() -> Net:
    return normed(nn.LayerNorm((6, 8, 8)))


@specimen(shapes=ROWS, least="a b.weight/1 b c.weight/1 before after")
def layer_norms_in_a_residual_stream() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.after(h + net.b(net.before(h)).relu()))

    layers = {"a": nn.Linear(7, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 4)}
    return Net(run, before=nn.LayerNorm(6), after=nn.LayerNorm(6), **layers)


@specimen(least="a b c.weight/1 norm")
def layer_norm_of_joined_channels() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.cat([net.a(x), net.b(x)], 1).mean((2, 3))
        return net.c(net.norm(h))

    return Net(run, a=conv(3, 6), b=conv(3, 5), norm=nn.LayerNorm(11), c=nn.Linear(11, 4))


# ---------------------------------------------------------------------------------------------- group, instance


@specimen(least=f"{AB} norm")
def one_group() -> Net:
    return normed(nn.GroupNorm(1, 6))


@specimen(least=f"{AB} norm")
def as_many_groups_as_channels() -> Net:
    return normed(nn.GroupNorm(6, 6))


@specimen(least=f"{AB} norm")
def several_groups() -> Net:
    """Three groups of four: what is removed leaves equal groups."""
    return normed(nn.GroupNorm(3, 12), 12)


@specimen(least=f"{AB} norm")
def as_many_groups_as_members() -> Net:
    return normed(nn.GroupNorm(4, 16), 16)


@specimen(least="a b norm.weight/0 c.weight/1")
def groups_across_a_concatenation() -> Net:
    """Groups of four over channels of two layers, 4 and 8: each group is of one layer."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.c(net.norm(torch.cat([net.a(x), net.b(x)], 1)))

    return Net(run, a=conv(3, 4), b=conv(3, 8), norm=nn.GroupNorm(3, 12), c=conv(12, 4))


@specimen()
def groups_that_do_not_end_where_layers_do() -> Net:
    """Groups of three over layers of 4 and 5."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.c(net.norm(torch.cat([net.a(x), net.b(x)], 1)))

    return Net(run, a=conv(3, 4), b=conv(3, 5), norm=nn.GroupNorm(3, 9), c=conv(9, 4))


@specimen(least="a b b.weight/1 c.weight/1 first second")
def groups_of_two_ratios_on_one_stream() -> Net:
    """Groups of six under one norm, all in one under the other."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.second(h + net.b(net.first(h))))

    norms = {"first": nn.GroupNorm(2, 12), "second": nn.GroupNorm(1, 12)}
    return Net(run, a=conv(3, 12), b=conv(12, 12), c=conv(12, 4), **norms)


@specimen()
def groups_of_six_and_of_four_on_one_stream() -> Net:
    """Both must stay balanced at once: the six pairs of neighbours lose the same slot, or nothing is cut."""
    run = lambda net, x: net.c(net.second(net.first(net.a(x)).relu()))  # noqa: E731
    norms = {"first": nn.GroupNorm(2, 12), "second": nn.GroupNorm(3, 12)}
    return Net(run, a=conv(3, 12), c=conv(12, 4), **norms)


@specimen(least="a b b.weight/1 c.weight/1 norm")
def grouped_convolution_and_group_norm() -> Net:
    run = lambda net, x: net.c(net.norm(net.b(net.a(x))).relu())  # noqa: E731
    return Net(run, a=conv(3, 8), b=conv(8, 12, groups=4), norm=nn.GroupNorm(4, 12), c=conv(12, 4))


@specimen(least=f"{AB} norm")
def group_norm_of_rows() -> Net:
    """After the mean over space, where a group of one channel becomes constant."""
    run = lambda net, x: net.b(net.norm(net.a(x).mean((2, 3))))  # noqa: E731
    return Net(run, a=conv(3, 8), norm=nn.GroupNorm(2, 8), b=nn.Linear(8, 4))


def standardised(layer: nn.Conv2d, rows: Tensor) -> Tensor:
    """The weight of a layer, a row each filter, as BiT and NFNet standardise it: by a batch norm without statistics."""
    return F.batch_norm(rows[None], None, None, training=True, eps=1e-6)[0].view_as(layer.weight)


@specimen(least="a norm b.weight/1 b")
def weight_standardised_behind_a_group_norm() -> Net:
    """There the rows that are laid out belong to groups, and to places in them."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.norm(net.a(x)).relu()
        return net.c(F.conv2d(h, standardised(net.b, net.b.weight.flatten(1)), net.b.bias, padding=1))

    return Net(run, a=conv(3, 16), norm=nn.GroupNorm(4, 16), b=conv(16, 5), c=conv(5, 4))


@specimen(least="a b.weight/1 b")
def weight_standardised_in_wide_groups() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        w = standardised(net.b, net.b.weight.flatten(1))
        return net.c(F.conv2d(net.a(x), w, net.b.bias, padding=1, groups=2))

    return Net(run, a=conv(3, 6), b=nn.Conv2d(6, 8, 3, padding=1, groups=2), c=conv(8, 4))


@specimen(least=AB)
def instance_norm_by_hand() -> Net:
    return between(lambda h: (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), keepdim=True) + 1e-5).sqrt())


@specimen(least=f"{AB} norm norm.running_mean/0")
def instance_norm_with_statistics() -> Net:
    return normed(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))


# ---------------------------------------------------------------------------------------------- root mean square


@specimen(shapes=ROWS, least=f"{AB} norm")
def rms_norm() -> Net:
    return rows(nn.RMSNorm(6))


class LlamaNorm(nn.Module):
    def __init__(self, width: int, low: bool) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.low = nn.Parameter(torch.ones(width)), 1e-6, low

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float64 if self.low else x.dtype).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * x.to(self.weight.dtype)


@specimen(shapes=ROWS, least=f"{AB} norm")
def rms_norm_of_llama() -> Net:
    return rows(LlamaNorm(6, low=True))


@specimen(shapes=ROWS, least=f"{AB} norm")
def rms_norm_of_t5() -> Net:
    return rows(LlamaNorm(6, low=False))


@specimen(shapes=ROWS, least=f"{AB} gain/0")
def rms_norm_by_a_fixed_width() -> Net:
    """`norm * width ** -0.5`, the width as a number: removing channels does not change what is divided by."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(h / (h.norm(dim=-1, keepdim=True) * net.root).clamp(min=1e-8) * net.gain)

    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(6, 4), gain=parameter(6), root=6**-0.5)


@specimen(shapes=ROWS)
def rms_norm_by_the_width_of_its_input() -> Net:
    """The same of x.shape[-1]: removing channels changes it."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(F.normalize(h, dim=-1) * h.shape[-1] ** 0.5 * net.gain)

    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(6, 4), gain=parameter(6))


@specimen(least=AB)
def unit_length_of_channels() -> Net:
    return between(lambda h: F.normalize(h, dim=1))


@specimen(least=f"{AB} weight/0")
def unit_length_with_scale() -> Net:
    """As in SSD."""
    net = between(lambda h: h)
    net.weight = parameter(6)
    net.run = lambda net, x: net.b(F.normalize(net.a(x)) * net.weight.view(1, -1, 1, 1))
    return net


@specimen(shapes=ROWS, least="a classes/1")
def cosine_classifier() -> Net:
    run = lambda net, x: 16 * F.linear(F.normalize(net.a(x), dim=-1), F.normalize(net.classes, dim=-1))  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), classes=parameter(4, 6))


@specimen(shapes=ROWS, least="a b")
def cosine_similarity_of_two_branches() -> Net:
    run = lambda net, x: F.cosine_similarity(net.a(x), net.b(x), dim=-1)  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(7, 6))


@specimen(shapes=ROWS, least="a b")
def distance_of_two_branches() -> Net:
    run = lambda net, x: (net.a(x) - net.b(x)).pow(2).sum(-1).sqrt()  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(7, 6))


@specimen(least=f"{AB} gamma/3 beta/3")
def global_response_norm() -> Net:
    """As in ConvNeXt V2: length over space, divided by its mean over channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x).permute(0, 2, 3, 1)
        g = torch.norm(h, p=2, dim=(1, 2), keepdim=True)
        h = net.gamma * (h * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + net.beta + h
        return net.b(h.permute(0, 3, 1, 2))

    return Net(run, a=conv(3, 6), b=conv(6, 4), gamma=parameter(1, 1, 1, 6), beta=parameter(1, 1, 1, 6))


@specimen(pinned={"a.weight": ""})
def local_response_norm_of_five() -> Net:
    """Neighbours by position: nothing can be cut."""
    return normed(nn.LocalResponseNorm(5), 7)


# ---------------------------------------------------------------------------------------------- softmax, statistics


@specimen(least=AB)
def softmax_of_channels_as_a_gate() -> Net:
    return between(lambda h: h * h.softmax(1))


@specimen(least=AB)
def log_softmax_of_channels() -> Net:
    return between(lambda h: F.log_softmax(h, dim=1))


@specimen(least="a b b.weight/1 c.weight/1")
def softmax_between_branches() -> Net:
    """As in selective kernels: softmax over two branches, channel by channel."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        both = torch.stack([h, net.b(h)], 1)
        return net.c((both * both.mean((3, 4), keepdim=True).softmax(1)).sum(1))

    return Net(run, a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))


def attended_in_space(statistics: Callable[[Tensor], list[Tensor]]) -> Net:
    """Each pixel times the sigmoid of a convolution over `statistics` of its channels, as in CBAM."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(h * net.mix(torch.cat(statistics(h), 1)).sigmoid())

    return Net(run, a=conv(3, 6), mix=conv(2, 1, bias=False), b=conv(6, 4))


@specimen(least=AB)
def mean_and_largest_channel() -> Net:
    return attended_in_space(lambda h: [h.mean(1, keepdim=True), h.max(1, keepdim=True)[0]])


@specimen(least=AB)
def spread_and_smallest_channel() -> Net:
    return attended_in_space(lambda h: [h.std(1, keepdim=True, unbiased=False), h.amin(1, keepdim=True)])


@specimen(least=AB)
def spread_with_mean_of_channels() -> Net:
    return attended_in_space(lambda h: list(torch.var_mean(h, 1, keepdim=True, unbiased=False)))


@specimen(least=AB)
def smallest_with_largest_channel() -> Net:
    return attended_in_space(lambda h: list(h.aminmax(dim=1, keepdim=True)))


@specimen(least="a b.weight/1 c")
def a_loss_within() -> Net:
    """How far two codes are apart."""

    def run(net: Any, x: Tensor) -> Tensor:
        h, k = net.a(x).relu(), net.c(x).tanh()
        return net.b(h) * (F.mse_loss(k, h.detach()) + F.l1_loss(k, h, reduction="sum"))

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=conv(3, 6))


@specimen(least=AB)
def sum_and_logsumexp_of_channels() -> Net:
    return attended_in_space(lambda h: [h.sum(1, keepdim=True), h.logsumexp(1, keepdim=True)])


@specimen(least=AB)
def mean_of_everything() -> Net:
    return between(lambda h: h - h.mean((1, 2, 3), keepdim=True))


@specimen(pinned={"a.weight": ""})
def product_of_channels() -> Net:
    return between(lambda h: h * h.cumsum(1))


@specimen(random=True, least=AB)
def dropout_of_whole_channels() -> Net:
    return normed(nn.Dropout2d(0.3))


@specimen(random=True, shapes=ROWS, least=f"{AB} norm.1")
def alpha_dropout_and_layer_norm() -> Net:
    return rows(nn.Sequential(nn.AlphaDropout(0.2), nn.LayerNorm(6)))


# ---------------------------------------------------------------------------------------------- weights


class StandardConv(nn.Conv2d):
    """Each filter less its mean, over its deviation: a removed input channel must not count in either."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


@specimen(least="b c.weight/1")
def standardised_weights() -> Net:
    b = StandardConv(6, 5, 3, padding=1)
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu()), a=conv(3, 6), b=b, c=conv(5, 4))


@specimen(least="b c.weight/1")
def standardised_weights_by_batch_norm() -> Net:
    """As in timm: the weight goes through batch norm, one filter a channel."""

    def run(net: Any, x: Tensor) -> Tensor:
        w = F.batch_norm(net.b.weight.reshape(1, net.b.out_channels, -1), None, None, training=True, eps=1e-6)
        return net.c(F.conv2d(net.a(x), w.reshape_as(net.b.weight), net.b.bias, padding=1).relu())

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(5, 4))


WEIGHT_NORM = "b.parametrizations.weight.original0/0 b.parametrizations.weight.original1/0 c.weight/1"


@specimen(least=WEIGHT_NORM)
def normed_weights() -> Net:
    b = parametrizations.weight_norm(conv(6, 5))
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu()), a=conv(3, 6), b=b, c=conv(5, 4))


@specimen(shapes=ROWS, least="fake.0 fake.2.weight/1 a")
def weights_from_another_layer() -> Net:
    """A small network gives each channel its scale, from an embedding of its own."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x) * net.fake(x.mean(1, keepdim=True)))

    fake = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6))
    return Net(run, a=nn.Linear(7, 6), fake=fake, b=nn.Linear(6, 4))


@specimen(shapes=((2, 5, 3),), least="a norm q/0")
def normalised_streams_by_a_vector() -> Net:
    """A layer norm puts memory in order, and PyTorch counts the product of what is not in order otherwise."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.o((net.norm(torch.stack([h, h.tanh()], 1).transpose(1, 2)) @ net.q).flatten(1))

    return Net(run, a=nn.Linear(3, 6), norm=nn.LayerNorm(6), q=parameter(6), o=nn.Linear(10, 4))


@specimen(shapes=ROWS, least="shift/0 last/0 last/1 a/0 a/1 b/0 b/1 c/0 d/0 head.weight/1")
def weights_of_one_length_scaled_by_its_root() -> Net:
    """As in EDM2. Two widths are concatenated whose shares, in the first trial, come to that of `last` by chance."""

    def forced(weight: Tensor) -> Tensor:
        return F.normalize(weight, dim=1) * weight.shape[1] ** 0.5

    def run(net: Any, x: Tensor) -> Tensor:
        both = torch.cat((F.linear(x, net.c), F.linear(x, net.d)), -1)
        last = F.linear(both, forced(net.last), net.shift).relu()
        return net.head(F.linear(F.linear(last, forced(net.a)).relu(), forced(net.b)))

    inner = {"a": parameter(32, 32), "d": parameter(32, 7), "b": parameter(32, 32), "last": parameter(32, 64)}
    return Net(run, c=parameter(32, 7), **inner, shift=parameter(32), head=nn.Linear(32, 4))
