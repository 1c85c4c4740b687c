"""Networks that draw numbers, whatever their mode."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from specimen import Net
from torch import Tensor, nn

import hfp
from hfp.model.chance import DRAWN, NoChance, forked

X = torch.randn(3, 8)


def sampled(h: Tensor) -> Tensor:
    return h + h.exp() * torch.randn_like(h)


def attended(h: Tensor) -> Tensor:
    heads = h.view(len(h), 1, 2, -1)
    return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.3).flatten(1)


def sampled_and_attended(h: Tensor) -> Tensor:
    """Nothing is dropped here, so that nothing is said of it."""
    heads = sampled(h).view(len(h), 1, 2, -1)
    return F.scaled_dot_product_attention(heads, heads, heads).flatten(1)


DRAWS: list[Callable[[Tensor], Tensor]] = [
    F.dropout, F.alpha_dropout, sampled, attended, sampled_and_attended, F.rrelu, torch.relu,
    lambda h: torch.normal(h, 1.0),
    lambda h: F.rrelu(h, training=True),
    lambda h: torch.bernoulli(h.sigmoid()), lambda h: h * torch.empty_like(h).uniform_(0.5, 1.0),
    lambda h: h + torch.distributions.Normal(torch.zeros_like(h), torch.ones_like(h)).rsample(),
    lambda h: h[torch.randperm(len(h))],
]  # fmt: skip


def test_what_an_accelerator_draws_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose numbers have no module of their own in `fork_rng`, such as Apple's."""
    states = [torch.tensor([7], dtype=torch.uint8)]
    stand_in = {
        "device_count": lambda: 1,
        "get_rng_state": lambda device=0: states[-1],
        "set_rng_state": lambda state, device=0: states.append(state),
        "manual_seed": lambda seed: states.append(torch.tensor([seed], dtype=torch.uint8)),
        "_is_in_bad_fork": lambda: False,
    }
    for name, function in stand_in.items():
        monkeypatch.setattr(torch.mps, name, function)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    with forked(0):
        assert states[-1] == 0
    assert states[-1] == 7


@pytest.mark.parametrize("draw", DRAWS)
def test_a_network_that_draws_in_evaluation_mode_is_pruned(draw: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Net(lambda net, x: net.b(draw(net.a(x))), a=nn.Linear(8, 16), b=nn.Linear(16, 4))
    net = hfp.wrap(model, X, target_macs=0.5, verify=True)
    small = net.compact()
    assert small.a.out_features == 8  # type: ignore[union-attr]
    with NoChance(), torch.no_grad():
        net.keep = small.hfp_record.keep  # type: ignore[assignment, union-attr]
        assert torch.allclose(net.eval()(X), small.eval()(X), atol=1e-6)


def test_a_wrong_cut_of_a_network_that_draws_is_found() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = F.dropout(net.a(x))
        return net.b(h * (2.0 if net.a.out_features == 16 else 3.0))

    model = Net(run, a=nn.Linear(8, 16), b=nn.Linear(16, 4))
    table = hfp.trace(model, X)
    if table.groups:  # whatever the trial thinks of it
        with pytest.raises(hfp.Disagreement):
            hfp.verify(model, table)


GENERATORS: list[Callable[[], float]] = [random.random, np.random.rand, lambda: float(torch.rand(()))]


@pytest.mark.parametrize("draw", GENERATORS)
def test_what_python_and_numpy_draw_is_the_same_for_both_and_leaves_no_trace(draw: Callable[[], float]) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(net.a(x * draw()).relu() if draw() < 0.5 else net.a(x))

    for seed in range(3):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        torch.rand(()), random.random(), np.random.rand()
        model = Net(run, a=nn.Linear(8, 16), b=nn.Linear(16, 4))
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        net = hfp.wrap(model, X, target_macs=0.5, verify=True)
        hfp.verify(model, net.table, X)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        assert net.compact().a.out_features == 8  # type: ignore[union-attr]


def test_what_is_drawn_is_one_number_and_still_rests_on_what_it_rested_on() -> None:
    mean, rate = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])
    with NoChance():
        assert torch.equal(torch.randn(2), torch.full((2,), DRAWN))
        assert torch.equal(torch.normal(mean, 2.0), mean + 2 * DRAWN)
        assert torch.equal(torch.poisson(rate), rate)
        assert torch.equal(torch.bernoulli(rate / 4), rate / 4)
        assert torch.equal(torch.randint(3, 9, (2,)), torch.tensor([3, 3]))
        assert torch.equal(torch.randperm(3), torch.arange(3))
        assert torch.equal(F.dropout(mean), mean)
    assert len({float(torch.randn(())) for _ in range(3)}) == 3


def test_slopes_that_are_drawn_are_those_of_the_backward_pass_too() -> None:
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    with NoChance():
        y = F.rrelu(x, 0.1, 0.3, training=True)
        (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.tensor([-0.4, 3.0]))
    torch.testing.assert_close(grad, torch.tensor([0.2, 1.0]))
