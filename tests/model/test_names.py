"""The names in a model."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from hfp import trace
from hfp.model.names import Names


def shared() -> nn.Module:
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.BatchNorm1d(3), "three": nn.Linear(3, 3)})
    model["again"] = model["one"]
    model["three"].weight = model["one"].weight
    model["two"].register_buffer("copy", model["two"].running_mean)
    return model


def test_tensors_go_by_the_first_of_their_names() -> None:
    model = shared()
    names = Names.of(model)
    assert names.parameters == [name for name, _ in model.named_parameters()]
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(names.tensors) == list(expected) and not names.constants
    assert all(names.tensors[name] is tensor for name, tensor in expected.items())


def test_tied_tensors_have_several_places_and_shared_modules_one() -> None:
    names = Names.of(shared())
    assert names.aliases["three.weight"] == "one.weight" and names.aliases["two.copy"] == "two.running_mean"
    assert "again.weight" not in names.aliases and "again" not in names.modules.values()


def test_a_tensor_for_every_place_can_be_put_in_and_taken_out() -> None:
    model, x = shared(), torch.zeros(2, 3)
    names = Names.of(model)
    before = dict(model.named_parameters(remove_duplicate=False))
    places = {alias: torch.zeros_like(names.tensors[name]) for alias, name in names.aliases.items()}
    chain = nn.Sequential(*model.values())
    inner = {alias.replace("one", "0").replace("two", "1").replace("three", "2"): t for alias, t in places.items()}
    torch.func.functional_call(chain, inner, (x,), tie_weights=False)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())


class Table(nn.Module):
    """Tensors that no other list of the module has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.table = torch.rand(2, 3)
        self.spins = torch.zeros(3, dtype=torch.complex64)
        self.index, self.scalar, self.last = torch.arange(3), torch.tensor(2.0), torch.zeros(3)

    @cached_property
    def cached(self) -> Tensor:
        return torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x) * self.cached
        return self.last


def test_constants_are_what_init_alone_stores() -> None:
    """Not whole numbers, not single ones, not what is stored or computed later, nor what has a history."""
    model = nn.Sequential(Table(), nn.BatchNorm1d(3))
    model[1].table = model[0].table
    model[1].weight_twice = model[1].weight * 2
    model(torch.zeros(2, 3))
    names = Names.of(model)
    assert names.constants == {"0.table", "0.spins"}
    assert names.tensors["0.table"] is model[0].table
    assert list(names.tensors)[-2:] == ["0.table", "0.spins"] and names.parameters == list(names.tensors)[:4]


class Mover(nn.Module):
    """Stores what it had, elsewhere; and other things."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.tuned, self.copied, self.cast, self.many = (torch.rand(3) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 1:
            self.moved = self.moved.to(x.device, non_blocking=True)
        self.tuned = self.tuned.to(x) + 1
        self.copied = self.cast.cpu()
        self.many, self.other = self.many.cpu(), self.cast.cpu()
        y = self.cast
        self.cast = y.to(x.dtype)
        return self.moved


def test_a_constant_may_be_moved() -> None:
    assert Names.of(Mover()).constants == {"moved"}


def test_a_constant_is_in_the_table_only_where_channels_can_go() -> None:
    """Else a file would not fit a network of the same class to which another tensor was attached."""

    class Marked(nn.Sequential):
        pass

    model, x = Marked(nn.Linear(3, 6), nn.Linear(6, 2)), torch.zeros(1, 3)
    before = trace(model, x)
    model.mean, model.std = torch.rand(6), torch.rand(2)
    after = trace(model, x)
    assert Names.of(model).constants == {"mean", "std"}
    assert after.fingerprint() == before.fingerprint() and set(after.axes) == set(dict(model.named_parameters()))
