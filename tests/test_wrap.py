"""`wrap`: a model and a budget become a gated network, and nothing else changes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from exactness import check_exact
from promises import call, measured, relative_difference, snapshot
from small_run import X, network
from specimen import Specimen
from torch import nn
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
