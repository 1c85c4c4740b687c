"""Networks that keep tensors as plain attributes, neither parameters nor buffers. See `specimen.py`."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from specimen import Net, registry
from torch import Tensor, nn

CONSTANTS, specimen = registry()


@specimen(shapes=((2, 5, 3),), least="a b b.weight/1 d d.weight/1 pos/1 out.weight/1")
def a_table_of_positions() -> Net:
    """As in a simple vision transformer: the whole residual stream hangs on it."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.a(x) + net.pos.to(x.device, dtype=x.dtype)
        return net.out(x + net.d(net.b(x).relu()))

    return Net(run, a=nn.Linear(3, 6), pos=torch.randn(5, 6), b=nn.Linear(6, 8), d=nn.Linear(8, 6), out=nn.Linear(6, 4))


@specimen(shapes=((2, 3),), least="a b.weight/1 table/0 table/1")
def a_table_as_a_weight() -> Net:
    return Net(
        lambda net, x: net.b(net.a(x).relu() @ net.table.to(x)),
        a=nn.Linear(3, 6),
        table=torch.randn(6, 8),
        b=nn.Linear(8, 4),
    )


@specimen(least="a b.weight/1 mean/1 std/0")
def a_scale_and_shift() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(((net.a(x) - net.mean.to(x)) / net.std.to(x)).relu())

    mean, std = torch.randn(1, 6, 1, 1), torch.rand(6, 1, 1) + 0.5
    return Net(run, a=nn.Conv2d(3, 6, 3), mean=mean, std=std, b=nn.Conv2d(6, 4, 3))


@specimen(least="a b.weight/1 kernel/0")
def a_blur() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(F.conv2d(net.a(x).relu(), net.kernel.to(x), groups=len(net.kernel)))

    return Net(run, a=nn.Conv2d(3, 6, 3), kernel=torch.rand(6, 1, 3, 3), b=nn.Conv2d(6, 4, 3))


@specimen(shapes=((2, 3),), least="a b b.weight/1 c.weight/1 scale/0")
def one_that_two_modules_keep() -> Net:
    scale = torch.rand(6) + 0.5
    other = Net(lambda net, x: x * net.scale.to(x), scale=scale)
    net = Net(lambda net, x: net.c(net.b(net.other(net.a(x))) * net.scale.to(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 6))
    net.c, net.other, net.scale = nn.Linear(6, 4), other, scale
    return net


@specimen(least="a b.weight/1")
def of_the_image_alone() -> Net:
    """It has as many entries as the image has channels, which are not to be cut."""
    mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    return Net(lambda net, x: net.b(net.a(x - net.mean.to(x))), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3), mean=mean)


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)
        self.table = torch.randn(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + self.positions.to(x))  # type: ignore[no-any-return, operator]


@specimen(shapes=((2, 5, 3),), pinned={"a.weight": "fixed size"})
def made_again_by_another_method() -> nn.Module:
    """It may be made anew at any time, as long as the dense network had it."""

    class Stores(_Positions):
        @property
        def positions(self) -> Tensor:
            self.table = self.table if self.table.shape[0] == 5 else torch.randn(5, 6)
            return self.table

    return Stores()


@specimen(shapes=((2, 5, 3),), pinned={"a.weight": "fixed size"})
def computed_when_it_is_asked_for() -> nn.Module:
    class Computes(_Positions):
        @cached_property
        def positions(self) -> Tensor:
            return torch.ones(5, 6)

    model = Computes()
    model(torch.zeros(2, 5, 3))
    return model


class Moving(nn.Module):
    """Moves its table to where the input is, for good."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.table = nn.Linear(3, 6), nn.Linear(6, 4), torch.randn(5, 6)
        self.weight = torch.randn(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.device != x.device:
            self.table = self.table.cpu()
        self.table = self.table.to(device=x.device, dtype=x.dtype)
        self.weight = self.weight.type_as(x)
        return self.b(((self.a(x) + self.table) @ self.weight).relu())


@specimen(shapes=((2, 5, 3),), least="a table/1 weight/0 weight/1 b.weight/1")
def a_table_that_is_moved() -> nn.Module:
    return Moving()
