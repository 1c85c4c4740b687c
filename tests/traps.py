"""Small networks from which channels must not, or need not, be cut: each says by a word of the reason why.

Where `pinned` is empty and `groups` is None, pruning or pinning are both right, as long as the promises hold.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from oddities import ODDITIES
from specimen import Net, between, conv, parameter, places, registry
from torch import Tensor, nn

POSITIONS, trap = registry()


def pooled(run: Callable[[Tensor], Tensor]) -> Net:
    """conv a (3 -> 6), mean over space, `run`, linear b."""
    return Net(lambda net, x: net.b(run(net.a(x).mean((2, 3)))), a=conv(3, 6), b=nn.Linear(6, 4))


# ---------------------------------------------------------------------------------------------- channels by position


@trap({}, {"a.weight": ""})
def rolled_channels() -> Net:
    return between(lambda h: h.roll(1, 1))


@trap({}, {"a.weight": ""})
def rolled_all_over() -> Net:
    return between(lambda h: h.roll(3))


@trap({}, {"a.weight": ""})
def sliced_channels() -> Net:
    return between(lambda h: torch.cat([h[:, :2], h[:, 2:].relu()], 1))


@trap({"a.weight/0 a.bias/0": 5}, {"a.weight": "fixed positions"})
def first_channel_alone() -> Net:
    """Once channel 0 is gone, another one is first; nobody reads the others."""
    return between(lambda h: h[:, :1], width=1)


@trap({"a.weight/0 a.bias/0": 5}, {"a.weight": "fixed positions"})
def last_channel_selected() -> Net:
    return between(lambda h: h[:, -1].unsqueeze(1), width=1)


@trap(None)
def all_but_the_last_channel() -> Net:
    return between(lambda h: h[:, :-1], width=5)


@trap({}, {"a.weight": "fixed positions"})
def every_second_of_an_odd_number() -> Net:
    return Net(lambda net, x: net.b(net.a(x)[:, ::2]), a=conv(3, 7), b=conv(4, 4))


@trap(None)
def halves_by_the_width() -> Net:
    return between(lambda h: h[:, : h.shape[1] // 2] * h[:, h.shape[1] // 2 :], width=3)


@trap({places("a", "b.weight/1"): 3})
def chunked_channels() -> Net:
    return between(lambda h: h.chunk(2, 1)[0] * h.chunk(2, 1)[1].sigmoid(), width=3)


@trap({}, {"a.weight": ""})
def gathered_channels() -> Net:
    return between(lambda h: h[:, [1, 0, 2, 5, 4, 3]])


@trap({}, {"a.weight": ""})
def channels_split_by_a_view() -> Net:
    return between(lambda h: h.view(h.shape[0], 2, 3, 8, 8).transpose(1, 2).reshape(h.shape))


@trap(None)
def pixel_shuffle() -> Net:
    return Net(lambda net, x: net.b(F.pixel_shuffle(net.a(x), 2)), a=conv(3, 8), b=conv(2, 4))


# ---------------------------------------------------------------------------------------------- widths as numbers


@trap(None)
def literal_view() -> Net:
    return pooled(lambda h: h.view(-1, 6))


@trap(None)
def literal_flattening() -> Net:
    return Net(lambda net, x: net.b(net.a(x).view(-1, 6 * 64)), a=conv(3, 6), b=nn.Linear(6 * 64, 4))


@trap(None)
def literal_rows() -> Net:
    return Net(lambda net, x: net.b(net.a(x).permute(0, 2, 3, 1).reshape(-1, 6)), a=conv(3, 6), b=nn.Linear(6, 4))


@trap(None)
def literal_unflattening() -> Net:
    return between(lambda h: h.flatten(1).unflatten(1, (6, 8, 8)))


@trap(None, shapes=((2, 12, 6),))
def literal_heads_of_two_places() -> Net:
    """Values cut to one place, which has no labels left: tokens move into the heads, and the next reshape hides it."""

    def run(net: Net, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, -1, 4, 2).transpose(1, 2).reshape(b * 4, n, -1) for layer in (net.q, net.k, net.v))
        h = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(b, 4, n, -1)
        return net.o(h.transpose(1, 2).flatten(2))

    return Net(run, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(8, 4))


@trap(None)
def literal_expand() -> Net:
    run = lambda net, x: net.b(net.a(x) * net.scale.expand(6, 8, 8))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4), scale=parameter(6, 1, 1))


@trap(None)
def literal_narrow() -> Net:
    return between(lambda h: h.narrow(1, 0, 6))


@trap(None)
def literal_split() -> Net:
    return between(lambda h: h.split([6], 1)[0])


@trap(None)
def padded_up_to_a_width() -> Net:
    return between(lambda h: F.pad(h, (0, 0, 0, 0, 0, 10 - h.shape[1])), width=10)


@trap(None)
def repeated_up_to_a_width() -> Net:
    return between(lambda h: h.repeat(1, 12 // h.shape[1], 1, 1), width=12)


@trap({}, {"a.weight": "does not follow"})
def constant_of_its_own_size() -> Net:
    return between(lambda h: h * torch.ones(6, 1, 1, dtype=h.dtype))


@trap(None)
def scaled_by_its_width() -> Net:
    return between(lambda h: h / h.shape[1] ** 0.5)


@trap(None, shapes=([2, 7],))
def scaled_by_an_attribute() -> Net:
    run = lambda net, x: net.b(net.a(x) * net.a.embedding_dim**0.5)  # noqa: E731
    return Net(run, a=nn.Embedding(10, 6), b=nn.Linear(6, 4))


@trap(None)
def branch_on_the_width() -> Net:
    return between(lambda h: h if h.shape[1] == 6 else -h)


@trap(None)
def squeezed_without_a_dim() -> Net:
    return Net(lambda net, x: net.b(net.a(x).mean((2, 3), keepdim=True).squeeze()), a=conv(3, 2), b=nn.Linear(2, 4))


@trap(None)
def squeezed_along_channels() -> Net:
    return pooled(lambda h: h.squeeze(1))


# ---------------------------------------------------------------------------------------------- channels mixed


@trap({places("a"): 6})
def mean_over_channels() -> Net:
    return Net(lambda net, x: net.b(net.a(x).mean(1, keepdim=True)), a=conv(3, 6), b=conv(1, 4))


@trap({places("a", "b.weight/1"): 6})
def softmax_over_channels() -> Net:
    return between(lambda h: h.softmax(1))


@trap({places("a", "b.weight/1"): 6})
def unit_length() -> Net:
    return between(lambda h: F.normalize(h, dim=1))


@trap({places("a", "b.weight/1"): 6})
def sum_over_everything() -> Net:
    return between(lambda h: h / h.abs().sum())


@trap(None)
def local_response_norm() -> Net:
    return between(lambda h: F.local_response_norm(h, 3))


@trap(None)
def layer_norm() -> Net:
    run = lambda net, x: net.b(net.norm(net.a(x).flatten(2).transpose(1, 2)))  # noqa: E731
    return Net(run, a=conv(3, 6), norm=nn.LayerNorm(6), b=nn.Linear(6, 4))


@trap(None)
def group_norm() -> Net:
    return Net(lambda net, x: net.b(net.norm(net.a(x))), a=conv(3, 6), norm=nn.GroupNorm(2, 6), b=conv(6, 4))


@trap(None)
def instance_norm() -> Net:
    return Net(lambda net, x: net.b(net.norm(net.a(x))), a=conv(3, 6), norm=nn.InstanceNorm2d(6), b=conv(6, 4))


@trap(None)
def instance_norm_with_affine() -> Net:
    norm = nn.InstanceNorm2d(6, affine=True)
    return Net(lambda net, x: net.b(net.norm(net.a(x))), a=conv(3, 6), norm=norm, b=conv(6, 4))


@trap(None)
def attention() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).flatten(2).transpose(1, 2)
        return net.b(net.mix(h, h, h)[0].mean(1))

    return Net(run, a=conv(3, 8), mix=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 4))


@trap(None, random=True)
def transformer_layer() -> Net:
    run = lambda net, x: net.b(net.mix(net.a(x).flatten(2).transpose(1, 2)).mean(1))  # noqa: E731
    return Net(run, a=conv(3, 8), mix=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), b=nn.Linear(8, 4))


@trap(None)
def recurrent_layer() -> Net:
    run = lambda net, x: net.b(net.rnn(net.a(x).flatten(2).transpose(1, 2))[0][:, -1])  # noqa: E731
    return Net(run, a=conv(3, 6), rnn=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 4))


@trap(None)
def outer_product() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.a(x).mean((2, 3)), net.b(x).mean((2, 3))
        return net.c((a[:, :, None] * b[:, None, :]).flatten(1))

    return Net(run, a=conv(3, 6), b=conv(3, 5), c=nn.Linear(30, 4))


@trap(None)
def gram_matrix() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.c((net.a(x)[0].flatten(1) @ net.b(x)[0].flatten(1).t()).reshape(1, -1))

    return Net(run, a=conv(3, 6), b=conv(3, 5), c=nn.Linear(30, 4))


TRAPS = POSITIONS | ODDITIES
