"""Our attention against PyTorch's, with the same state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import hfp
from hfp.attention import MultiheadAttention

HIDDEN = torch.tensor([[False, False, True, False, False], [False, True, True, False, False]])
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": HIDDEN},
    "some pairs": {"attn_mask": torch.eye(5).roll(1, 0).bool()},
    "added": {"attn_mask": torch.linspace(-2, 2, 25, dtype=torch.float64).reshape(5, 5)},
    "both": {"key_padding_mask": HIDDEN, "attn_mask": torch.eye(5).bool().repeat(6, 1, 1)},
    "causal": {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_every_option(masks: str, learned: bool, zero: bool, weights: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, add_bias_kv=learned, add_zero_attn=zero, batch_first=True).double().eval()
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    outs = [layer(x, x, x, need_weights=weights, **MASKS[masks]) for layer in (theirs, ours)]
    torch.testing.assert_close(outs[1][0], outs[0][0])
    assert (outs[1][1] is None) == (not weights)
    if weights:
        torch.testing.assert_close(outs[1][1], outs[0][1])


def test_weights_are_those_after_dropout() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    x = torch.randn(2, 5, 12)
    weights = []
    for layer in (theirs, ours):
        torch.manual_seed(1)
        weights.append(layer(x, x, x, need_weights=True)[1])
    torch.testing.assert_close(weights[1], weights[0])


def test_other_widths_of_keys_and_values_are_said_too() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.v, self.q = nn.Linear(4, 10), nn.Linear(4, 14), nn.Linear(4, 12)
            self.attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=14, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.attention(self.q(x), self.k(x), self.v(x), need_weights=False)[0]
            return out

    small: Any = hfp.wrap(Crossed(), torch.randn(2, 5, 4), target_params=0.5, method="uniform").compact()
    assert (small.attention.kdim, small.attention.vdim) == (small.k.out_features, small.v.out_features)
    assert small.k.out_features < 10 and small.v.out_features < 14
