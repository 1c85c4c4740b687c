"""`wrap`: a model and a budget become a gated network, and nothing else changes."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from exactness import check_exact
from promises import call, measured, relative_difference, snapshot
from small_run import X, network
from specimen import Specimen
from torch import Tensor, nn
from torch.nn.utils import prune
from zoo import ZOO

import hfp
import models

PRUNABLE = [specimen for specimen in ZOO.values() if specimen.groups]
SMALL = ("chain", "residual", "squeeze_and_excite", "flattened", "auxiliary_head", "keyword_inputs", "dense_block")


@pytest.mark.parametrize("specimen", PRUNABLE, ids=lambda s: s.name)
def test_wrap_changes_nothing(specimen: Specimen) -> None:
    """Promise 1: not the output, nor modes, nor the identity of parameters, nor buffers, nor random numbers."""
    for training in (False, True):
        model = specimen.model().train(training)
        given = specimen.inputs()
        inputs = ((), given) if isinstance(given, dict) else (given, {})
        before = snapshot(model)
        net = hfp.wrap(model, given, target_macs=1.0)
        assert snapshot(model) == before and net.model is model and net.training == training
        if not training:
            assert relative_difference(call(model, inputs), call(net, inputs)) == 0.0


@pytest.mark.parametrize(
    "targets", [{"target_macs": 0.5}, {"target_params": 0.5}, {"target_macs": 0.6, "target_params": 0.4}]
)
@pytest.mark.parametrize("name", SMALL)
def test_compact_meets_the_budget_without_any_training(name: str, targets: dict[str, float]) -> None:
    specimen = ZOO[name]
    model, given = specimen.model(), specimen.inputs()
    net = hfp.wrap(model, given, **targets)
    small = net.compact()
    macs, params = measured(small, ((), given) if isinstance(given, dict) else (given, {}))
    record = small.hfp_record
    assert (record.macs, record.params) == (macs, params)
    assert macs <= targets.get("target_macs", 1) * net.dense_macs
    assert params <= targets.get("target_params", 1) * net.dense_params
    check_exact(record.keep, net.table, [(budget.cost, budget.target) for budget in net.budgets])


def test_a_model_that_tells_its_own_size() -> None:
    net = hfp.wrap(models.build("lenet5"), target_macs=0.5)
    assert net.compact().hfp_record.macs <= 0.5 * net.dense_macs


def test_targets_as_counts() -> None:
    net = hfp.wrap(network(), X, target_macs=30_000, target_params=1_000)
    record = net.compact().hfp_record
    assert record.macs <= 30_000 and record.params <= 1_000


@pytest.mark.parametrize(
    "call_, words",
    [
        (lambda: hfp.wrap(network(), X), "target_macs=0.4"),
        (lambda: hfp.wrap(network(), X, target_macs=0.0), "target_macs=0.0"),
        (lambda: hfp.wrap(network(), X, target_macs=40), "smallest reachable"),
        (lambda: hfp.wrap(network(), X, target_macs=10**12), "above the"),
        (lambda: hfp.wrap(network(), target_macs=0.5), "input size"),
        (lambda: hfp.wrap(network(), torch.zeros(1, 4, 8, 8), target_macs=0.5), "(1, 4, 8, 8)"),
        (lambda: hfp.wrap(network(), X, target_macs=0.5, steps=0), "steps=0"),
        (lambda: hfp.wrap(network(), X, target_macs=0.5, round_to=0), "round_to=0"),
        (lambda: hfp.wrap(network(), X, target_macs=0.5, counter="flops"), "flops"),
        (lambda: hfp.wrap(network(), X, target_macs=0.5, method="magic"), "magic"),
        (lambda: hfp.wrap(network(), X, target_macs=0.5, ignore=("conv9",)), "conv9"),
        (lambda: hfp.wrap(nn.Conv2d(3, 4, 3), X, target_macs=0.5), "no channel"),
        (lambda: hfp.wrap(nn.ReLU(), X, target_macs=0.5), "no parameters"),
        (lambda: hfp.wrap(network().requires_grad_(False), X, target_macs=0.5), "frozen"),
        (lambda: hfp.wrap(hfp.wrap(network(), X, target_macs=0.5), X, target_macs=0.5), "already"),
        (lambda: hfp.wrap("resnet50", X, target_macs=0.5), "nn.Module"),
    ],
)
def test_wrong_calls_are_told_the_right_one(call_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call_()


@pytest.mark.parametrize("training", [False, True])
def test_parts_in_another_mode_stay_in_it(training: bool) -> None:
    """Norms that are frozen while the rest trains."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).train(training)
    model[1].train(not training)
    net = hfp.wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.5)
    small = net.compact()
    for one in (model, small):
        assert [module.training for module in one] == [training, not training, training, training]  # type: ignore
    assert net.training == training


def test_numbers_of_numpy_are_numbers() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    net = hfp.wrap(model, x, target_params=np.int64(30), target_macs=np.float32(0.75), steps=np.int32(2))
    assert net.params() == 58 and net.compact().hfp_record.targets["params"] == 30  # type: ignore[union-attr]
    json.dumps(net.targets)


def test_a_module_whose_name_is_a_pattern_can_be_ignored() -> None:
    model = nn.Sequential(OrderedDict({"a[0]": nn.Linear(4, 8), "b": nn.Linear(8, 6), "c": nn.Linear(6, 2)}))
    net = hfp.wrap(model, torch.zeros(1, 4), target_params=0.9, ignore=[model[0]])
    assert net.compact()[0].out_features == 8 and net.table.channels == 6  # type: ignore[index]


class Standardised(nn.Sequential):
    """Changes the images that it is given; `looks`: at their values as well."""

    looks = False

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        if self.looks and x.max() > 100:
            return super().forward(x / 2)
        return super().forward(x)


@pytest.mark.parametrize("looks", [False, True])
def test_a_forward_may_write_to_its_input(looks: bool) -> None:
    model, x = Standardised(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.rand(1, 3, 8, 8)
    model.looks, before = looks, x.clone()
    net = hfp.wrap(model, x, target_macs=0.5)
    assert hfp.verify(model, net.table, x) < 1e-5
    small = net.compact()
    assert torch.equal(x, before)
    net.keep, expected = small.hfp_record.keep, small.eval()(x.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(net.eval()(x.clone()), expected)


CHANGES: dict[str, Any] = {
    "another head": (
        lambda model: setattr(model, "2", nn.Linear(8, 5)),
        r"2.weight, which is \(5, 8\), was \(2, 8\) when the model was wrapped",
    ),
    "a mask": (lambda model: prune.l1_unstructured(model[2], "weight", 0.3), "2.weight, which is not there, was"),
    "another layer": (lambda model: model.append(nn.Linear(2, 2)), "3.weight was not there when the model was wrapped"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_is_another_by_now_is_refused(name: str) -> None:
    change, words = CHANGES[name]
    net = hfp.wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4), target_params=0.6)
    change(net.model)
    with pytest.raises(ValueError, match=words):
        net.compact()


class Observing(nn.Sequential):
    """Counts its calls, follows the largest value, and holds a graph."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Linear(8, 2))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("largest", torch.tensor(0.1))
        self.register_buffer("graph", torch.eye(5).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        self.calls += 1
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        return self[1](torch.sparse.mm(self.graph, x))


def test_what_a_forward_observes_is_not_the_noise_of_a_proof() -> None:
    model = Observing()
    net = hfp.wrap(model, torch.randn(5, 4), target_params=0.6, verify=True)
    small = net.compact()
    for one in (model, small):
        assert int(one.calls) == 0 and float(one.largest) == pytest.approx(0.1)  # type: ignore[arg-type]
    net(torch.randn(5, 4))
    assert int(model.calls) == 1
