"""Blocks of random networks that normalise, gate, recur, rearrange and share. `generator.py` holds the plainer ones.

Every block maps an image of `draw.width` channels to one of the width that it leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from generator_attention import (
    attention,
    attention_over_pooled_channels,
    joined,
    packed_attention,
    token_norm,
    tokens_of,
    windows,
)  # fmt: skip
from specimen import Net, parameter
from torch import Tensor, nn
from torch.nn.utils import parametrizations

if TYPE_CHECKING:
    from generator import Draw

Run = Callable[[Any, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------- normalised


def layer_norms(draw: Draw) -> nn.Module:
    """Over the channels of each pixel: packed between permutations, or by hand."""
    last = lambda net, x: net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731

    def by_hand(net: Any, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        return net.scale[:, None, None] * ((x - u) / (s + 1e-3).sqrt()) + net.shift[:, None, None]

    def root_mean_square(net: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3) * net.scale[:, None, None]

    def response(net: Any, x: Tensor) -> Tensor:
        g = x.norm(dim=(2, 3), keepdim=True)
        return x + net.scale[:, None, None] * (x * (g / (g.mean(1, keepdim=True) + 1e-3))) + net.shift[:, None, None]

    def lengths(net: Any, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-3) * net.scale.view(1, -1, 1, 1)

    kinds = (
        (last, nn.LayerNorm),
        (last, nn.RMSNorm),
        *((run, None) for run in (by_hand, root_mean_square, response, lengths)),
    )
    run, norm = draw.random.choice(kinds)
    if norm:
        return Net(run, norm=norm(draw.width))
    return Net(run, scale=parameter(draw.width), shift=parameter(draw.width))


def group_norms(draw: Draw) -> nn.Module:
    """A convolution, and its channels normalised in groups."""
    groups, narrow = draw.random.choice((2, 3, 4)), draw.random.choice((1, 2, 3, 4))
    before, draw.width = draw.width, groups * narrow
    layer = nn.Conv2d(before, draw.width, 1)
    return nn.Sequential(layer, nn.GroupNorm(draw.random.choice((1, groups, groups, draw.width)), draw.width))


def computed_weights(draw: Draw) -> nn.Module:
    """A weight that is standardised, by hand or by a batch norm, divided by its largest singular value, or held as
    length and direction."""
    before, draw.width = draw.width, draw.new_width()
    groups = 2 if before % 2 == draw.width % 2 == 0 and draw.random.random() < 0.5 else 1
    layer = nn.Conv2d(before, draw.width, 3, padding=1, groups=groups)
    kind = draw.random.choice(("length and direction", "singular value", "by hand", "by a batch norm"))
    if kind == "length and direction":
        return parametrizations.weight_norm(layer)
    if kind == "singular value":
        return parametrizations.spectral_norm(layer)

    def run(net: Any, x: Tensor) -> Tensor:
        w = net.layer.weight
        if kind == "by hand":
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        else:
            rows = w.reshape(1, net.layer.out_channels, -1)
            w = F.batch_norm(rows, None, None, training=True, eps=1e-3).reshape_as(w)
        return F.conv2d(x, w, net.layer.bias, padding=1, groups=net.layer.groups)

    return Net(run, layer=layer)


# ---------------------------------------------------------------------------------------------- pairs of vectors


def bilinear_form(draw: Draw) -> nn.Module:
    """Of each pixel with itself, or with another layer's output."""
    hidden, other = draw.new_width(), draw.new_width()
    two = draw.random.random() < 0.5

    def run(net: Any, x: Tensor) -> Tensor:
        a = net.a(x)
        return net.c(net.form(a, net.b(x) if two else a).tanh())

    layers = {"a": nn.Linear(draw.width, hidden), "c": nn.Linear(draw.width + 1, draw.width)}
    layers |= {"b": nn.Linear(draw.width, other)} if two else {}
    return joined(draw, Net(run, form=nn.Bilinear(hidden, other if two else hidden, draw.width + 1), **layers))


def distances(draw: Draw) -> nn.Module:
    """From learned centres, as features or as weights of other values; or of pixels from each other, as weights."""
    centres, power = draw.new_width(), draw.random.choice((2.0, 2.0, 1.0))
    runs: tuple[Run, ...] = (
        lambda net, x: net.c((-torch.cdist(net.a(x), net.centres, power)).exp()),
        lambda net, x: (-torch.cdist(net.a(x), net.centres, power)).softmax(-1) @ net.values,
        lambda net, x: (-torch.cdist(net.a(x), x, power)).softmax(-1) @ x,
    )
    layers = {"a": nn.Linear(draw.width, draw.width), "c": nn.Linear(centres, draw.width)}
    values = {"centres": parameter(centres, draw.width), "values": parameter(centres, draw.width)}
    return joined(draw, Net(draw.random.choice(runs), **layers, **values))


# ---------------------------------------------------------------------------------------------- gated, recurrent


def gated_unit(draw: Draw) -> nn.Module:
    """One layer whose halves are multiplied, or two layers, with a norm of the product."""
    width = draw.width
    hidden, two = draw.new_width(), draw.random.random() < 0.4
    act = draw.random.choice((torch.sigmoid, F.silu, torch.tanh))

    def run(net: Any, x: Tensor) -> Tensor:
        left, right = (net.a(x), net.b(x)) if two else net.a(x).chunk(2, dim=-1)
        return net.c(net.norm(act(left) * right))

    layers = {"a": nn.Linear(width, hidden * (2 - two)), "c": nn.Linear(hidden, width)}
    layers |= {"b": nn.Linear(width, hidden)} if two else {}
    return joined(draw, Net(run, norm=token_norm(draw, hidden), **layers))


def gated_map(draw: Draw) -> nn.Module:
    before, draw.width = draw.width, draw.new_width()
    return nn.Sequential(nn.Conv2d(before, 2 * draw.width, 3, padding=1), nn.GLU(dim=1))


def recurrent(draw: Draw) -> nn.Module:
    """Along every fourth pixel of each row."""
    hidden, ways, layers = draw.new_width(), draw.random.choice((1, 1, 2)), draw.random.choice((1, 1, 2))
    kind = draw.random.choice((nn.LSTM, nn.GRU, nn.RNN))
    options = {"proj_size": hidden - 1} if kind is nn.LSTM and hidden > 2 and draw.random.random() < 0.3 else {}
    rnn = kind(draw.width, hidden, num_layers=layers, bidirectional=ways == 2, batch_first=True, **options)
    out, draw.width = ways * options.get("proj_size", hidden), draw.new_width()

    def run(net: Any, x: Tensor) -> Tensor:
        rows = x[..., ::4].permute(0, 2, 3, 1).flatten(0, 1)
        return net.out(net.rnn(rows)[0]).unflatten(0, (x.shape[0], -1)).permute(0, 3, 1, 2)

    return Net(run, rnn=rnn, out=nn.Linear(out, draw.width))


def recurrent_cell(draw: Draw) -> nn.Module:
    """A cell in a loop over the columns of the pooled image; its last state is added to every pixel."""
    cell = draw.random.choice((nn.GRUCell, nn.RNNCell, nn.LSTMCell))(draw.width, draw.new_width())

    def run(net: Any, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], net.cell.hidden_size)
        state: Any = (zeros, zeros) if isinstance(net.cell, nn.LSTMCell) else zeros
        for column in F.adaptive_avg_pool2d(x, (1, 4)).squeeze(2).unbind(-1):
            state = net.cell(column, state)
        last = state[0] if isinstance(state, tuple) else state
        return x + net.out(last)[..., None, None]

    return Net(run, cell=cell, out=nn.Linear(cell.hidden_size, draw.width))


def remembered(draw: Draw) -> nn.Module:
    """A recurrence by hand over four quarters of the rows: what comes in is joined to a state, of zeros at first."""
    state = draw.new_width()

    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], net.state, x.shape[2] // 4, x.shape[3], dtype=x.dtype, device=x.device)
        for part in x.split(x.shape[2] // 4, 2)[:4]:
            z, c = net.gates(torch.cat((part, h) if net.first else (h, part), 1)).chunk(2, 1)
            h = h + z.sigmoid() * (c.tanh() - h)
        return x + net.out(h).mean((2, 3), keepdim=True)

    return Net(
        run,
        state=state,
        first=draw.random.random() < 0.5,
        gates=nn.Conv2d(draw.width + state, 2 * state, 1),
        out=nn.Conv2d(state, draw.width, 1),
    )


def blurred(draw: Draw) -> nn.Module:
    """A filter for each channel, or one for all, given to a function with the number of channels."""
    runs: tuple[Run, ...] = (
        lambda net, x: F.conv2d(x, net.filter, padding=1, groups=net.channels),
        lambda net, x: F.conv2d(x, net.filter, padding=1, groups=x.shape[1]),
        lambda net, x: F.conv2d(x, net.filter[:1].repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1]),
        lambda net, x: F.conv2d(x, net.filter[:1].expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1]),
    )
    return Net(draw.random.choice(runs), channels=draw.width, filter=parameter(draw.width, 1, 3, 3))


def mixed_tokens(draw: Draw) -> nn.Module:
    """As in an MLP-mixer: linear layers along the places of a pooled image."""
    hidden = draw.new_width()

    def run(net: Any, x: Tensor) -> Tensor:
        t = net.norm(tokens_of(F.adaptive_avg_pool2d(x, 3))).transpose(1, 2)
        return x + F.interpolate(net.two(F.gelu(net.one(t))).unflatten(2, (3, 3)), size=x.shape[2:])

    return Net(run, norm=token_norm(draw, draw.width), one=nn.Linear(9, hidden), two=nn.Linear(hidden, 9))


# ---------------------------------------------------------------------------------------------- rearranged, shared


def pixel_shuffled(draw: Draw) -> nn.Module:
    before, draw.width = draw.width, draw.new_width()
    if draw.random.random() < 0.5:
        layer = nn.Conv2d(before, 4 * draw.width, 3, stride=2, padding=1)
        return nn.Sequential(layer, nn.PixelShuffle(2))
    return nn.Sequential(nn.AdaptiveAvgPool2d(12), nn.PixelUnshuffle(2), nn.Conv2d(4 * before, draw.width, 1))


def shuffled_groups(draw: Draw) -> nn.Module:
    """As in ShuffleNet: grouped, shuffled, grouped."""
    groups = draw.random.choice((2, 3))
    inner = groups * draw.random.choice((2, groups, 4))
    first, draw.width = draw.to(inner), groups * draw.random.choice((1, 2))
    return nn.Sequential(first, nn.ChannelShuffle(groups), draw.conv(inner, draw.width, groups=groups))


def split_and_shuffled(draw: Draw) -> nn.Module:
    width = draw.even_width()
    first = draw.to(width)

    def run(net: Any, x: Tensor) -> Tensor:
        one, two = net.first(x).chunk(2, dim=1)
        x = torch.cat((one, net.branch(two)), dim=1)
        b, c, h, w = x.shape
        return x.reshape(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w)

    return Net(run, first=first, branch=draw.conv(width // 2, width // 2))


def part_by_part(draw: Draw) -> nn.Module:
    """As in Res2Net."""
    part, count = draw.random.choice((1, 2, 3, 4)), draw.random.choice((2, 3))
    first = draw.to(part * count)

    def run(net: Any, x: Tensor) -> Tensor:
        parts = net.first(x).chunk(count, 1)
        out = [parts[0]]
        for piece, layer in zip(parts[1:], net.layers, strict=True):
            out.append(layer(piece + out[-1]))
        return torch.cat(out, 1)

    return Net(run, first=first, layers=nn.ModuleList(draw.conv(part, part) for _ in range(count - 1)))


def ghosts(draw: Draw) -> nn.Module:
    inner = draw.new_width()
    before, draw.width = draw.width, 2 * inner

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.primary(x)
        return torch.cat([h, net.cheap(h)], dim=1)[:, : net.oup]

    primary, cheap = draw.conv(before, inner, 1), draw.conv(inner, inner, 3, groups=inner)
    return Net(run, oup=2 * inner, primary=primary, cheap=cheap)


def tied_code(draw: Draw) -> nn.Module:
    """A linear layer and back by its transposed weight."""
    weight = parameter(draw.new_width(), draw.width)
    run = lambda net, x: F.linear(F.linear(x, net.weight).tanh(), net.weight.t())  # noqa: E731
    return joined(draw, Net(run, weight=weight))


def one_attention_twice(draw: Draw) -> nn.Module:
    """Weights shared between two places of a stream, a norm between."""
    again, norm = attention(draw), nn.BatchNorm2d(draw.width)
    return Net(lambda net, x: net.again(net.norm(net.again(x))), again=again, norm=norm)


def refined(draw: Draw) -> nn.Module:
    """The same layer refines its own output."""
    times = draw.random.choice((2, 3))

    def run(net: Any, x: Tensor) -> Tensor:
        for _ in range(times):
            x = x + net.step(x).tanh()
        return x

    return Net(run, step=draw.conv(draw.width, draw.width))


def constants(draw: Draw) -> nn.Module:
    """Something without a weight that the first generation of blocks has not."""
    width = draw.width
    runs: tuple[Run, ...] = (
        lambda net, x: x.cos() + 1,
        lambda net, x: x / (1 + x.abs().mean(1, keepdim=True)),
        lambda net, x: x * x.softmax(1),
        lambda net, x: x - x.amax((1, 2, 3), keepdim=True),
        lambda net, x: x.clamp(-1, 2).roll((1, -2), (2, 3)).rot90(1, (2, 3)),
        lambda net, x: torch.stack([x, x.flip(2)], 1).softmax(1).sum(1) * x,
        lambda net, x: torch.stack([x, x * 2], 2).flatten(1, 2),
        lambda net, x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2),
        lambda net, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1),
        lambda net, x: x.reshape(-1, width, x.shape[2] * x.shape[3]).unflatten(2, x.shape[2:]),
    )
    chosen = draw.random.randrange(len(runs))
    draw.width = {6: 2 * width, 7: 2 * width}.get(chosen, width)
    return Net(runs[chosen])


MORE_BLOCKS = (
    attention, attention, attention, attention, packed_attention, windows, attention_over_pooled_channels,
    layer_norms, layer_norms, layer_norms, group_norms, group_norms, computed_weights, gated_unit, gated_unit,
    gated_map, recurrent, recurrent, recurrent_cell, remembered, blurred, mixed_tokens, bilinear_form, distances,
    pixel_shuffled, shuffled_groups, split_and_shuffled,
    part_by_part, ghosts, tied_code, one_attention_twice, refined, constants, constants,
)  # fmt: skip
