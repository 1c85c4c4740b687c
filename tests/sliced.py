"""Channels in groups and slices, repeated, expanded, written by index. See `specimen.py`."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
import torchvision
from specimen import Net, between, conv, registry
from torch import Tensor, nn

SLICED, specimen = registry()


# ---------------------------------------------------------------------------------------------- grouped and sliced


@specimen(least="a b c.weight/1")
def transposed_in_groups() -> Net:
    b = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4)
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 8), b=b, c=conv(12, 4))


@specimen(least="a b c.weight/1")
def transposed_depthwise() -> Net:
    b = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6, bias=False)
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=b, c=conv(6, 4))


@specimen(least="a b.weight/1")
def every_second_channel() -> Net:
    """As in gpt-oss: it gates the one before it."""
    return Net(lambda net, x: net.b(gated_by_turns(net.a(x))), a=conv(3, 12), b=conv(6, 4))


@specimen(least="a b.weight/1")
def every_third_channel() -> Net:
    return Net(lambda net, x: net.b(net.a(x)[:, 2::3]), a=conv(3, 12), b=conv(4, 4))


def gated_by_turns(h: Tensor) -> Tensor:
    return h[:, ::2] * h[:, 1::2].sigmoid()


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, height, width = x.shape
    return x.view(b, groups, c // groups, height, width).transpose(1, 2).contiguous().view(b, -1, height, width)


@specimen(least="a b.weight/1")
def shuffled_channels() -> Net:
    """Two halves interleaved: a pair of channels, one of each half, goes at once."""
    return between(lambda h: shuffle(h, 2))


@specimen(least="a b left left.weight/1 right.weight/1")
def shuffle_unit() -> Net:
    """As in ShuffleNet V2: split, one half through layers, joined, shuffled, twice."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        for branch in (net.left, net.right):
            one, two = h.chunk(2, dim=1)
            h = shuffle(torch.cat((one, branch(two)), dim=1), 2)
        return net.b(h)

    return Net(run, a=conv(3, 12), left=conv(6, 6), right=conv(6, 6), b=conv(12, 4))


@specimen(least="a b c.weight/1")
def shuffled_between_grouped_convolutions() -> Net:
    """As in ShuffleNet V1."""
    run = lambda net, x: net.c(net.b(shuffle(net.a(x), 3)))  # noqa: E731
    return Net(run, a=conv(3, 12), b=conv(12, 6, 1, groups=3), c=conv(6, 4))


@specimen(least="primary cheap.weight/0 b.weight/1")
def ghost_module() -> Net:
    """As in GhostNet: channels, and a cheap copy of them; as many of both as are wanted."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.primary(x)
        return net.b(torch.cat([h, net.cheap(h)], dim=1)[:, : net.oup, :, :])

    return Net(run, oup=12, primary=conv(3, 6, 1), cheap=conv(6, 6, groups=6), b=conv(12, 4))


@specimen()
def ghost_module_with_too_many() -> Net:
    """The last of the copies is sliced off."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.primary(x)
        return net.b(torch.cat([h, net.cheap(h)], dim=1)[:, : net.oup, :, :])

    return Net(run, oup=11, primary=conv(3, 6, 1), cheap=conv(6, 6, groups=6), b=conv(11, 4))


@specimen(least="one two.conv three.conv two.conv.weight/1 three.conv.weight/1 two.norm three.norm last.weight/1")
def dense_connections() -> Net:
    """As in DenseNet: norm before convolution, over all that came before."""

    def layer(i: int, o: int) -> Net:
        return Net(lambda net, x: net.conv(net.norm(x).relu()), norm=nn.BatchNorm2d(i), conv=conv(i, o))

    def run(net: Any, x: Tensor) -> Tensor:
        features = [net.one(x)]
        for step in (net.two, net.three):
            features.append(step(torch.cat(features, 1)))
        return net.last(torch.cat(features, 1))

    return Net(run, one=conv(3, 6), two=layer(6, 5), three=layer(11, 4), last=conv(15, 4))


@specimen(least="a halves.0 halves.0.weight/1 b.weight/1")
def channels_taken_part_by_part() -> Net:
    """As in Res2Net: each part of the channels is added to the next."""

    def run(net: Any, x: Tensor) -> Tensor:
        parts = net.a(x).chunk(3, 1)
        out = [parts[0]]
        for part, layer in zip(parts[1:], net.halves, strict=True):
            out.append(layer(part + out[-1]))
        return net.b(torch.cat(out, 1))

    halves = nn.ModuleList([conv(4, 4), conv(4, 4)])
    return Net(run, a=conv(3, 12), halves=halves, b=conv(12, 4))


@specimen(least="a b c.weight/1 d.weight/1")
def split_in_unequal_parts() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        left, right = torch.cat((net.a(x), net.b(x)), 1).split(net.sizes, 1)
        return net.c(left) + net.d(right)

    net = Net(run, a=conv(3, 6), b=conv(3, 4), c=conv(6, 5), d=conv(4, 5))
    net.sizes = [6, 4]
    return net


# ---------------------------------------------------------------------------------------------- repeated, expanded


@specimen(least="a b.weight/1 gate.0.weight/1 gate.0 gate.2")
def excited_by_repetition() -> Net:
    """The scale of each channel is spread over space by `repeat`."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        scale = net.gate(h.mean((2, 3))).sigmoid()
        return net.b(h * scale[..., None, None].repeat(1, 1, *h.shape[2:]))

    gate = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))
    return Net(run, a=conv(3, 6), gate=gate, b=conv(6, 4))


@specimen(least="a b c.weight/1 summary")
def pooled_context_beside_each_pixel() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h, s = net.a(x), net.summary(x.mean((2, 3), keepdim=True))
        return net.c(net.b(torch.cat([h, s.expand(-1, -1, *h.shape[2:])], 1)))

    return Net(run, a=conv(3, 6), summary=conv(3, 5, 1), b=conv(11, 7), c=conv(7, 4))


@specimen(least="a b c.weight/1")
def every_pair_of_tokens() -> Net:
    """As in relation networks: tokens beside tokens."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x).flatten(2).transpose(1, 2)
        n = h.shape[1]
        pairs = torch.cat([h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1)], -1)
        return net.c(net.b(pairs).relu().sum((1, 2)))

    return Net(run, a=nn.Conv2d(3, 6, 3, 3), b=nn.Linear(12, 5), c=nn.Linear(5, 4))


@specimen(least="a b b.weight/1 c.weight/1")
def iterated_with_shared_weights() -> Net:
    """As in RAFT and universal transformers: one layer refines its own output."""

    def run(net: Any, x: Tensor) -> Tensor:
        h, outputs = net.a(x), []
        for _ in range(3):
            h = h + net.b(h).tanh()
            outputs.append(net.c(h))
        return torch.stack(outputs)

    return Net(run, a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))


@specimen(least="a b")
def correlated_maps() -> Net:
    """As in optical flow: every pixel of one map times every pixel of another, over the channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        one, two = net.a(x).flatten(2), net.b(x.flip(3)).flatten(2)
        volume = torch.matmul(one.transpose(1, 2), two) * net.scale
        return net.c(volume.view(*x.shape[:1], -1, *x.shape[2:]))

    return Net(run, scale=6**-0.5, a=conv(3, 6), b=conv(3, 6), c=conv(64, 4))


if importlib.util.find_spec("einops"):
    from einops.layers.torch import Rearrange, Reduce

    @specimen(least="0 4.weight/1 4 6.weight/1")
    def layers_of_einops() -> nn.Module:
        """As in lucidrains' networks: patches, tokens, a mean, all in one Sequential."""
        patches = Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
        start = [conv(3, 6), nn.BatchNorm2d(6), nn.GELU(), patches]
        return nn.Sequential(*start, nn.Linear(24, 5), Reduce("b n c -> b c", "mean"), nn.Linear(5, 4))

    @specimen(least="0 1 3.weight/1")
    def channels_split_by_einops() -> nn.Module:
        split = Rearrange("b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
        return nn.Sequential(conv(3, 24), nn.BatchNorm2d(24), split, conv(6, 4))


# ---------------------------------------------------------------------------------------------- written by index


@specimen(shapes=((5, 3),), least="a b.weight/1")
def rows_filled_by_index() -> Net:
    run = lambda net, x: net.b(net.a(x).index_fill(0, torch.tensor([1, 3], device=x.device), 2.0))  # noqa: E731
    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 4))


@specimen(shapes=((5, 3),))
def channels_written_by_index() -> Net:
    """The third channel, whichever that is."""
    run = lambda net, x: net.b(net.a(x).index_add(1, torch.tensor([2], device=x.device), x[:, :1]))  # noqa: E731
    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 4))


@specimen(least="a d.weight/0 d.weight/1 c.weight/1")
def deformable_convolution() -> Net:
    run = lambda net, x: net.c(net.d(net.a(x), net.offset(x)))  # noqa: E731
    deformed = torchvision.ops.DeformConv2d(6, 8, 3, padding=1)
    return Net(run, a=conv(3, 6), offset=conv(3, 18), d=deformed, c=conv(8, 4))


@specimen(least="a d.weight/0 d.weight/1 c.weight/1")
def deformable_convolution_with_two_offsets_and_masks() -> Net:
    """Half of the channels move by the one, half by the other."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.d(h, net.offset(h), net.mask(h).sigmoid()))

    deformed = torchvision.ops.DeformConv2d(6, 8, 3, padding=1, bias=False)
    return Net(run, a=conv(3, 6), offset=conv(6, 36), mask=conv(6, 18), d=deformed, c=conv(8, 4))


@specimen(least="c.weight/1")
def deformable_convolution_in_groups() -> Net:
    run = lambda net, x: net.c(net.e(net.d(net.a(x), net.offset(x))))  # noqa: E731
    deformed = torchvision.ops.DeformConv2d(6, 8, 3, padding=1, groups=2)
    return Net(run, a=conv(3, 6), offset=conv(3, 18), d=deformed, e=conv(8, 5), c=conv(5, 4))


@specimen(shapes=((2, 5, 7),), least="e a a.weight/1 g b.weight/1")
def zeros_before_the_rest() -> Net:
    """As a causal convolution pads, and as a first state is put before the others."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.e(x)
        h = torch.cat([torch.zeros(h.shape[0], 1, h.shape[2], dtype=h.dtype), h], 1)
        h = net.a(h[:, 1:]) * net.g(x)
        return net.b(torch.stack([torch.zeros(h.shape, dtype=h.dtype), h], 1).sum(1))

    return Net(run, e=nn.Linear(7, 6), a=nn.Linear(6, 8), g=nn.Linear(7, 8), b=nn.Linear(8, 4))


@specimen(least="a b b.weight/1 c.weight/1")
def reshaped_by_a_list_in_a_config() -> Net:
    """As in SegFormer and PVT, whose config has the widths of all stages."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.b(net.a(x).relu()).permute(0, 2, 3, 1)
        return net.c(h.reshape(h.shape[0], -1, net.config.widths[-1]).mean(1))

    config = SimpleNamespace(widths=[6, 8])
    return Net(run, config=config, a=conv(3, 6), b=conv(6, 8), c=nn.Linear(8, 4))


@specimen(shapes=([4, 5],), least="bag.weight/1 a a.weight/1 b.weight/1")
def bag_of_words() -> Net:
    run = lambda net, words: net.b(net.a(net.bag(words)).relu())  # noqa: E731
    return Net(run, bag=nn.EmbeddingBag(10, 6, mode="mean"), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
