"""Traps, second half: channels on unusual axes, weights that are computed or shared, odd Python. See `traps.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from specimen import Net, between, conv, parameter, places, registry
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

ODDITIES, trap = registry()


# ---------------------------------------------------------------------------------------------- channels on other axes


@trap(None)
def channels_along_the_space_of_a_convolution() -> Net:
    run = lambda net, x: net.b(net.mix(net.a(x).mean((2, 3))[:, None]).flatten(1))  # noqa: E731
    return Net(run, a=conv(3, 6), mix=nn.Conv1d(1, 1, 3, padding=1), b=nn.Linear(6, 4))


@trap({"a.weight/0 a.bias/0 b.weight/1": 6, "each.weight/0 each.bias/0 b.weight/1": 2})
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


@trap({"a.weight/0 a.bias/0 w/1 b.weight/1": 6})
def weights_of_a_vector_and_a_matrix() -> Net:
    """PyTorch squeezes what it gives in place."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).unsqueeze_(1).relu().squeeze_(1)
        return net.b(h * (net.z @ net.w)[:, None, None])

    return Net(run, a=conv(3, 6), b=conv(6, 4), z=parameter(5), w=parameter(5, 6))


@trap({"a.weight/0 a.bias/0 b.weight/1": 6})
def layers_called_for_every_example_by_vmap() -> Net:
    run = lambda net, x: torch.vmap(lambda one: net.b(net.a(one).relu()))(x.mean((2, 3)))  # noqa: E731
    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 4))


@trap({"a.weight/0 a.bias/0 b.weight/1": 6, "b.weight/0 b.bias/0 c.weight/1": 5})
def weight_of_limited_norm() -> Net:
    """A constraint on the largest norm, as in networks for EEG."""

    def run(net: Net, x: Tensor) -> Tensor:
        net.b.weight.data = torch.renorm(net.b.weight.data, p=2, dim=0, maxnorm=0.3)
        return net.c(net.b(net.a(x)))

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(5, 4))


@trap(None)
def sorting_order_as_features() -> Net:
    run = lambda net, x: net.b(net.a(x).flatten(2).sort(2).indices[:, :, 0].to(x.dtype))  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(6, 4))


# ---------------------------------------------------------------------------------------------- weights


@trap({places("a", "b.parametrizations.weight.original1/1"): 6})
def weight_norm() -> Net:
    b = parametrizations.weight_norm(conv(6, 4))
    return Net(lambda net, x: net.b(net.a(x)), a=conv(3, 6), b=b)


COMPUTED = "fc.bias/0 fc.parametrizations.weight.original0/0 fc.parametrizations.weight.original1/0 c.weight/1"


@trap({places("a", "fc.parametrizations.weight.original1/1"): 6, COMPUTED: 8})
def weight_norm_of_a_linear_layer() -> Net:
    fc = parametrizations.weight_norm(nn.Linear(6, 8))
    return Net(lambda net, x: net.c(net.fc(net.a(x).mean((2, 3))).relu()), a=conv(3, 6), fc=fc, c=nn.Linear(8, 4))


@trap(
    {places("a", "fc.weight_orig/1 fc.weight_mask/1"): 6, "fc.bias/0 fc.weight_mask/0 fc.weight_orig/0 c.weight/1": 8}
)
def pruned_by_masks() -> Net:
    fc = prune.random_unstructured(nn.Linear(6, 8), "weight", 0.3)
    return Net(lambda net, x: net.c(net.fc(net.a(x).mean((2, 3))).relu()), a=conv(3, 6), fc=fc, c=nn.Linear(8, 4))


@trap(
    {"a.weight/0 a.bias/0 w/1 v/2 g.weight/1 b.weight/1": 6, "w/0 v/0 g.weight/0 g.bias/0": 3, "w/2 v/1": 8},
    shapes=((2, 5, 7),),
)
def experts() -> Net:
    """A mixture, all of them for every token; whole experts can go."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        y = torch.einsum("bneh,ehd->bned", torch.einsum("bnd,edh->bneh", h, net.w).relu(), net.v)
        return net.b(h + torch.einsum("bned,bne->bnd", y, net.g(h).softmax(-1)))

    layers = {"a": nn.Linear(7, 6), "g": nn.Linear(6, 3), "b": nn.Linear(6, 4)}
    return Net(run, w=parameter(3, 6, 8), v=parameter(3, 8, 6), **layers)


@trap({"a.weight/0 a.bias/0 w/1": 6, "w/2 v/1 shift/2": 8, "v/2 b.weight/1": 5}, shapes=((4, 7),))
def experts_in_a_batch() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = torch.baddbmm(net.shift, net.a(x)[None].expand(3, -1, -1), net.w).relu()
        return net.b(torch.bmm(h, net.v).mean(0))

    weights = {"w": parameter(3, 6, 8), "shift": parameter(3, 1, 8), "v": parameter(3, 8, 5)}
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(5, 4), **weights)


@trap({"a.weight/0 a.bias/0 w/2 g.weight/1": 6, "w/0 g.weight/0 g.bias/0": 3, "w/1 b.weight/1": 8})
def convolution_mixed_for_every_image() -> Net:
    """CondConv: the weight is a mixture, and a group of one convolution for each image."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        w = torch.einsum("be,eoikl->boikl", net.g(h.mean((2, 3))).sigmoid(), net.w)
        y = F.conv2d(h.flatten(0, 1)[None], w.flatten(0, 1), padding=1, groups=len(h))
        return net.b(y.unflatten(1, (len(h), -1))[0].relu())

    return Net(run, a=conv(3, 6), g=nn.Linear(6, 3), w=parameter(3, 8, 6, 3, 3), b=conv(8, 4))


@trap({places("a", "core/0"): 6, places("b", "core/1"): 5, "core/2 c.weight/1": 8}, shapes=((4, 7), (4, 3)))
def product_of_three() -> Net:
    run = lambda net, x, y: net.c(torch.einsum("bi,bj,ijk->bk", net.a(x).tanh(), net.b(y).tanh(), net.core))  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(3, 5), core=parameter(6, 5, 8), c=nn.Linear(8, 4))


@trap({places("a", "w/1"): 6, "w/0 c.weight/1": 8}, shapes=((2, 5, 7),))
def contraction_over_places_and_channels() -> Net:
    run = lambda net, x: net.c(torch.tensordot(net.a(x), net.w, dims=([1, 2], [2, 1])).relu())  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), w=parameter(8, 6, 5), c=nn.Linear(8, 4))


@trap({places("a", "b.weight/1"): 6})
def bilinear_pooling() -> Net:
    """Lin et al., 2015: every channel with every channel, itself included; a channel takes a row and a column away."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).flatten(2)
        return net.b(F.normalize((h @ h.mT).flatten(1)))

    return Net(run, a=conv(3, 6), b=nn.Linear(36, 4))


@trap({places("a", "w/0"): 6, "w/1 b.weight/1": 8})
def product_with_scaled_weights() -> Net:
    run = lambda net, x: net.b((net.a(x).mean((2, 3)) @ (net.w * 0.5)).relu())  # noqa: E731
    return Net(run, a=conv(3, 6), b=nn.Linear(8, 4), w=parameter(6, 8))


@trap({"inner.0.bias/0 inner.0.weight/0 inner.2.weight/1": 8})
def called_with_weights_of_its_own() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        weights = {name: weight * (1 + net.step) for name, weight in net.inner.named_parameters()}
        return torch.func.functional_call(net.inner, weights, (x.mean((2, 3)),))

    inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    return Net(run, inner=inner, step=parameter(1))


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


@trap({"u/0 b.weight/1": 6, places("a", "v/1"): 8})
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


@trap({places("a", "b.weight/1"): 6})
def activation_as_a_parameter() -> Net:
    return between(lambda h: nn.Parameter(h))


@trap(None)
def activation_as_data() -> Net:
    return between(lambda h: h.data)


class Subclassed(Tensor):
    """As those of fastai, and of torchvision's transforms."""


@trap({places("a", "b.weight/1"): 6})
def activation_and_output_of_a_subclass() -> Net:
    run = lambda net, x: net.b(net.a(x).mT.as_subclass(Subclassed).relu().mT).as_subclass(Subclassed)  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4))


@trap({places("a", "b.weight/1"): 6})
def input_of_a_subclass_and_back() -> Net:
    run = lambda net, x: net.b(net.a(x.as_subclass(Subclassed)).relu().as_subclass(Tensor))  # noqa: E731
    return Net(run, a=conv(3, 6), b=conv(6, 4))


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


@trap({places("a", "b.weight/1"): 6})
def written_into_zeros_line_by_line() -> Net:
    """As loops over time do: zeros have the channels of what is written into parts of them."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        out = torch.zeros(h.shape, dtype=x.dtype)
        for line in range(x.shape[2]):
            out[:, :, line] = h[:, :, line].sigmoid()
        return net.b(out)

    return Net(run, a=conv(3, 6), b=conv(6, 4))


@trap({places("b", "c.weight/1"): 5}, {"a.weight": "cut at fixed positions"})
def written_side_by_side() -> Net:
    """Two layers fill parts of the channels of one tensor. What stands before a bound stays."""

    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.a(x), net.b(x)
        out = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        out[:, : a.shape[1]] = a
        out[:, a.shape[1] :] = b
        return net.c(out)

    return Net(run, a=conv(3, 6), b=conv(3, 5), c=conv(11, 4))


@trap({places("a", "b", "c.weight/1"): 6})
def written_into_a_tensor_of_its_kind() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        out = torch.zeros_like(h)
        out[:, :, 2:] = net.b(x)[:, :, 2:]
        return net.c(out)

    return Net(run, a=conv(3, 6), b=conv(3, 6), c=conv(6, 4))
