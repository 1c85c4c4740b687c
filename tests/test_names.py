"""The names in a model."""

from __future__ import annotations

import torch
from torch import nn

from hfp.names import Names


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
    assert list(names.tensors) == list(expected)
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
