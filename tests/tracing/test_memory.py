"""What a run remembers of tensors: by identity, as long as that is theirs, and without holding their values."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from hfp import trace
from hfp.tracing.memory import Memory

IDS = torch.arange(4)


def test_a_tensor_with_values_goes_and_takes_its_labels_along() -> None:
    memory = Memory()
    for _ in range(3):  # the next has, more likely than not, the id of the one before
        x = torch.zeros(1, 4)
        assert x not in memory and memory.labels(x) == ()
        memory.label(x, (None, IDS))
        memory.meet(x)
        assert x in memory and memory.labels(x)[1] is IDS
        gone = weakref.ref(x)
        del x
        assert gone() is None


def test_a_tensor_of_shapes_is_held() -> None:
    memory = Memory()
    x = torch.zeros(1, 4, device="meta")
    memory.meet(x)
    held = weakref.ref(x)
    del x
    assert held() is not None


class Subclass(Tensor):
    pass


def test_what_is_the_same_numbers_has_the_same_labels() -> None:
    memory = Memory()
    x = torch.zeros(1, 4)
    memory.label(x, (None, IDS))
    memory.meet(x, stored=True)
    same, part, turned = x.as_subclass(Subclass), x[:, 1:], x.mT
    assert memory.adopt(same) == () and memory.labels(same)[1] is IDS and memory.is_stored(same)
    for other in (part, turned):  # may be any view, of which nothing is known
        assert memory.adopt(other)[1] is IDS and memory.labels(other) == ()
    assert memory.adopt(torch.zeros(1, 4)) == ()


def test_what_shares_memory_is_known_by_the_first_on_it_even_when_that_is_gone() -> None:
    memory = Memory()
    x = torch.zeros(1, 4)
    memory.label(x, (None, IDS))
    memory.meet(x)
    view = x.view(2, 2)
    memory.meet(view)
    del x
    assert memory.adopt(view[:1])[1] is IDS
    del view
    others = [torch.zeros(1, 4) for _ in range(100)]
    assert not any(memory.adopt(other) for other in others)


GONE: list[bool] = []


class Looks(nn.Module):
    """Whose code looks at values, so that it is traced on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        still = weakref.ref(hidden)
        out: Tensor = self.second(hidden)
        del hidden
        if float(out.sum()) > -1e9:
            GONE.append(still() is None)
        return out


def test_a_trace_on_numbers_lets_activations_go() -> None:
    GONE.clear()
    assert [group.width for group in trace(Looks(), torch.zeros(1, 3)).groups] == [8]
    assert GONE[:2] == [True, True]  # the labelled runs; trials, on shapes alone, come after them
