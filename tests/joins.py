"""Small networks in which several layers meet, or are grouped, or shared; part of the zoo. See `specimen.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from specimen import IMAGE, Net, conv, norm_places, parameter, places, registry
from torch import Tensor, nn

from models.resnet import PaddedShortcut

JOINS, specimen = registry()

# ---------------------------------------------------------------------------------------------- joined by addition


@specimen({places("a", "b", "c.weight/1", "b.weight/1"): 6})
def residual() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(h + net.b(h).relu())

    return Net(run, a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))


@specimen(
    {
        places("a", "b", "b.weight/1", "c.weight/1"): 6,
        places("b", "c.weight/1", "pad.before/1"): 2,
        places("b", "c.weight/1", "pad.after/1"): 2,
    }
)
def shortcut_with_padding_of_its_own() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.pad(h) + net.b(h))

    return Net(run, a=conv(3, 6), b=conv(6, 10, stride=2), pad=PaddedShortcut(6, 10), c=conv(10, 4))


@specimen({places("a", "b", "c.weight/1", "b.weight/1"): 6}, {"b.weight": "belong to no channel"})
def shortcut_with_literal_padding() -> Net:
    """The channels that zeros are added to stay; the six of the shortcut are one with those in the middle of b."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + net.b(h))

    return Net(run, a=conv(3, 6), b=conv(6, 10, stride=2), c=conv(10, 4))


@specimen({}, {"a.weight": "fixed size"})
def input_added_to_features() -> Net:
    return Net(lambda net, x: net.b(net.a(x) + x), a=conv(3, 3), b=conv(3, 4))


@specimen({places("a", "b.weight/1"): 6})
def mask_over_space() -> Net:
    return Net(lambda net, x: net.b(net.a(x) * (x.mean(1, keepdim=True) > 0)), a=conv(3, 6), b=conv(6, 4))


@specimen({places("a", "b.weight/1"): 6})
def learned_mask_over_space() -> Net:
    return Net(lambda net, x: net.b(net.a(x) * net.m(x).sigmoid()), a=conv(3, 6), m=conv(3, 1), b=conv(6, 4))


# ---------------------------------------------------------------------------------------------- joined by concatenation


@specimen({places("a", "b.weight/1", "c.weight/1"): 6, places("b", "c.weight/1"): 5})
def dense_block() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        a = net.a(x)
        return net.c(torch.cat([a, net.b(a)], dim=1))

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(11, 4))


@specimen({places("a", "b.weight/1"): 6})
def joined_with_the_input() -> Net:
    return Net(lambda net, x: net.b(torch.cat([x, net.a(x)], dim=1)), a=conv(3, 6), b=conv(9, 4))


@specimen({places("a", "b.weight/1"): 6})
def joined_with_coordinates() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        row = torch.linspace(0, 1, 8, dtype=x.dtype).expand(h.shape[0], 1, 8, -1)
        return net.b(torch.cat([h, row], dim=1))

    return Net(run, a=conv(3, 6), b=conv(7, 4))


@specimen({places("a", "b", "c.weight/1"): 6})
def joined_in_space() -> Net:
    return Net(lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], dim=3)), a=conv(3, 6), b=conv(3, 6), c=conv(6, 4))


@specimen({places("a", "c.weight/1"): 6, places("b", "c.weight/1"): 2})
def joined_after_flattening() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.c(torch.cat([net.a(x).flatten(1), net.b(x).flatten(1)], dim=1))

    return Net(run, a=conv(3, 6), b=conv(3, 2), c=nn.Linear(8 * 64, 4))


# ---------------------------------------------------------------------------------------------- flattened, pooled


@specimen({places("a", norm_places("bn"), "b.weight/1"): 6, places("b", "c.weight/1"): 5})
def flattened() -> Net:
    """Each channel takes up 64 columns of the linear layer."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.c(net.b(net.bn(net.a(x)).flatten(1)).relu())

    return Net(run, a=conv(3, 6), bn=nn.BatchNorm2d(6), b=nn.Linear(6 * 64, 5), c=nn.Linear(5, 4))


@specimen({places("a", norm_places("bn"), "b.weight/1"): 6})
def normalised_after_flattening() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(net.bn(net.a(x).flatten(1)))

    return Net(run, a=conv(3, 6), bn=nn.BatchNorm1d(6 * 64), b=nn.Linear(6 * 64, 4))


@specimen({places("a", "b.weight/1"): 6})
def viewed_by_its_own_shape() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = F.adaptive_avg_pool2d(net.a(x), 2)
        batch, channels, height, width = h.shape
        return net.b(h.view(batch, channels * height * width))

    return Net(run, a=conv(3, 6), b=nn.Linear(24, 4))


@specimen({places("a", "b.weight/1"): 6, places("b", "c.weight/1"): 5})
def tokens() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.c(F.gelu(net.b(net.a(x).flatten(2).transpose(1, 2).contiguous())).mean(1))

    return Net(run, a=conv(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 4))


@specimen({places("a", "c.weight/1", "down.weight/1", "up"): 6, places("down", "up.weight/1"): 2})
def squeeze_and_excite() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        scale = net.up(net.down(h.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return net.c(h * scale)

    return Net(run, a=conv(3, 6), down=conv(6, 2, 1), up=conv(2, 6, 1), c=conv(6, 4))


# ---------------------------------------------------------------------------------------------- grouped


@specimen({places("a", "b", "c.weight/1"): 6})
def depthwise() -> Net:
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=conv(6, 6, groups=6), c=conv(6, 4))


@specimen({places("a", "b", "c.weight/1"): 6})
def depthwise_with_multiplier() -> Net:
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=conv(6, 12, groups=6), c=conv(12, 4))


@specimen({places("a", "b", "c.weight/1"): 4})
def many_narrow_groups() -> Net:
    """Four groups of two: each group is one channel of the table."""
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 8), b=conv(8, 8, groups=4), c=conv(8, 4))


@specimen({places("a", "b.weight/1"): 4, places("b", "c.weight/1"): 3})
def few_wide_groups() -> Net:
    """Two groups of four: a channel of the table is the same slot in both groups."""
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 8), b=conv(8, 6, groups=2), c=conv(6, 4))


@specimen({places("a", "b.weight/1"): 4})
def groups_of_the_input() -> Net:
    """Three groups that read one channel of the image each: the same slots of their outputs go."""
    return Net(lambda net, x: net.b(net.a(x)), a=conv(3, 12, groups=3), b=conv(12, 4))


@specimen({places("b", "c.weight/1"): 6}, pinned={"a.weight": "in a grouped convolution that reads"})
def a_filter_for_each_channel_of_the_input() -> Net:
    """Depthwise on the image: nothing of that can go."""
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 3, groups=3), b=conv(3, 6), c=conv(6, 4))


@specimen({"a.weight/0 a.bias/0 b.weight/0 b.bias/0 c.bias/0 d.weight/1": 6})
def depthwise_layers_that_share_a_weight() -> Net:
    net = Net(
        lambda net, x: net.d(net.c(net.b(net.a(x)).relu())),
        a=conv(3, 6),
        b=conv(6, 6, groups=6),
        c=conv(6, 6, groups=6),
        d=conv(6, 4),
    )
    net.c.weight = net.b.weight
    return net


# ---------------------------------------------------------------------------------------------- shared


@specimen({places("a", "b", "b.weight/1", "c.weight/1"): 6})
def module_called_twice() -> Net:
    return Net(lambda net, x: net.c(net.b(net.b(net.a(x)).relu())), a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))


@specimen({places("a", "b", "b.weight/1", "c.weight/1"): 6})
def module_with_two_names() -> Net:
    b = conv(6, 6)
    return Net(
        lambda net, x: net.c(net.again[0](net.b(net.a(x)))), a=conv(3, 6), b=b, again=nn.ModuleList([b]), c=conv(6, 4)
    )


@specimen({places("a", "b.bias/0", "c.weight/1"): 6})
def tied_weights() -> Net:
    net = Net(lambda net, x: net.c(net.a(x) + net.b(x).relu()), a=conv(3, 6), b=conv(3, 6), c=conv(6, 4))
    net.b.weight = net.a.weight
    return net


@specimen({"weight/0": 6, places("a", "c.weight/1") + " weight/1": 8})
def tied_autoencoder() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        code = F.linear(net.a(x).mean((2, 3)), net.weight).sigmoid()
        return net.c(F.linear(code, net.weight.t()))

    return Net(run, a=conv(3, 8), c=nn.Linear(8, 4), weight=parameter(6, 8))


# ---------------------------------------------------------------------------------------------- inputs and outputs


@specimen({places("a", "b.weight/1", "aux.weight/1"): 6})
def auxiliary_head() -> Net:
    """A head that runs in training mode only."""

    def run(net: Net, x: Tensor) -> Any:
        h = net.a(x)
        return (net.b(h), net.aux(h)) if net.training else net.b(h)

    return Net(run, a=conv(3, 6), b=conv(6, 4), aux=conv(6, 5))


@specimen({places("a", "b.weight/1"): 6})
def several_outputs() -> Net:
    def run(net: Net, x: Tensor) -> dict[str, Any]:
        features = net.side(x)
        return {"scores": net.b(net.a(x)), "more": [features, (features.relu(), None)], "count": 3}

    return Net(run, a=conv(3, 6), b=conv(6, 4), side=conv(3, 5))


@specimen({places("a", "b", "c.weight/1"): 6}, shapes=(*IMAGE, (2, 5)))
def several_inputs() -> Net:
    def run(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return net.c(net.a(x) + net.b(y)[:, :, None, None])

    return Net(run, a=conv(3, 6), b=nn.Linear(5, 6), c=conv(6, 4))


@specimen({places("a", "b", "c.weight/1"): 6}, shapes={"x": IMAGE[0], "y": (2, 5)})
def keyword_inputs() -> Net:
    def run(net: Net, *, y: Tensor, x: Tensor) -> Tensor:
        return net.c(net.a(x) + net.b(y)[:, :, None, None])

    return Net(run, a=conv(3, 6), b=nn.Linear(5, 6), c=conv(6, 4))


@specimen({places("a", "b", "b.weight/1", "c.weight/1"): 6})
def loops_and_branches() -> Net:
    """Python decides: a loop whose length is an attribute, a branch on the shape of the image, early exit."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        for step in range(net.steps):
            h = h + net.b(h) if step % 2 == 0 else torch.relu(h)
            if h.shape[-1] > 100:
                return h
        return net.c(h)

    net = Net(run, a=conv(3, 6), b=conv(6, 6), c=conv(6, 4))
    net.steps = 3
    return net


def _with_streams(x: Tensor, streams: int) -> Tensor:
    if len(x) % streams:
        raise ValueError(f"{len(x)} are no {streams} streams")
    return x.reshape(-1, streams, *x.shape[1:])


@specimen(
    {places("a", "h.weight/1", "down", "b.weight/1"): 6, places("h", "down.weight/1"): 9},
    pinned={"mix": "does not follow"},
    shapes=((3, 5, 7),),
)
def residual_streams() -> Net:
    """Several copies of an activation are mixed by a small matrix, and lie in the batch in between."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        h = h[:, None].expand(-1, 4, -1, -1).reshape(-1, *h.shape[1:])
        mixed = (net.mix @ _with_streams(h, 4).flatten(2)).unflatten(2, h.shape[1:])
        rest = mixed + net.down(net.h(mixed).relu())
        return net.b(_with_streams(rest.flatten(0, 1), 4).permute(0, 2, 3, 1).sum(-1))

    return Net(run, a=nn.Linear(7, 6), mix=parameter(4, 4), h=nn.Linear(6, 9), down=nn.Linear(9, 6), b=nn.Linear(6, 2))
