"""What the gates learn, against the closed form of where they rest; and what decides before they have learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hfp as package
from hfp.methods import hfp
from hfp.methods.magnitude import relative_magnitude

SENSITIVITY = torch.tensor([0.1, 1.0, -3.0, 2.0])  # dL / d phi
PRICE = torch.tensor([0.5, 1.0, 2.0, 0.5], dtype=torch.float64)  # dC / d phi


def trained(keep: Tensor, steps: int, *, scale: float = 1.0, lr: float = 0.1) -> Tensor:
    """Gates after `steps` of plain gradient descent on a task and a complexity loss, both linear in phi."""
    gates = torch.zeros(4, requires_grad=True)
    for _ in range(steps):
        task = (hfp.task_gate(gates, keep, PRICE) * SENSITIVITY).sum()
        complexity = (hfp.cost_gate(gates, keep, PRICE) * PRICE).sum()
        (gradient,) = torch.autograd.grad(scale * (task + complexity), gates)
        with torch.no_grad():
            gates -= lr * gradient / scale
    return gates.detach()


def test_both_gates_are_the_indicator() -> None:
    keep = torch.tensor([True, False, True, True])
    gates = torch.tensor([0.3, 5.0, -1.0, 0.0])
    assert hfp.task_gate(gates, keep, PRICE).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert hfp.cost_gate(gates, keep, PRICE).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_gates_rest_where_the_pulls_are_equal() -> None:
    gates = trained(torch.ones(4, dtype=torch.bool), 200)
    expected = SENSITIVITY.double().square() / PRICE
    assert torch.allclose((gates / gates[1]).double(), expected / expected[1], rtol=1e-5)


def test_the_order_is_right_long_before_gates_rest() -> None:
    few, many = (trained(torch.ones(4, dtype=torch.bool), steps) for steps in (2, 200))
    assert few.argsort().tolist() == many.argsort().tolist() == [0, 1, 2, 3]


def test_the_scale_of_the_loss_does_not_matter() -> None:
    keep = torch.ones(4, dtype=torch.bool)
    assert torch.allclose(trained(keep, 20, scale=65536.0), trained(keep, 20), rtol=1e-5)


def test_closed_gates_keep_their_value() -> None:
    gates = trained(torch.tensor([True, False, True, True]), 20)
    assert gates[1] == 0 and bool((gates[[0, 2, 3]] > 0).all())


def test_nothing_moves_when_nothing_has_a_price() -> None:
    gates, keep = torch.zeros(4, requires_grad=True), torch.ones(4, dtype=torch.bool)
    phi = hfp.task_gate(gates, keep, torch.zeros(4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((phi * SENSITIVITY).sum(), gates)
    assert gradient.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.05, 0.0), (hfp.WARM_UP, 0.0), (0.55, 0.5), (1.0, 1.0)]
)
def test_the_budget_waits_for_the_gates(progress: float, expected: float) -> None:
    assert hfp.schedule(progress) == pytest.approx(1 - (1 - expected) ** 3)


def test_magnitude_is_relative_to_the_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        for layer, sizes in ((0, (1.0, 2.0, 3.0, 2.0)), (2, (100.0, 300.0))):
            model[layer].weight.copy_(torch.tensor(sizes).reshape(-1, 1, 1, 1).expand_as(model[layer].weight))
    found = relative_magnitude(model, package.trace(model, torch.zeros(1, 3, 8, 8)))
    assert found.tolist() == pytest.approx([0.5, 1.0, 1.5, 1.0, 0.5, 1.5])


def test_magnitude_decides_until_gates_have_learned() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[1] *= 10
    small = package.wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.3).compact()
    assert torch.equal(small[0].weight, model[0].weight[1:2])


class _Heads(nn.Module):
    """The values of an attention, 2 heads of 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(4, 6), nn.Linear(6, 5)
        self.heads, self.size = 2, 3

    def forward(self, x: Tensor) -> Tensor:
        heads = self.value(x).unflatten(-1, (self.heads, self.size))
        return self.out((heads * 2).flatten(-2))


def test_a_filter_counts_for_its_head_and_for_its_place_in_it() -> None:
    model = _Heads()
    with torch.no_grad():
        model.value.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 3.0, 4.0, -5.0])[:, None].expand(6, 4))
    table = package.trace(model, torch.zeros(5, 4))
    found = {group.width: relative_magnitude(model, table)[group.channels].tolist() for group in table.groups}
    assert found == {2: pytest.approx([2 / 3, 4 / 3]), 3: pytest.approx([2 / 3, 1.0, 4 / 3])}
