"""Several threads: each is told of its own model, whatever the others do meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
from threading import Event, Thread

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hfp
from hfp.model import turns
from hfp.model.turns import turn
from hfp.proof.ptflops_check import agree

X = torch.zeros(2, 6)


class Halfway(nn.Module):
    """Tells when it is being called, and stays there until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.go_on = Event(), Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.there.set()
        assert self.go_on.wait(60)
        return F.relu(x)


class Meanwhile(nn.LayerNorm):
    """While it is called, another thread comes back from a module that it has called before."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.accompanied = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.accompanied:
            other, thread = vars(self).pop("others")
            other.go_on.set()
            thread.join()
        return super().forward(x)


class Accompanied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), Meanwhile(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm.accompanied:
            other = Halfway()
            thread = Thread(target=other, args=(torch.ones(2),))
            thread.start()
            assert other.there.wait(60)
            vars(self.norm)["others"] = other, thread
        return self.last(F.relu(self.norm(self.first(x))))


def alone() -> Accompanied:
    model = Accompanied()
    model.norm.accompanied = False
    return model


def test_a_trace_follows_its_own_thread() -> None:
    table = hfp.trace(Accompanied(), X)
    assert table.groups and table.operands
    assert str(table) == str(hfp.trace(alone(), X))
    assert [operand.site for operand in table.operands] == [operand.site for operand in hfp.trace(alone(), X).operands]


def test_ptflops_counts_are_those_of_the_thread() -> None:
    table = hfp.trace(Accompanied(), X, ptflops=True)
    agree(table, alone(), ((X,), {}))


def test_a_gated_step_follows_its_own_thread() -> None:
    torch.manual_seed(0)
    model = alone()
    x = torch.randn(5, 6)
    net = hfp.wrap(model, X, target_macs=0.5, steps=1)
    net.complexity_loss()
    assert not net.keep.all()

    def gradients(accompanied: bool) -> list[torch.Tensor]:
        model.norm.accompanied = accompanied
        return list(torch.autograd.grad(net(x).square().sum(), [*net.model.parameters(), net.gates]))

    for own, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(own, expected)


def test_traces_take_turns() -> None:
    """Others that are asked for amid one begin when that is done."""
    tables: list[hfp.ChannelTable] = []
    threads: list[Thread] = []

    class Asking(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            threads.append(Thread(target=lambda: tables.append(hfp.trace(nn.Sequential(*layers()), X))))
            threads[-1].start()
            threads[-1].join(0.2)
            return super().forward(x)

    def layers() -> list[nn.Module]:
        return [nn.Linear(6, 12), nn.LayerNorm(12), nn.Dropout(), nn.Linear(12, 3)]

    table = hfp.trace(Asking(*layers()), X)
    for thread in threads:
        thread.join()
    assert [other.fingerprint() for other in tables] == len(threads) * [table.fingerprint()]


def enters(model: nn.Module) -> bool:
    """Whether another thread gets a turn in the model now."""

    def take() -> None:
        with turn(model):
            pass

    other = Thread(target=take, daemon=True)
    other.start()
    other.join(0.2)
    return not other.is_alive()


def test_a_turn_is_of_one_thread_in_one_model() -> None:
    model = nn.Linear(2, 2)
    with turn(model), turn(model):
        assert not enters(model)
        assert enters(copy.deepcopy(model)) and enters(pickle.loads(pickle.dumps(model)))
    assert enters(model)


def test_turns_go_with_their_models() -> None:
    model = nn.Linear(2, 2)
    with turn(model):
        before = len(turns._turns)
    del model
    gc.collect()
    assert len(turns._turns) < before


@pytest.mark.skipif(torch.__version__ < "2.7", reason="this PyTorch compiles no context managers")
def test_compiled_code_takes_none() -> None:
    model = nn.Linear(2, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        with turn(model):
            return model(x)

    x = torch.randn(3, 2)
    with turn(model):
        found = torch.compile(run, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, model(x))
