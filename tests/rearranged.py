"""Channels moved into space and back, shuffled, indexed, sampled. See `specimen.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from specimen import Net, between, conv, parameter, registry
from torch import Tensor, nn

REARRANGED, specimen = registry()

AB = "a b.weight/1"
SQUARE = ((4, 4, 4, 4),)
"""Batch, channels, height and width alike."""

# ---------------------------------------------------------------------------------------------- each channel by itself


@specimen(least=AB)
def blur_of_as_many_channels_as_there_are() -> Net:
    """As in antialiased networks: one filter, repeated in the forward."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(F.conv2d(h, net.filter.repeat(h.shape[1], 1, 1, 1), stride=2, groups=h.shape[1]))

    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(1, 1, 3, 3))


@specimen(least=AB)
def blur_of_an_expanded_filter() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = F.pad(net.a(x), (1, 1, 1, 1), mode="reflect")
        return net.b(F.conv2d(h, net.filter.expand(h.size(1), -1, -1, -1), groups=h.size(1)))

    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(1, 1, 3, 3))


def filtered_by(made: Callable[[Net, int], Tensor]) -> Net:
    run = lambda net, x: net.b(F.conv2d(h := net.a(x), made(net, h.shape[1]), padding=1, groups=h.shape[1]))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(1, 1, 3, 3))


@specimen(least=AB)
def blur_of_a_list_of_one_filter() -> Net:
    return filtered_by(lambda net, channels: torch.cat([net.filter] * channels, dim=0))


@specimen(least=AB)
def blur_of_a_stack_of_one_filter() -> Net:
    return filtered_by(lambda net, channels: torch.stack([net.filter[0] for _ in range(channels)]))


@specimen(least=AB)
def blur_of_images_of_one_channel() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        n, c, height, width = (h := net.a(x)).shape
        return net.b(F.conv2d(h.view(n * c, 1, height, width), net.filter, padding=1).view(n, c, height, width))

    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(1, 1, 3, 3))


@specimen(least=AB + " filter/0")
def blur_of_a_number_of_channels_that_is_told() -> Net:
    run = lambda net, x: net.b(F.conv2d(net.a(x), net.filter, None, 2, 1, 1, net.channels))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(6, 1, 3, 3), channels=6)


@specimen(least=AB)
def a_mask_made_of_the_first_channel() -> Net:
    """The first one stays; the others may go."""
    run = lambda net, x: net.b(torch.cat([h := net.a(x), torch.ones_like(h[:, :1])], 1))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(7, 4))


@specimen(least="a b c c.weight/1 d.weight/1")
def positions_counted_from_both_ends() -> Net:
    """What stands before a bound stays, or behind it, if it is counted from the end."""

    def run(net: Any, x: Tensor) -> Tensor:
        h, g = net.a(x), net.b(x)
        return net.d(net.c(h[:, 2:]) * h[:, 1:2] + g[:, -3:-1].mean(1, keepdim=True) + g[:, 1].unsqueeze(1))

    return Net(run, a=conv(3, 9), b=conv(3, 9), c=conv(7, 5), d=conv(5, 4))


@specimen(least=AB)
def a_gated_half_by_an_attribute() -> Net:
    """As in WaveNet; the number counts the first half, whichever half is meant."""
    run = lambda net, x: net.b(torch.tanh((h := net.a(x))[:, : net.n]) * torch.sigmoid(h[:, net.n :]))  # noqa: E731
    return Net(run, a=conv(3, 12), b=conv(6, 4), n=6)


@specimen(least="a b b.weight/1 c.weight/1")
def a_gate_of_as_many_channels_as_the_stream() -> Net:
    """One attribute is the width of several layers: they are cut alike."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        both = net.b(h)
        return net.c(h + torch.tanh(both[:, : net.n]) * torch.sigmoid(both[:, net.n :]))

    return Net(run, a=conv(3, 6), b=conv(6, 12), c=conv(6, 4), n=6)


@specimen(least=AB)
def parts_of_a_size_that_is_reckoned() -> Net:
    """As in selective kernels."""
    run = lambda net, x: net.b(sum(net.a(x).split(net.channels // net.paths, 1)))  # noqa: E731
    return Net(run, a=conv(3, 12), b=conv(6, 4), channels=12, paths=2)


@specimen(pinned={"a.weight": ""})
def blur_of_a_number_of_channels_in_the_code() -> Net:
    run = lambda net, x: net.b(F.conv2d(net.a(x), net.filter, None, 2, 1, 1, 6))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4), filter=parameter(6, 1, 3, 3))


@specimen(pinned={"filter": "cut network fails"})
def blur_of_a_channel_and_ones() -> Net:
    """The code makes as many ones as ever, and PyTorch's convolution of shapes does not mind."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.cat([net.a(x), x.new_ones(x.shape[0], 2, *x.shape[2:])], 1)
        return net.b(F.conv2d(h, net.filter, groups=h.shape[1]))

    return Net(run, a=conv(3, 1), b=conv(3, 4), filter=parameter(3, 1, 3, 3))


# ---------------------------------------------------------------------------------------------- channels and space


@specimen(least=AB)
def channels_into_space() -> Net:
    """Pixel shuffle: a channel of the output is four of the input."""
    return Net(lambda net, x: net.b(F.pixel_shuffle(net.a(x), 2)), a=conv(3, 20), b=conv(5, 4))


@specimen(shapes=SQUARE, least=AB)
def channels_into_space_alike() -> Net:
    return Net(lambda net, x: net.b(F.pixel_shuffle(net.a(x), 2)), a=conv(4, 16), b=conv(4, 4))


@specimen(least=AB)
def space_into_channels() -> Net:
    return Net(lambda net, x: net.b(F.pixel_unshuffle(net.a(x), 2)), a=conv(3, 6), b=conv(24, 4))


@specimen(least="a b b.weight/1 c.weight/1")
def space_into_channels_and_back() -> Net:
    run = lambda net, x: net.c(net.a(x) + F.pixel_shuffle(net.b(F.pixel_unshuffle(net.a(x), 2)), 2))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(24, 24), c=conv(6, 4))


@specimen(least=AB)
def space_into_channels_by_slices() -> Net:
    """As in YOLOv5's focus and Swin's patch merging."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        corners = [h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]]
        return net.b(torch.cat(corners, 1))

    return Net(run, a=conv(3, 6), b=conv(24, 4))


@specimen(shapes=((2, 8, 8, 3),), least=f"{AB} norm b c.weight/1")
def patch_merging() -> Net:
    """Channels last, a norm over four times the channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        h = net.a(x)
        h = h.reshape(b, height // 2, 2, width // 2, 2, -1).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return net.c(net.b(net.norm(h)).flatten(1, 2))

    layers = {"a": nn.Linear(3, 6), "b": nn.Linear(24, 10, bias=False), "c": nn.Linear(10, 4)}
    return Net(run, norm=nn.LayerNorm(24), **layers)


@specimen(least=AB)
def unfolded_patches() -> Net:
    """im2col by hand: nine rows for each channel."""
    run = lambda net, x: net.b(F.unfold(net.a(x), 3).transpose(1, 2))  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(54, 4))


@specimen(least=AB)
def folded_patches() -> Net:
    run = lambda net, x: net.b(F.fold(net.a(x).flatten(2), (9, 9), 2))  # noqa: E731
    return Net(run, a=conv(3, 24), b=conv(6, 4))


def written(write: Callable[[Any, int, Tensor], None]) -> Net:
    """A tensor that the forward makes, writes to slice by slice, and flattens."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        out = torch.zeros(h.shape[0], 3, *h.shape[1:], dtype=h.dtype)
        for k in range(3):
            write(out, k, h * (k + 1))
        return net.b(out.flatten(1, 2))

    return Net(run, a=conv(3, 6), b=conv(18, 4))


@specimen(least=AB)
def written_slice_by_slice() -> Net:
    return written(lambda out, k, h: out.__setitem__((slice(None), k), h))


@specimen(least=AB)
def added_slice_by_slice() -> Net:
    return written(lambda out, k, h: out.__setitem__((slice(None), k), out[:, k] + h))


@specimen(least=AB)
def added_to_zeros() -> Net:
    return written(lambda out, k, h: out.add_(h[:, None] * k))


@specimen(least=AB)
def folded_in_the_batch() -> Net:
    """The frames of each channel, as of a source, are put together by themselves."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        b, c, height, width = h.shape
        h = F.fold(h.reshape(b * c, height, width), (1, height + width - 1), (1, height))
        return net.b(h.reshape(b, c, 1, -1))

    return Net(run, a=conv(3, 6), b=conv(6, 4, 1))


@specimen(least=AB)
def unfolded_in_the_batch() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        b, c, height, width = h.shape
        return net.b(F.unfold(h.reshape(b * c, 1, height, width), 2).reshape(b, c, 4, -1))

    return Net(run, a=conv(3, 6), b=conv(6, 4, 1))


@specimen(least="a mix b.weight/1")
def unfolded_and_folded() -> Net:
    """As in MobileViT: linear layers see pixels of one place in all patches."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        b, c, height, width = h.shape
        h = h.reshape(b * c * height // 2, 2, width // 2, 2).transpose(1, 2)
        h = net.mix(h.reshape(b, c, -1, 4).transpose(1, 3)).transpose(1, 3)
        h = h.reshape(b * c * height // 2, width // 2, 2, 2).transpose(1, 2).reshape(b, c, height, width)
        return net.b(h + net.short(x))

    return Net(run, a=conv(3, 6), mix=nn.Linear(6, 6), short=conv(3, 6), b=conv(6, 4))


# ---------------------------------------------------------------------------------------------- moved in space


@specimen(least=AB)
def moved_in_space() -> Net:
    return between(lambda h: h.roll((1, -2), (2, 3)).flip(2).transpose(2, 3).rot90(1, (2, 3)))


@specimen(shapes=SQUARE, least=AB)
def moved_in_space_alike() -> Net:
    run = lambda net, x: net.b(net.a(x).roll((1, -2), (2, 3)).flip(2).transpose(2, 3).rot90(1, (2, 3)))  # noqa: E731
    return Net(run, a=conv(4, 4), b=conv(4, 4))


@specimen(least="a b.weight/1 offset.weight/1")
def sampled_at_points() -> Net:
    """As in spatial transformers and optical flow: where to sample comes out of the channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        grid = net.offset(h).permute(0, 2, 3, 1).tanh()
        return net.b(F.grid_sample(h, grid, align_corners=False))

    return Net(run, a=conv(3, 6), offset=conv(6, 2), b=conv(6, 4))


@specimen(least="a b c.weight/1 b.weight/1")
def resized_and_joined() -> Net:
    """As in a feature pyramid."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        low = net.b(F.avg_pool2d(h, 2))
        return net.c(h + F.interpolate(low, size=h.shape[-2:], mode="bicubic") + F.interpolate(low, scale_factor=2))

    return Net(run, a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))


@specimen(least="a b b.weight/1 c.weight/1")
def padded_to_a_multiple() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        more = -h.shape[-1] % 3
        h = F.pad(h, (0, more, 0, more), mode="replicate")
        return net.c(net.b(F.max_pool2d(h, 3))[..., :2])

    return Net(run, a=conv(3, 6), b=conv(6, 5, 1), c=conv(5, 4, 1))


# ---------------------------------------------------------------------------------------------- indexed by a buffer


@specimen(shapes=((2, 5, 7),), least=AB)
def tokens_gathered_by_a_buffer() -> Net:
    """Tokens, not channels, are picked; the index has as many entries as there are channels."""
    net = Net(lambda net, x: net.b(net.a(x)[:, net.order]), a=nn.Linear(7, 6), b=nn.Linear(6, 4))
    net.register_buffer("order", torch.tensor([4, 2, 0, 1, 3, 3]))
    return net


@specimen()
def channels_permuted_by_a_buffer() -> Net:
    """Pinned, or cut together with the index."""
    net = between(lambda h: h)
    net.register_buffer("order", torch.tensor([3, 1, 5, 0, 2, 4]))
    net.run = lambda net, x: net.b(net.a(x).index_select(1, net.order))
    return net


@specimen(shapes=((2, 5, 7),), least=AB)
def best_tokens_only() -> Net:
    """As in token pruning: which tokens stay depends on the data."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        best = net.score(x).topk(3, dim=1).indices
        return net.b(h.gather(1, best.expand(-1, -1, h.shape[-1])))

    return Net(run, a=nn.Linear(7, 6), score=nn.Linear(7, 1), b=nn.Linear(6, 4))


@specimen(least=AB)
def pixels_written_by_a_mask() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x).permute(0, 2, 3, 1)
        h = torch.where((x.mean(1) > 0)[..., None], h, net.token)
        return net.b(h.permute(0, 3, 1, 2))

    return Net(run, a=conv(3, 6), b=conv(6, 4), token=parameter(6))
