"""Random networks from a seed: blocks of every kind that the zoo knows, one behind another, with random widths.

The convolutional blocks are here, those that attend in `generator_attention.py`, the others in `generator_blocks.py`.
A seed gives the same network in every process; a change of the blocks gives other networks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from generator_attention import tokens_of
from generator_blocks import MORE_BLOCKS
from promises import relative_difference
from specimen import Net, parameter
from torch import Tensor, nn

Block = Callable[["Draw"], nn.Module]


class Draw:
    """What a block may ask: `width`, the channels that come in, and random choices. It sets the width it leaves."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.width = 3
        self.size = 12

    def new_width(self) -> int:
        return self.random.choice((1, 2, 3, 4, 5, 6, 8, 8, 12))

    def even_width(self) -> int:
        return self.random.choice((4, 8, 12))

    def conv(self, i: int, o: int, kernel: int | None = None, **options: int) -> nn.Sequential:
        """A convolution, and perhaps a normalisation and an activation, in a random order."""
        kernel = kernel or self.random.choice((1, 3))
        parts: list[nn.Module] = [
            nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=self.random.random() < 0.5, **options)
        ]
        extras = [nn.BatchNorm2d(o)] * (self.random.random() < 0.6) + [self.activation(o)] * (
            self.random.random() < 0.7
        )
        self.random.shuffle(extras)
        return nn.Sequential(*parts, *extras)

    def activation(self, width: int) -> nn.Module:
        kinds = (nn.ReLU(inplace=True), nn.Sigmoid(), nn.SiLU(), nn.PReLU(width), nn.Hardswish(), nn.Softplus())
        return self.random.choice(kinds)

    def to(self, width: int) -> nn.Module:
        """Whatever comes in, `width` channels come out."""
        before, self.width = self.width, width
        return self.conv(before, width)


# ---------------------------------------------------------------------------------------------- blocks


def plain(draw: Draw) -> nn.Module:
    return draw.to(draw.new_width())


def residual(draw: Draw) -> nn.Module:
    width = draw.new_width()
    first = draw.to(width)
    branches = [draw.conv(width, width) for _ in range(draw.random.randint(1, 3))]

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        for branch in net.branches:
            x = x + branch(x)
        return x

    return Net(run, first=first, branches=nn.ModuleList(branches))


def bottleneck(draw: Draw) -> nn.Module:
    """With a projection on the shortcut."""
    i, o, inner = draw.width, draw.new_width(), draw.new_width()
    draw.width = o
    body = nn.Sequential(draw.conv(i, inner), draw.conv(inner, inner), draw.conv(inner, o))
    return Net(lambda net, x: F.relu(net.body(x) + net.short(x)), body=body, short=draw.conv(i, o, 1))


def dense(draw: Draw) -> nn.Module:
    layers = []
    for _ in range(draw.random.randint(1, 3)):
        growth = draw.new_width()
        layers.append(draw.conv(draw.width, growth))
        draw.width += growth

    def run(net: Net, x: Tensor) -> Tensor:
        for layer in net.layers:
            x = torch.cat([layer(x), x] if net.front else [x, layer(x)], dim=1)
        return x

    net = Net(run, layers=nn.ModuleList(layers))
    net.front = draw.random.random() < 0.5
    return net


def inception(draw: Draw) -> nn.Module:
    widths = [draw.new_width() for _ in range(draw.random.randint(2, 3))]
    branches = nn.ModuleList(draw.conv(draw.width, width) for width in widths)
    draw.width = sum(widths)
    return Net(lambda net, x: torch.cat([branch(x) for branch in net.branches], 1), branches=branches)


def grouped(draw: Draw) -> nn.Module:
    """Many narrow groups or few wide ones, behind a layer of its own or the one before."""
    groups = draw.random.choice((2, 2, 3, 4, 6))
    narrow = draw.random.choice((1, 2, 3, 4))
    first = draw.to(groups * narrow)
    draw.width = groups * draw.random.choice((1, 2, 3))
    return nn.Sequential(first, draw.conv(groups * narrow, draw.width, groups=groups))


def depthwise(draw: Draw) -> nn.Module:
    width = draw.width
    draw.width = width * draw.random.choice((1, 1, 2))
    return draw.conv(width, draw.width, groups=width)


def inverted_residual(draw: Draw) -> nn.Module:
    width = draw.new_width()
    first, inner = draw.to(width), draw.new_width()
    body = nn.Sequential(draw.conv(width, inner, 1), draw.conv(inner, inner, 3, groups=inner))
    draw.width = inner
    squeeze = squeeze_excite(draw)
    draw.width = width
    return Net(
        lambda net, x: (lambda h: h + net.project(net.squeeze(net.body(h))))(net.first(x)),
        first=first, body=body, squeeze=squeeze, project=draw.conv(inner, width, 1),
    )  # fmt: skip


def squeeze_excite(draw: Draw) -> nn.Module:
    inner = draw.new_width()
    if draw.random.random() < 0.5:
        gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(draw.width, inner, 1), nn.ReLU(), nn.Conv2d(inner, draw.width, 1)
        )
        return Net(lambda net, x: x * net.gate(x).sigmoid(), gate=gate)
    gate = nn.Sequential(nn.Linear(draw.width, inner), nn.ReLU(), nn.Linear(inner, draw.width))
    return Net(lambda net, x: x * net.gate(x.mean((2, 3))).sigmoid().view(*x.shape[:2], 1, 1), gate=gate)


def shared(draw: Draw) -> nn.Module:
    """One module, called two or three times, with a normalisation between."""
    width = draw.new_width()
    first, times = draw.to(width), draw.random.randint(2, 3)

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        for _ in range(times):
            x = net.norm(net.again(x)) + 0.5
        return x

    return Net(run, first=first, again=draw.conv(width, width), norm=nn.BatchNorm2d(width))


def tied(draw: Draw) -> nn.Module:
    """Two convolutions of one weight on two paths."""
    i, draw.width = draw.width, draw.new_width()
    net = Net(
        lambda net, x: net.a(x).relu() - net.b(x.tanh()), a=nn.Conv2d(i, draw.width, 1), b=nn.Conv2d(i, draw.width, 1)
    )
    net.b.weight = net.a.weight
    return net


def padded_shortcut(draw: Draw) -> nn.Module:
    """Zeros beside the channels of the shortcut, widths written as numbers."""
    more = draw.random.randint(1, 3)
    i, draw.width = draw.width, draw.width + 2 * more
    body = draw.conv(i, draw.width)
    return Net(lambda net, x: F.pad(x, (0, 0, 0, 0, more, more)) + net.body(x), body=body)


def shuffled(draw: Draw) -> nn.Module:
    first, groups = draw.to(draw.even_width()), 2

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        b, c, h, w = x.shape
        return x.reshape(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return Net(run, first=first)


def split(draw: Draw) -> nn.Module:
    """Half of the channels go through a layer, half do not."""
    width = draw.even_width()
    first = draw.to(width)

    def run(net: Net, x: Tensor) -> Tensor:
        left, right = net.first(x).chunk(2, dim=1)
        return torch.cat([net.body(left), right], dim=1)

    return Net(run, first=first, body=draw.conv(width // 2, width // 2))


def gated_half(draw: Draw) -> nn.Module:
    """As in WaveNet: one half of the channels gates the other; an attribute says where the second half begins.

    Or every second channel gates the one before it, as in gpt-oss.
    """
    width = draw.width if draw.random.random() < 0.5 else draw.new_width()
    net = Net(None, conv=nn.Conv2d(draw.width, 2 * width, 1), last=draw.conv(width, draw.width), n=width)  # type: ignore[arg-type]
    by, added = draw.random.choice(("slices", "parts", "reckoned", "turns")), draw.random.random() < 0.5

    def run(net: Net, x: Tensor) -> Tensor:
        h, n = net.conv(x), net.n
        if by == "turns":
            a, b = h[:, ::2], h[:, 1::2]
        else:
            a, b = (h[:, :n], h[:, n:]) if by == "slices" else h.split(n if by == "parts" else 2 * n // 2, dim=1)
        y = net.last(torch.tanh(a) * torch.sigmoid(b))
        return x + y if added else y

    net.run = run
    return net


def between(draw: Draw) -> nn.Module:
    """Something without a weight of its own."""
    width = draw.width
    runs: tuple[Callable[[Net, Tensor], Tensor], ...] = (
        lambda net, x: x.flip(1),
        lambda net, x: x.roll(1, 1),
        lambda net, x: x.roll(2, 3),
        lambda net, x: x.sigmoid() + 1,
        lambda net, x: x + x.flip(1),
        lambda net, x: x.repeat(1, 2, 1, 1)[:, :, 1:],
        lambda net, x: x - x.mean((2, 3), keepdim=True),
        lambda net, x: x.softmax(1),
        lambda net, x: x * torch.ones(width, 1, 1, dtype=x.dtype),
        lambda net, x: x.permute(0, 2, 3, 1).exp().permute(0, 3, 1, 2),
        lambda net, x: F.pad(x, (1, 0, 0, 1), value=2.0),
        lambda net, x: F.interpolate(x, size=(7, 9), mode="bilinear"),
        lambda net, x: torch.where(x > 0, x, 0.1 * x.flip(3)),
        lambda net, x: torch.cat([x, x.new_ones(x.shape[0], 2, *x.shape[2:])], 1),
        lambda net, x: x.contiguous().view(x.shape[0], width, -1, x.shape[-1]),
    )
    chosen = draw.random.randrange(len(runs))
    draw.width = {5: 2 * width, 13: width + 2}.get(chosen, width)
    return Net(runs[chosen])


def scaled(draw: Draw) -> nn.Module:
    scale = nn.Parameter(torch.randn(draw.width, 1, 1))
    return Net(lambda net, x: net.scale * x + net.scale.sigmoid(), scale=scale)


def pooled(draw: Draw) -> nn.Module:
    return draw.random.choice((nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(6)))


def normalised(draw: Draw) -> nn.Module:
    kinds = (nn.BatchNorm2d(draw.width), nn.GroupNorm(1, draw.width), nn.InstanceNorm2d(draw.width, affine=True))
    return draw.random.choice(kinds)


def channel_attention(draw: Draw) -> nn.Module:
    """A convolution along the channels."""
    run = lambda net, x: x * net.mix(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]  # noqa: E731
    return Net(run, mix=nn.Conv1d(1, 1, 3, padding=1))


def upsampled(draw: Draw) -> nn.Module:
    """Down, up again by a transposed convolution, and joined, as in a U-Net."""
    i, inner, draw.width = draw.width, draw.new_width(), draw.width + 3
    down = nn.Conv2d(i, inner, 2, stride=2)
    up = nn.ConvTranspose2d(inner, 3, 2, stride=2)

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.up(net.down(x).relu())
        return torch.cat([x, F.interpolate(y, size=x.shape[2:])], 1)

    return Net(run, down=down, up=up)


BLOCKS: tuple[Block, ...] = (
    plain, plain, residual, residual, bottleneck, dense, dense, inception, grouped, grouped, depthwise, depthwise,
    inverted_residual, squeeze_excite, shared, tied, padded_shortcut, shuffled, split, gated_half, between, between,
    between, scaled, pooled, normalised, channel_attention, upsampled, *MORE_BLOCKS,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- whole networks

SMALL = 1e-3
"""The least that normalisers add to a variance: a constant channel, normalised again and again, is all rounding."""


def tail(draw: Draw) -> nn.Module:
    """From the map to five scores."""
    pool, hidden = nn.AdaptiveAvgPool2d(2), draw.new_width()
    flat = 4 * draw.width
    heads: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.Sequential(pool, nn.Flatten(), nn.Linear(flat, 5)),
        lambda: nn.Sequential(
            pool, nn.Flatten(), nn.Linear(flat, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 5)
        ),
        lambda: Net(lambda net, x: net.fc(x.mean((2, 3))), fc=nn.Linear(draw.width, 5)),
        lambda: Net(lambda net, x: net.fc(pool(x).contiguous().view(-1, flat)), fc=nn.Linear(flat, 5)),
        lambda: Net(lambda net, x: net.fc(x.flatten(2).transpose(1, 2)).amax(1), fc=nn.Linear(draw.width, 5)),
        lambda: nn.Conv2d(draw.width, 5, 1),
        lambda: Net(lambda net, x: {"map": net.fc(x), "features": x}, fc=nn.Conv2d(draw.width, 5, 1)),
        lambda: Net(
            lambda net, x: F.linear(F.normalize(x.mean((2, 3)), eps=1e-3), F.normalize(net.classes, eps=1e-3)),
            classes=parameter(5, draw.width),
        ),
        lambda: Net(
            lambda net, x: net.fc((net.score(tokens_of(x)).softmax(1) * tokens_of(x)).sum(1)),
            score=nn.Linear(draw.width, 1), fc=nn.Linear(draw.width, 5),
        ),
        lambda: Net(
            lambda net, x: net.fc(net.rnn(tokens_of(F.adaptive_avg_pool2d(x, (1, 4))))[1][0][-1]),
            rnn=nn.LSTM(draw.width, hidden, batch_first=True), fc=nn.Linear(hidden, 5),
        ),
        lambda: with_class_token(draw),
    )  # fmt: skip
    return draw.random.choice(heads)()


def with_class_token(draw: Draw) -> nn.Module:
    """The scores are read off a token of its own, after one layer of attention with position embeddings."""

    def run(net: Net, x: Tensor) -> Tensor:
        tokens = tokens_of(F.adaptive_avg_pool2d(x, 3))
        tokens = torch.cat((net.token.expand(x.shape[0], -1, -1), tokens), 1) + net.position
        q, k, v = net.qkv(tokens).chunk(3, -1)
        return net.fc(net.last(tokens + (q @ k.mT).softmax(-1) @ v)[:, 0])

    layers = {"qkv": nn.Linear(draw.width, 3 * draw.width), "fc": nn.Linear(draw.width, 5)}
    tables = {"token": parameter(1, 1, draw.width), "position": parameter(1, 10, draw.width)}
    return Net(run, last=nn.LayerNorm(draw.width), **tables, **layers)


def network(seed: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, list[str]]:
    """The network of this seed, in evaluation mode with random statistics, and the names of its blocks.

    The first whose blocks leave the next ones enough pixels, and whose output is no mere rounding.
    """
    torch.manual_seed(seed)
    for attempt in range(seed, seed + 10**9, 10**8):
        draw = Draw(attempt)
        chosen = [draw.random.choice(BLOCKS) for _ in range(draw.random.randint(2, 6))]
        model = nn.Sequential(plain(draw), *(block(draw) for block in chosen), plain(draw), tail(draw)).to(dtype).eval()
        if output(model, image(seed, dtype)) is not None:
            initialise(model)
            if is_steady(model, image(seed, dtype)):
                break
    return model, [block.__name__ for block in chosen]


def initialise(model: nn.Module) -> None:
    """Nothing at its initial value; normalisers that do not blow rounding up."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (module.running_mean, -1.0),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -1.0),
            ):
                nn.init.uniform_(tensor, low, 1.5)
    for weight in model.parameters():
        if weight.min() == weight.max():
            nn.init.uniform_(weight, 0.5, 1.5)
    for module in model.modules():
        if getattr(module, "eps", 1) is None or getattr(module, "eps", 1) < SMALL:
            module.eps = SMALL


def output(model: nn.Module, x: Tensor) -> Any:
    """None where it does not run."""
    try:
        with torch.no_grad():
            return model(x)
    except (RuntimeError, ValueError):  # the latter for a batch norm of single values
        return None


def is_steady(model: nn.Module, x: Tensor) -> bool:
    """Whether a change of the input in its last digits is still a small one in the output."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    eps = torch.finfo(x.dtype).eps
    steady = True
    for training in (True, False):
        outs = []
        for scale in (1, 1 + 1e3 * eps):
            torch.manual_seed(0)
            outs.append(output(model.train(training), x * scale))
            model.load_state_dict(state)
        steady &= any(out is None for out in outs) or relative_difference(*outs) < 1e9 * eps
    return steady


def image(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)
