"""A run leaves the model as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from promises import snapshot
from specimen import Net, conv
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp import trace, verify
from hfp.tracing.attributes import contents

X = torch.zeros(1, 3, 8, 8)


def chain() -> Net:
    return ZOO["chain"].model(torch.float32)  # type: ignore[return-value]


def test_a_model_that_remembers_is_left_as_it_was() -> None:
    """The forward counts its calls, keeps an activation, changes a list and a buffer: none of it is seen afterwards."""

    def run(net: Net, x: Tensor) -> Tensor:
        net.calls += 1
        net.last = net.a(x)
        net.total.add_(1)
        return net.b(net.bn(net.last))

    net = Net(run, a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 4))
    net.calls, net.last = 0, None
    net.register_buffer("total", torch.zeros(()))
    before = snapshot(net)
    trace(net, X)
    assert (net.calls, net.last, float(net.total)) == (0, None, 0.0)
    assert snapshot(net) == before


class Locked(nn.Module):
    """A dropout that keeps its mask, and a count, in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        if self.mask is None:
            self.mask = nn.functional.dropout(torch.ones_like(x), 0.1)
        return x * self.mask


def test_what_a_module_keeps_in_training_mode_alone_is_not_kept() -> None:
    model = nn.Sequential(conv(3, 6), Locked(), conv(6, 4)).float()
    for _ in range(2):
        table = trace(model, torch.zeros(1, 3, 8, 8))
        assert table.channels == 6 and model[1].mask is None and model[1].calls == 0
    model.train()(torch.zeros(1, 3, 8, 8))


def test_no_hook_is_left_behind() -> None:
    """PyTorch warns of one when a module is compiled; a warning is an error here."""
    trace(chain(), X)
    torch.compile(nn.Linear(2, 3), backend="eager")(torch.zeros(1, 2))


def test_the_old_weight_norm_keeps_its_weight() -> None:
    with pytest.warns(FutureWarning):
        net = nn.Sequential(nn.utils.weight_norm(conv(3, 6)), conv(6, 4))
    trace(net, X)
    assert not net[0].weight.is_meta


def test_modules_in_different_modes_stay_in_them() -> None:
    net = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.Dropout(), conv(6, 4)).train()
    net[1].eval()
    trace(net, X)
    assert [module.training for module in net] == [True, False, True, True]


def test_gradients_and_hooks_survive() -> None:
    net, seen = chain(), []
    net.a.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    net(X).sum().backward()
    before = net.a.weight.grad.clone()
    seen.clear()
    trace(net, X)
    assert torch.equal(net.a.weight.grad, before)
    net(X)
    assert seen[-1] == (1, 6, 8, 8)


def test_global_state_is_restored_also_after_an_error() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        raise KeyError("mine")

    net = Net(run, a=conv(3, 6)).train()
    before = snapshot(net)
    with pytest.raises(ValueError, match="KeyError"):
        trace(net, X)
    assert snapshot(net) == before
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


class Reads(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def forward(self) -> Tensor:
        return (self.state["h"] if isinstance(self.state, dict) else self.state.h).relu()


class Writes(nn.Module):
    """What one layer makes, another module reads from what both hold."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.first, self.last, self.state, self.reads = nn.Linear(4, 8), nn.Linear(8, 2), state, Reads(state)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.state, dict):
            self.state["h"] = self.first(x)
        else:
            self.state.h = self.first(x)
        return self.last(self.reads())


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("state", [{}, {"n": 0}, OrderedDict(n=3), SimpleNamespace(n=0)], ids=repr)
def test_modules_may_share_what_they_write_to(state: Any, called: bool) -> None:
    """Whether it holds numbers, which could be sizes, or not, and whatever an earlier forward has left in it."""
    model, x = Writes(copy.copy(state)), torch.randn(3, 4)
    if called:
        model(x)
    before = dict(contents(model.state))
    table = trace(model, x)
    assert contents(model.state) == before
    assert [group.members for group in table.groups] == [(("first.weight", 0), ("first.bias", 0), ("last.weight", 1))]
    assert verify(model, table) < 1e-6


def test_tensors_that_are_no_buffers_are_put_back() -> None:
    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1), self.listed[0].add_(1)
            return self.b(self.a(x))

    net = Counts(lambda net, x: x, a=conv(3, 6), b=conv(6, 4))
    net.seen, net.listed = torch.zeros(()), [torch.zeros(3)]
    wrapped = hfp.wrap(net, X, target_macs=0.5, verify=True)
    small: Any = wrapped.compact()
    for one in (net, small):
        assert one.seen == 0 and not one.listed[0].any()


def test_caches_are_put_back() -> None:
    """Whatever they are, and those inside of others; what they held on the meta device would break the next forward."""

    class Caches(Net):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[-1]
            if n not in self.positions["all"]:
                self.positions["all"][n] = torch.arange(n, device=x.device)
                self.seen.append(n), self.sizes.add(n), self.last.appendleft(n)
            return self.b(self.a(x + self.positions["all"][n]))

    net = Caches(lambda net, x: x, a=conv(3, 6), b=conv(6, 4))
    net.positions, net.seen, net.sizes, net.last = {"all": {}}, [7], {7}, deque([7], maxlen=3)
    inner = net.positions["all"]
    trace(net, X)
    assert (net.positions, net.seen, net.sizes, net.last) == ({"all": {}}, [7], {7}, deque([7]))
    assert net.positions["all"] is inner
    assert net(X).shape == (1, 4, 8, 8) and net.seen == [7, 8]


def test_a_list_in_a_config_that_is_written_to() -> None:
    """What the forward appends is there for the next one, as without a trace; and gone after it."""

    def run(net: Net, x: Tensor) -> Tensor:
        net.config.seen.append(x.shape[0])
        assert net.config.seen is net.twin.config.seen
        return net.b(net.a(x)) * len(net.config.seen)

    config = SimpleNamespace(seen=[3])
    net = Net(run, config=config, twin=Net(run, config=config), a=nn.Linear(3, 6), b=nn.Linear(6, 4))
    assert trace(net, torch.zeros(2, 3)).groups
    assert net.config is config and config.seen == [3]


@pytest.mark.parametrize("given", ["dict", "list"])
def test_what_is_put_into_an_argument_is_an_output(given: str) -> None:
    def run(net: Net, batch: Any) -> Tensor:
        h = net.a(batch["x"] if given == "dict" else batch[0])
        if given == "dict":
            batch["seen"] = net.b(h)
        else:
            batch.append(net.b(h))
        return net.c(h)

    net = Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 5), c=nn.Linear(6, 4))
    x = torch.zeros(2, 3)
    batch: Any = {"x": x} if given == "dict" else [x]
    table = trace(net, (batch,))
    assert [group.members[0] for group in table.groups] == [("a.weight", 0)]
    assert {pinned.tensor: pinned.reason for pinned in table.pinned} == dict.fromkeys(
        ("b.weight", "c.weight"), "is an output of the network"
    )
    assert batch == {"x": x} if given == "dict" else len(batch) == 1  # nor is the example changed
