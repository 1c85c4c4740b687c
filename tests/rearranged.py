"""Channels moved into space and back, shuffled, sliced, indexed, sampled, repeated. See `specimen.py`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
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


@specimen(least=AB)
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


@specimen(shapes=([4, 5],), least="bag.weight/1 a a.weight/1 b.weight/1")
def bag_of_words() -> Net:
    run = lambda net, words: net.b(net.a(net.bag(words)).relu())  # noqa: E731
    return Net(run, bag=nn.EmbeddingBag(10, 6, mode="mean"), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
