"""Where a function is called: the same in every pass, whatever runs in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from specimen import Net
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import TorchFunctionMode

from hfp.model.names import Names
from hfp.tracing.position import Position, Site

X = torch.zeros(2, 4)


class Noted(TorchFunctionMode):
    """The sites of all functions of one name."""

    def __init__(self, position: Position, name: str) -> None:
        super().__init__()
        self.position, self.name = position, name
        self.sites: list[Site] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == self.name:
            self.sites.append(self.position.site(self.name))
        return func(*args, **(kwargs or {}))


def sites(model: nn.Module, name: str = "relu") -> list[Site]:
    position = Position(Names.of(model).modules)
    with position.following(), Noted(position, name) as noted:
        model(X)
    return noted.sites


def twice(net: Net, x: Tensor) -> Tensor:
    return torch.relu(torch.relu(net.inner(x)) + net.inner(x))


def nested() -> Net:
    return Net(twice, inner=Net(lambda net, x: net.deep(torch.relu(x)), deep=nn.ReLU()))


def test_calls_are_counted_in_each_call_of_a_module() -> None:
    assert sites(nested()) == [
        Site("inner", 1, "relu", 1),
        Site("inner.deep", 1, "relu", 1),
        Site("", 1, "relu", 1),
        Site("inner", 2, "relu", 1),
        Site("inner.deep", 2, "relu", 1),
        Site("", 1, "relu", 2),
    ]


def test_every_pass_has_the_same_sites() -> None:
    model = nested()
    assert sites(model) == sites(model)


def test_functions_of_different_names_are_counted_apart() -> None:
    position = Position(Names.of(nested()).modules)
    found = [position.site(name) for name in ("relu", "add", "relu", "add")]
    assert [(site.function, site.number) for site in found] == [("relu", 1), ("add", 1), ("relu", 2), ("add", 2)]


def test_inside_a_function_calls_are_counted_by_themselves() -> None:
    position = Position({})
    before = position.site("layer_norm")
    assert not position.opened
    with position.inside(before):
        assert position.opened and position.path == ""
        inner = position.site("mean")
    after = position.site("mean")
    assert inner == Site("|layer_norm#1", 1, "mean", 1) and inner.inside == before.frame
    assert after == Site("", 0, "mean", 1) and not position.opened


def test_path_and_module_are_those_of_what_runs() -> None:
    model, seen = nested(), []
    position = Position(Names.of(model).modules)
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: seen.append((position.path, position.module is module)))
    with position.following():
        model(X)
    assert set(seen) == {("inner.deep", True), ("inner", True), ("", True)}
    assert position.path == "" and position.module is None


def test_a_module_that_is_not_part_of_the_model_runs_where_it_is_called() -> None:
    stranger = nn.ReLU()
    assert sites(Net(lambda net, x: net.a(x), a=Net(lambda net, x: stranger(x))))[0].inside == "a"


def test_a_module_that_fails_is_left_again_and_no_hook_stays() -> None:
    def fails(net: Net, x: Tensor) -> Tensor:
        raise KeyError("mine")

    def run(net: Net, x: Tensor) -> Tensor:
        try:
            return net.a(x)
        except KeyError:
            return torch.relu(x)

    assert sites(Net(run, a=Net(fails))) == [Site("", 1, "relu", 1)]
    with pytest.raises(KeyError):
        sites(Net(fails))
    assert not _global_forward_hooks and not _global_forward_pre_hooks
