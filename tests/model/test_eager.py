"""Parts of a model that are compiled, and operators that are given functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from specimen import Net
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

import hfp
from hfp.model.eager import eagerly

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.compile, which has others in every version

followed = pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "supports_higher_order_operators"), reason="this PyTorch refuses to run them"
)


@pytest.fixture
def compiled() -> list[Any]:
    """What the backend of `counting` has been given."""
    torch._dynamo.reset()
    return []


def counting(graphs: list[Any]) -> Callable[..., Any]:
    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend


def test_compiled_parts_are_followed_and_gated_as_written_and_stay_compiled(compiled: list[Any]) -> None:
    gelu = torch.compile(lambda x: x * torch.sigmoid(1.7 * x), backend=counting(compiled))
    inner = torch.compile(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12)), backend=counting(compiled))

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(gelu(h + net.inner(h)))

    model = Net(run, a=nn.Linear(4, 12), inner=inner, c=nn.Linear(12, 3))
    net = hfp.wrap(model, torch.randn(2, 4), target_macs=0.5, steps=1)
    x = torch.randn(5, 4)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01))
    (net(x).square().mean() + net.complexity_loss()).backward()
    optimizer.step()
    assert not compiled
    small = net.eval().compact()
    assert net.macs() < net.dense_macs
    torch.testing.assert_close(small(x), net(x))
    assert compiled


@pytest.mark.parametrize("method", ["hfp", "prunenet", "slimming"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_a_gated_network_may_be_compiled_as_a_whole(norm: type[nn.Module], method: str, compiled: list[Any]) -> None:
    """Where channels have to be hidden it runs as it is written."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), norm(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    net = hfp.wrap(model, torch.randn(2, 4), target_macs=0.5, steps=5, method=method)
    whole = torch.compile(net, backend=counting(compiled))
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01))
    x = torch.randn(6, 4)
    for _ in range(6):
        learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
        outs = [called(x) for called in (whole, net)]
        torch.testing.assert_close(*outs)
        own, expected = (torch.autograd.grad(out.square().sum(), learning, allow_unused=True) for out in outs)
        torch.testing.assert_close(own, expected)
        (whole(x).square().mean() + net.complexity_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not net.keep.all()
    assert compiled or norm is nn.LayerNorm
    torch.testing.assert_close(net.eval().compact()(x), whole(x))


def reasons(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    return {pinned.tensor: pinned.reason for pinned in hfp.trace(model, inputs).pinned}


@followed
def test_what_is_given_to_an_operator_with_functions_stays_whole() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.b(net.a(x).relu()).relu()
        return net.c(torch.cond(h.sum() > 0, lambda h: 2 * h, lambda h: h.sin(), (h,)))

    model = Net(run, a=nn.Linear(4, 12), b=nn.Linear(12, 8), c=nn.Linear(8, 3))
    assert "is given to cond, which takes functions" in reasons(model, torch.randn(2, 4))["b.weight"]
    small = hfp.wrap(model, torch.randn(2, 4), target_macs=0.7).compact()
    assert (small.a.out_features < 12, small.b.out_features) == (True, 8)


@followed
def test_flexible_attention() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.embed(x)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in net.qkv(h).chunk(3, -1))
        later = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: torch.where(i >= j, score, -1e9))
        return net.out(h + later.transpose(1, 2).flatten(2))

    model = Net(run, embed=nn.Linear(4, 16), qkv=nn.Linear(16, 48), out=nn.Linear(16, 3)).eval()
    x = torch.randn(2, 5, 4)
    assert "is given to flex_attention" in reasons(model, x)["qkv.weight"]


def test_the_last_to_leave_puts_back_what_the_first_found() -> None:
    """Threads need not leave in the order in which they came."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))

    def stance() -> str:
        return str(torch._dynamo.eval_frame._stance.stance)

    first, second = eagerly(), eagerly()
    before = stance()
    for thread in first, second:
        thread.__enter__()
    first.__exit__(None, None, None)
    assert stance() == "force_eager" != before
    second.__exit__(None, None, None)
    assert stance() == before
