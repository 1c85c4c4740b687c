"""Mixtures of experts of which some have nothing to do on the example inputs."""

from __future__ import annotations

import pytest
import torch
from promises import Gated, call, check_cut, random_keep, relative_difference
from torch import Tensor, nn

import hfp
from hfp import trace
from hfp.cutting.surgery import compact


def expert() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 8))


class Mixture(nn.Module):
    """Sends each row to the expert that its first number names."""

    def __init__(self, *experts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out = h.clone()
        for number, one in enumerate(self.experts):
            (rows,) = torch.where(x[:, 0] == number)
            if rows.numel():
                out = out.index_add(0, rows, one(h[rows]))
        return self.last(out)


def rows(*numbers: int) -> Tensor:
    x = torch.randn(len(numbers), 5, dtype=torch.float64)
    x[:, 0] = torch.tensor(numbers)
    return x


def mixture(*experts: nn.Module) -> Mixture:
    torch.manual_seed(0)
    return Mixture(*experts).double().eval()


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_an_idle_expert_reads_and_makes_what_its_siblings_do(density: float) -> None:
    model = mixture(*(expert() for _ in range(4)))
    table = trace(model, rows(0, 2, 0))
    assert [group.width for group in table.groups] == [8, 10, 10, 10, 10] and not table.notes
    assert (
        table.fingerprint() == trace(model, rows(3, 1, 1)).fingerprint() == trace(model, rows(0, 1, 2, 3)).fingerprint()
    )
    keep = random_keep(table, density, torch.Generator().manual_seed(0))
    check_cut(model, table, keep, ((rows(0, 2, 0),), {}), 1e-9)
    everywhere = ((rows(3, 1, 2, 0, 1),), {})
    small = compact(model, table, keep)
    assert relative_difference(call(Gated(model, table, keep), everywhere), call(small, everywhere)) < 1e-9


def test_an_idle_module_without_a_sibling_is_told() -> None:
    narrow = nn.Linear(8, 8)
    table = trace(mixture(expert(), expert(), narrow), rows(0, 1))
    assert len(table.notes) == 1 and table.notes[0].startswith("experts.2 did not run on the example inputs")
    assert "experts.2 did not run" in str(table)


def test_idle_weights_of_a_module_that_ran_are_told() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.weights = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(2, 8, 8))

        def forward(self, h: Tensor) -> Tensor:
            return h @ self.weights[0] if h.sum() > 1e9 else h + self.shift

    table = trace(mixture(Stacked(), Stacked()), rows(0, 0))
    assert table.notes[0].startswith("experts.0.weights did not run")


def test_what_runs_in_one_mode_has_run() -> None:
    class Auxiliary(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out + self.aux(out) if self.training else out

    model = Auxiliary(expert(), expert()).double()
    model.aux = nn.Linear(3, 3, dtype=torch.float64)
    assert not trace(model.eval(), rows(0, 1)).notes


def test_experts_may_be_called_by_names_that_values_spell() -> None:
    class Named(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out = torch.zeros_like(h)
            for number in x[:, 0].long().unique():
                (rows,) = torch.where(x[:, 0] == number)
                out = out.index_add(0, rows, self.experts[f"expert_{number}"](h[rows]))
            return self.last(out)

    torch.manual_seed(0)
    model = Named().double().eval()
    model.experts = nn.ModuleDict({f"expert_{number}": expert() for number in range(3)}).double()  # type: ignore[assignment]
    table = trace(model, rows(0, 2, 0))
    assert [group.width for group in table.groups] == [8, 10, 10, 10]
    for density in (0.0, 0.5):
        keep = random_keep(table, density, torch.Generator().manual_seed(0))
        check_cut(model, table, keep, ((rows(0, 2, 0),), {}), 1e-9)


class Within(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


class Twice(nn.Module):
    """A module has two names, as where a student and its average share one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.within = Within(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x * 2 if x.abs().sum() > 0 else x)


def test_a_module_of_two_names() -> None:
    assert trace(Twice(), torch.randn(2, 8)).channels == 16
    hfp.wrap(Twice(), torch.randn(2, 8), target_macs=0.5, verify=True).compact()
