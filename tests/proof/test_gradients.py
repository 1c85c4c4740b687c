"""A gated network that would learn something else than the compact one is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from specimen import Net, conv, parameter
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp.model import outputs
from hfp.proof.verify import random_keeps

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class AcrossChannels(torch.autograd.Function):
    """A mean over channels that its backward pass divides by their number: as layer norms written by hand do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] - grads[0].mean(1, keepdim=True)


class Recomputing(torch.autograd.Function):
    """Calls a layer a second time in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.layer(x).relu(), grads[0])
        assert x.grad is not None
        return x.grad, None


def layers(run: Any) -> Net:
    torch.manual_seed(0)
    return Net(run, a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))


class AcrossImaginary(torch.autograd.Function):
    """The imaginary part of the gradient is a mean over channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return torch.complex(grad.real, grad.imag.mean(1, keepdim=True).expand_as(grad))


def complex_layers(run: Any) -> Net:
    torch.manual_seed(0)
    return Net(run, a=nn.Linear(6, 8, dtype=torch.cfloat), c=nn.Linear(8, 4, dtype=torch.cfloat))


def test_both_parts_of_complex_gradients_count() -> None:
    z = torch.randn(3, 6).cfloat()  # real: so the wrong part of a gradient does not come into the other
    hfp.wrap(complex_layers(lambda net, x: net.c(net.a(x)).abs()), z, target_params=0.5, verify=True)
    with pytest.raises(hfp.Disagreement, match="the gradient of a.* is another by"):
        hfp.wrap(complex_layers(lambda net, x: net.c(AcrossImaginary.apply(net.a(x))).abs()), z, target_params=0.5)


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    net = hfp.wrap(model, torch.zeros(1, 5, dtype=torch.long), target_params=0.6, verify=True)
    (net(torch.zeros(1, 5, dtype=torch.long)).sum() + net.complexity_loss()).backward()
    net.compact()


def test_a_lack_of_memory_is_no_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    net = hfp.wrap(layers(lambda net, x: net.c(net.b(net.a(x)))), X, target_macs=0.5)
    keep = next(iter(random_keeps(net.table, 1)))

    def full(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    for function in ("grad", "backward"):
        monkeypatch.setattr(torch.autograd, function, full)
    with pytest.raises(MemoryError):
        net.proof().check_gradients(keep)
    monkeypatch.setattr(outputs, "difference", full)
    with pytest.raises(MemoryError):
        net.proof().check(keep)


NETS: dict[str, tuple[Any, str]] = {
    "a function of their own": (
        lambda net, x: net.c(AcrossChannels.apply(net.a(x))),
        "the gradient of a.weight is another by",
    ),
    "layers called in backward": (
        lambda net, x: net.c(Recomputing.apply(net.a(x), net.b)),
        r"the gradient of [abc].weight is (another by|none in the former)",
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_what_a_trace_does_not_show_is_found_by_its_gradients(name: str) -> None:
    run, words = NETS[name]
    with pytest.raises(hfp.Disagreement, match=words) as found:
        hfp.wrap(layers(run), X, target_macs=0.5)
    assert found.value.groups
    advice = str(found.value).partition("hfp.wrap(..., ignore=")[2].rstrip(")")
    ignore = [name.strip("' ") for name in advice.strip("[]").split(",")]
    whole = hfp.trace(layers(run), X, ignore=ignore)
    assert hfp.verify(layers(run), whole) < 1e-5


def test_all_that_is_to_blame_is_named_at_once_and_nothing_else() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = AcrossChannels.apply(net.a(x))
        h = AcrossChannels.apply(net.c(net.b(h).relu()))
        return net.e(net.d(h).relu())

    torch.manual_seed(0)
    net = Net(run, a=conv(3, 8), b=conv(8, 7), c=conv(7, 6), d=conv(6, 9), e=conv(9, 4))
    with pytest.raises(hfp.Disagreement, match="made by a, read by b.*; .*made by c, read by d") as found:
        hfp.wrap(net, X, target_macs=0.5)
    assert str(found.value).endswith("hfp.wrap(..., ignore=['a', 'c'])")
    assert len(found.value.groups) == 2
    hfp.wrap(net, X, target_macs=0.8, ignore=["a", "c"], verify=True)


def test_the_advice_leaves_as_little_whole_as_may_be() -> None:
    """The block owns a parameter of the group that is to blame, but there is more inside it."""
    torch.manual_seed(0)
    block = Net(lambda net, x: net.scale * net.b(net.a(x).relu()), a=conv(3, 8), b=conv(8, 6), scale=parameter(6, 1, 1))
    with pytest.raises(hfp.Disagreement, match=r"ignore=\['block.b'\]"):
        hfp.wrap(
            Net(lambda net, x: net.c(AcrossChannels.apply(net.block(x))), block=block, c=conv(6, 4)), X, target_macs=0.8
        )


GLOBAL: Any = None


def test_a_function_that_a_copy_shares_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact network would read the parameter of the model, and never train its own."""
    net = layers(lambda net, x: net.c(net.b(net.scaled(net.a(x)))))
    net.scale = nn.Parameter(torch.tensor(2.0))
    net.scaled = lambda x: x * GLOBAL.scale
    monkeypatch.setitem(globals(), "GLOBAL", net)
    with pytest.raises(hfp.Disagreement, match="the gradient of scale is none in the latter.* scaled: functions"):
        hfp.wrap(net, X, target_macs=0.5)


def test_a_hook_that_names_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = layers(lambda net, x: net.c(net.b(net.a(x)) + net.kept))
    net.b.register_forward_pre_hook(lambda module, args: setattr(GLOBAL, "kept", args[0]))
    monkeypatch.setitem(globals(), "GLOBAL", net)
    with pytest.raises(hfp.Disagreement, match=r"b\._forward_pre_hooks: functions \(lambdas, hooks\) that name a part"):
        hfp.wrap(net, X, target_macs=0.5)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_learns_the_same(name: str) -> None:
    model = ZOO[name].model()
    table = hfp.trace(model, ZOO[name].inputs())
    hfp.verify(model, table, cuts=2)


ENTROPIES: dict[str, Any] = {
    "p log p": lambda p, _: p * p.log(),
    "xlogy": lambda p, _: torch.xlogy(p, p),
    "root": lambda p, _: p.sqrt(),
    "power": lambda p, _: p**0.3,
    "log": lambda p, _: p.log(),
    "kl_div": lambda p, h: F.kl_div(F.log_softmax(2 * h, 1), p, reduction="none"),
    "norm of log_softmax": lambda p, h: F.instance_norm(F.log_softmax(h, 1)),
}


@pytest.mark.parametrize("method", ["hfp", "pag"])
@pytest.mark.parametrize("name", ENTROPIES)
def test_behind_a_hidden_softmax_all_is_finite(name: str, method: str) -> None:
    """A zero there would have an infinite logarithm, and its root an infinite derivative."""

    def run(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        h = net.a(x)
        found = ENTROPIES[name](h.softmax(1), h)
        return net.c(net.b(found)), found.sum(1)

    net = hfp.wrap(layers(run), X, target_macs=0.4, steps=2, method=method, verify=True).train()
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01))
    for _ in range(4):
        logits, entropy = net(X)
        (logits.square().mean() + entropy.square().mean() + net.complexity_loss()).backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())
        optimizer.step(), optimizer.zero_grad()
    assert not net.keep.all()
    net.compact()
