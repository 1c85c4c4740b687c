"""Small networks from which channels must not, or need not, be cut: each says by a word of the reason why.

Where `pinned` is empty and `groups` is None, pruning or pinning are both right, as long as the promises hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from specimen import Net, between, conv, parameter, places, registry
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

TRAPS, trap = registry()


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


@trap({}, {"a.weight": ""})
def every_second_channel() -> Net:
    return between(lambda h: h[:, ::2], width=3)


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


@trap({}, {"a.weight": "fixed size"})
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


@trap({}, {"a.weight": "along the channels"})
def mean_over_channels() -> Net:
    return Net(lambda net, x: net.b(net.a(x).mean(1, keepdim=True)), a=conv(3, 6), b=conv(1, 4))


@trap({}, {"a.weight": "along the channels"})
def softmax_over_channels() -> Net:
    return between(lambda h: h.softmax(1))


@trap({}, {"a.weight": "along the channels"})
def unit_length() -> Net:
    return between(lambda h: F.normalize(h, dim=1))


@trap({}, {"a.weight": ""})
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


# ---------------------------------------------------------------------------------------------- channels on other axes


@trap(None)
def channels_along_the_space_of_a_convolution() -> Net:
    run = lambda net, x: net.b(net.mix(net.a(x).mean((2, 3))[:, None]).flatten(1))  # noqa: E731
    return Net(run, a=conv(3, 6), mix=nn.Conv1d(1, 1, 3, padding=1), b=nn.Linear(6, 4))


@trap(None)
def channels_along_the_batch_of_a_convolution() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(net.each(h.reshape(-1, 1, 8, 8)).reshape(h.shape[0], -1, 8, 8))

    return Net(run, a=conv(3, 6), each=conv(1, 2), b=conv(12, 4))


@trap(None)
def efficient_channel_attention() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(h * net.mix(h.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid())

    return Net(run, a=conv(3, 6), mix=nn.Conv1d(1, 1, 3, padding=1), b=conv(6, 4))


@trap(None)
def linear_layers_over_space_and_channels() -> Net:
    run = lambda net, x: net.c(net.b(net.a(x).flatten(2)).relu().transpose(1, 2))  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(64, 5), c=nn.Linear(6, 4))


@trap(None)
def addmm_with_a_column() -> Net:
    run = lambda net, x: net.b(torch.addmm(net.shift, net.weight, net.a(x).mean((2, 3)).t()).t())  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(5, 4), weight=parameter(5, 6), shift=parameter(5, 1))


@trap(None)
def indices_as_features() -> Net:
    return Net(lambda net, x: net.b(net.a(x).flatten(2).max(2).indices.to(x.dtype)), a=conv(3, 6), b=nn.Linear(6, 4))


@trap(None)
def sorting_order_as_features() -> Net:
    run = lambda net, x: net.b(net.a(x).flatten(2).sort(2).indices[:, :, 0].to(x.dtype))  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(6, 4))


# ---------------------------------------------------------------------------------------------- weights


@trap({}, {"a.weight": ""})
def weight_norm() -> Net:
    b = parametrizations.weight_norm(conv(6, 4))
    return Net(lambda net, x: net.b(net.a(x)), a=conv(3, 6), b=b)


@trap({}, {"a.weight": "", "b.parametrizations.weight.original": ""})
def spectral_norm() -> Net:
    b = parametrizations.spectral_norm(conv(6, 5))
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=b, c=conv(5, 4))


@trap(None)
def weight_standardisation() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        w = net.b.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return net.c(F.conv2d(net.a(x), w, net.b.bias, padding=1))

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(5, 4))


@trap(None)
def weight_mixed_in_forward() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        share = net.route(h.mean((0, 2, 3))[None]).softmax(1)[0]
        return net.b(F.conv2d(h, (share[:, None, None, None, None] * net.weights).sum(0)))

    return Net(run, a=conv(3, 6), route=nn.Linear(6, 2), b=conv(5, 4), weights=parameter(2, 5, 6, 1, 1))


@trap({"u/0 b.weight/1": 6}, {"a.weight": "computed", "v": "computed"})
def weight_of_low_rank() -> Net:
    run = lambda net, x: net.b(F.linear(net.a(x).mean((2, 3)), net.u @ net.v))  # noqa: E731
    return Net(run, a=conv(3, 8), b=nn.Linear(6, 4), u=parameter(6, 3), v=parameter(3, 8))


@trap(None)
def functional_depthwise() -> Net:
    run = lambda net, x: net.b(F.conv2d(net.a(x), net.weight, groups=6))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4), weight=parameter(6, 1, 3, 3))


@trap({}, {"a.weight": ""})
def blur_with_a_constant() -> Net:
    kernel = torch.ones(6, 1, 3, 3, dtype=torch.float64)
    return between(lambda h: F.conv2d(h, kernel.to(h), padding=1, groups=6))


@trap(None)
def grouped_transposed() -> Net:
    b = nn.ConvTranspose2d(8, 4, 2, groups=2)
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 8), b=b, c=conv(4, 4))


@trap(None)
def depthwise_transposed() -> Net:
    b = nn.ConvTranspose2d(6, 6, 2, groups=6)
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 6), b=b, c=conv(6, 4))


@trap(None)
def einsum_with_a_weight() -> Net:
    run = lambda net, x: net.b(torch.einsum("bchw,oc->bohw", net.a(x), net.weight))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(5, 4), weight=parameter(5, 6))


@trap(None)
def bilinear_layer() -> Net:
    run = lambda net, x: net.c(net.mix(net.a(x).mean((2, 3)), net.b(x).mean((2, 3))))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(3, 5), mix=nn.Bilinear(6, 5, 7), c=nn.Linear(7, 4))


# ---------------------------------------------------------------------------------------------- odd Python


@dataclass
class Answer:
    scores: Tensor


@trap(None)
def output_in_a_dataclass() -> Net:
    return Net(lambda net, x: Answer(net.b(net.a(x))), a=conv(3, 6), b=conv(6, 4))


@trap(None)
def activation_as_a_parameter() -> Net:
    return between(lambda h: nn.Parameter(h))


@trap(None)
def activation_as_data() -> Net:
    return between(lambda h: h.data)


@trap(None)
def checkpointed() -> Net:
    return Net(lambda net, x: net.b(checkpoint(net.a, x, use_reentrant=False)), a=conv(3, 6), b=conv(6, 4))


@trap(None)
def written_into_a_buffer() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 6, 8, 8)
        out[:, :, 2:] = net.a(x)[:, :, 2:]
        return net.b(out)

    return Net(run, a=conv(3, 6), b=conv(6, 4))


@trap({places("a", "b", "c.weight/1"): 6})
def written_into_a_tensor_of_its_kind() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        out = torch.zeros_like(h)
        out[:, :, 2:] = net.b(x)[:, :, 2:]
        return net.c(out)

    return Net(run, a=conv(3, 6), b=conv(3, 6), c=conv(6, 4))
