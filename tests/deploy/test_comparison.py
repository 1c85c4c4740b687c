"""What is counted of a network, against figures of the literature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import models
from hfp.deploy import comparison
from hfp.model import inputs


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("lenet5", 431_080, 2_293_000), ("resnet20", 269_722, 40_551_040), ("resnet56", 853_018, 125_485_696)],
)
def test_counts_are_those_of_the_literature(name: str, params: int, macs: int) -> None:
    net: Any = models.build(name)
    assert comparison.count_params(net) == params
    assert comparison.count_macs(net, inputs.arguments(net)) == macs


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert comparison.count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 12


@pytest.mark.parametrize("grad", [False, True])
def test_attention_is_two_matrix_products(grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with torch.set_grad_enabled(grad):
        macs = comparison.count_macs(layer, ((torch.zeros(1, 5, 8),), {}))
    assert macs == 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8
