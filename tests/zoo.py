"""Small networks that the table understands, with the right table of each. See `specimen.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from joins import JOINS
from specimen import Net, between, conv, norm_places, parameter, places, registry
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import roi_align

CHAINS, specimen = registry()

AB = {places("a", "b.weight/1"): 6}
"""The answer of all that runs a (3 -> 6 channels), something that keeps channels, and b."""


# ---------------------------------------------------------------------------------------------- chains


@specimen(AB)
def chain() -> Net:
    return between(F.relu)


@specimen({"a.weight/0 b.weight/1": 6})
def chain_without_bias() -> Net:
    return Net(lambda net, x: net.b(net.a(x).relu()), a=conv(3, 6, bias=False), b=conv(6, 4, bias=False))


@specimen({places("a", norm_places("bn"), "b.weight/1"): 6})
def batch_norm_and_sigmoid() -> Net:
    """A gate at the producer would leave sigmoid(shift) behind."""
    return Net(lambda net, x: net.b(net.bn(net.a(x)).sigmoid()), a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 4))


@specimen({places("a", "bn.running_mean/0 bn.running_var/0", "b.weight/1"): 6})
def batch_norm_without_affine() -> Net:
    return Net(lambda net, x: net.b(net.bn(net.a(x))), a=conv(3, 6), bn=nn.BatchNorm2d(6, affine=False), b=conv(6, 4))


@specimen({places("a", "bn", "b.weight/1"): 6})
def batch_norm_without_statistics() -> Net:
    bn = nn.BatchNorm2d(6, track_running_stats=False)
    return Net(lambda net, x: net.b(net.bn(net.a(x))), a=conv(3, 6), bn=bn, b=conv(6, 4))


@specimen(AB)
def constant_added() -> Net:
    return between(lambda h: h.exp() + 1.0)


@specimen(AB)
def flipped() -> Net:
    return between(lambda h: h.flip(1))


@specimen({places("a", "b.weight/1"): 3})
def flipped_onto_itself() -> Net:
    """Channel i and channel 5 - i become one."""
    return between(lambda h: h + h.flip(1))


@specimen({places("a", "b.weight/1"): 6})
def repeated() -> Net:
    return between(lambda h: h.repeat(1, 2, 1, 1), width=12)


@specimen(AB)
def rolled_in_space() -> Net:
    return between(lambda h: h.roll((1, 2), (2, 3)))


@specimen(AB)
def cropped_and_joined_in_space() -> Net:
    return between(lambda h: torch.cat([h[:, :, 1:], h[:, :, :3]], dim=2))


@specimen(AB)
def padded_in_space() -> Net:
    return between(lambda h: F.pad(F.pad(h, (1, 1, 1, 1), mode="reflect"), (0, 1, -1, 0), value=3.0))


@specimen(AB)
def pooled_and_resized() -> Net:
    return between(lambda h: F.interpolate(F.max_pool2d(h, 2) + F.avg_pool2d(h, 2), scale_factor=2, mode="bilinear"))


@specimen(AB)
def changed_in_place() -> Net:
    def run(h: Tensor) -> Tensor:
        h.mul_(2).add_(1)
        h[:, :, 0] = 0
        h.view(h.shape[0], -1).clamp_(-1)
        return h.relu_()

    return between(run)


@specimen(AB)
def detached() -> Net:
    return between(lambda h: h + h.detach().sigmoid())


@specimen(AB)
def two_dims_swapped_and_back() -> Net:
    return between(lambda h: h.permute(0, 2, 3, 1).tanh().permute(0, 3, 1, 2).contiguous())


@specimen(AB)
def statistics_over_the_batch() -> Net:
    return between(lambda h: (h - h.mean((0, 2, 3), keepdim=True)) / h.std((0, 2, 3), keepdim=True))


@specimen(AB, random=True)
def dropout() -> Net:
    return Net(lambda net, x: net.b(net.drop(net.a(x))), a=conv(3, 6), drop=nn.Dropout(0.3), b=conv(6, 4))


@specimen({places("a", "act.weight/0", "b.weight/1"): 6})
def prelu() -> Net:
    return Net(lambda net, x: net.b(net.act(net.a(x))), a=conv(3, 6), act=nn.PReLU(6), b=conv(6, 4))


@specimen({places("a", "scale/0", "b.weight/1"): 6})
def layer_scale() -> Net:
    return Net(lambda net, x: net.b(net.a(x) * net.scale), a=conv(3, 6), b=conv(6, 4), scale=parameter(6, 1, 1))


@specimen({places("a", "features/0"): 6, "features/1 b.weight/1": 5})
def projection_that_is_a_buffer() -> Net:
    """As the random features of a linear attention: no parameter, but it reads and makes channels like one."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.b((net.a(x).movedim(1, -1) @ net.features).relu().movedim(-1, 1))

    net = Net(run, a=conv(3, 6), b=conv(5, 4))
    net.register_buffer("features", torch.randn(6, 5))
    return net


@specimen({places("a", "shift/1", "b.weight/1"): 6})
def buffer_that_no_checkpoint_holds() -> Net:
    net = Net(lambda net, x: net.b(net.a(x) + net.shift), a=conv(3, 6), b=conv(6, 4))
    net.register_buffer("shift", torch.randn(1, 6, 1, 1), persistent=False)
    return net


@specimen({"a.parametrizations.weight.original/0 a.bias/0 b.weight/1": 6})
def parametrized_weight() -> Net:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    a = conv(3, 6)
    parametrize.register_parametrization(a, "weight", Double())
    return Net(lambda net, x: net.b(net.a(x)), a=a, b=conv(6, 4))


@specimen({"weight/0 b.weight/1": 6})
def functional_convolution() -> Net:
    return Net(lambda net, x: net.b(F.conv2d(x, net.weight).relu()), weight=parameter(6, 3, 3, 3), b=conv(6, 4))


@specimen({places("a", "b.weight/0"): 6, places("b.weight/1 b.bias/0", "c.weight/1"): 5})
def transposed() -> Net:
    b = nn.ConvTranspose2d(6, 5, 2, stride=2)
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu()), a=conv(3, 6), b=b, c=conv(5, 4))


@specimen({places("a", norm_places("bn"), "b.weight/1"): 6}, shapes=((2, 3, 9),))
def one_dimension() -> Net:
    parts = {"a": nn.Conv1d(3, 6, 3), "bn": nn.BatchNorm1d(6), "pool": nn.MaxPool1d(2), "b": nn.Conv1d(6, 4, 3)}
    return Net(lambda net, x: net.b(net.pool(net.bn(net.a(x)))), **parts)


@specimen(AB, shapes=((2, 3, 4, 4, 4),))
def three_dimensions() -> Net:
    return Net(lambda net, x: net.b(F.avg_pool3d(net.a(x), 2)), a=nn.Conv3d(3, 6, 3, padding=1), b=nn.Conv3d(6, 4, 1))


@specimen(AB, shapes=((3, 8, 8),))
def no_batch() -> Net:
    return between(F.relu)


@specimen({places("b", "c.weight/1"): 6})
def width_of_one() -> Net:
    return Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(3, 1), b=conv(1, 6), c=conv(6, 4))


@specimen({places("a"): 5, places("b", "c.weight/1"): 6})
def read_by_nothing() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        net.a(x)
        return net.c(net.b(x))

    return Net(run, a=conv(3, 5), b=conv(3, 6), c=conv(6, 4))


@specimen({"a.weight/1 b.weight/1": 6, places("b", "c.weight/1"): 5}, shapes=([2, 7],))
def embedding() -> Net:
    a, b, c = nn.Embedding(10, 6), nn.Linear(6, 5), nn.Linear(5, 4)
    return Net(lambda net, x: net.c(net.b(net.a(x)).relu().mean(1)), a=a, b=b, c=c)


# ---------------------------------------------------------------------------------------------- boxes and values


@specimen(AB)
def best_pixels() -> Net:
    return between(lambda h: h.flatten(2).topk(16).values.unflatten(2, (4, 4)))


@specimen(AB)
def read_at_boxes() -> Net:
    return between(lambda h: roi_align(h, h.new_tensor([[0, 0, 0, 4, 4], [1, 2, 2, 7, 7]]), 4))


@specimen({places("a", "c", "b.weight/1"): 6})
def written_by_index() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        one, two = net.a(x), net.c(x)
        out = torch.zeros((2 * len(x), *one.shape[1:]), dtype=x.dtype, device=x.device)
        out[torch.arange(0, len(out), 2)] = one
        out[torch.arange(1, len(out), 2)] = two
        return net.b(out)

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=conv(3, 6))


@specimen({places("a", "b.weight/1"): 6})
def looked_up_by_a_mask_of_two_dims() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).permute(0, 2, 3, 1)
        return net.b(h[h.mean(3) > -1e9])

    return Net(run, a=nn.Conv2d(3, 6, 3), b=nn.Linear(6, 4))


@specimen({places("a", "b.weight/1 c.weight/1"): 6})
def chosen_by_value() -> Net:
    """How many pixels are chosen depends on the weights that are left; the device matters for speed alone."""

    def run(net: Net, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):
            raise FloatingPointError
        h = net.a(x)
        chosen = h.permute(0, 2, 3, 1)[net.c(h)[:, 0] > net.c.bias].sigmoid()
        h = h + chosen.sum(0)[:, None, None]
        return net.b(h.sigmoid() if h.device.type == "meta" else torch.reciprocal(1 + torch.exp(-h)))

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=conv(6, 1))


@specimen({places("a", "b.weight/1 c.weight/1"): 6, places("c"): 4})
def nothing_found() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        none = h[h.mean((1, 2, 3)) > 1e9]
        return net.b(h) + net.c(none.flatten(1)).sum()

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=nn.Linear(6 * 64, 4))


@specimen({places("a", "b", "c.weight/1"): 6})
def unpooled_by_indices_of_another_layer() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h, indices = F.max_pool2d(net.a(x), 2, return_indices=True)
        return net.c(F.max_unpool2d(net.b(F.max_pool2d(x, 2) + 0 * h.mean()), indices, 2))

    return Net(run, a=conv(3, 6), b=conv(3, 6), c=conv(6, 4))


@specimen(AB)
def along_one_axis_of_space() -> Net:
    def run(h: Tensor) -> Tensor:
        h = h.cummax(2).values + h.logcumsumexp(3) + h.tril() + h.kthvalue(3, -1, keepdim=True).values
        return (
            torch.complex(h, h).abs()
            + torch.var_mean(h, (2, 3), keepdim=True)[1]
            + h.unfold(2, 2, 1).mean((2, 4))[..., None]
        )

    return between(run)


@specimen({places("a", "q/0 o.weight/1"): 6}, shapes=((2, 5, 3),))
def pooled_by_a_vector() -> Net:
    """Attention with one query that is learned: a matrix times a vector."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).tanh()
        return net.o(((h @ net.q).softmax(1)[..., None] * h).sum(1))

    return Net(run, a=nn.Linear(3, 6), q=parameter(6), o=nn.Linear(6, 4))


@specimen({places("a", "m/1"): 6, places("m/0 c/0", "o.weight/1"): 5}, shapes=((3,),))
def vector_by_a_matrix() -> Net:
    run = lambda net, x: net.o(torch.addmv(net.c, net.m, net.a(x)).relu())  # noqa: E731
    return Net(run, a=nn.Linear(3, 6), m=parameter(5, 6), c=parameter(5), o=nn.Linear(5, 4))


@specimen({places("a", "b"): 6}, shapes=((2, 3),))
def products_of_two_vectors() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return torch.stack([torch.dot(one.sigmoid(), other) for one, other in zip(net.a(x), net.b(x), strict=True)])

    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(3, 6))


ZOO = CHAINS | JOINS
