"""Layers whose weights PyTorch computes, once they are cut: what they say of their sizes, what hooks leave in them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_weight_norm, spectral_norm, weight_norm

import hfp

Change = Callable[[nn.Module], nn.Module]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class LowRank(nn.Module):
    """A weight (out, in) that is a product, of which neither factor has its shape."""

    def forward(self, out: Tensor, into: Tensor) -> Tensor:
        return (out @ into).unflatten(1, (-1, 3, 3)) if self.square else out @ into

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        self.square = weight.dim() == 4
        generator = torch.Generator().manual_seed(0)
        flat = weight.flatten(1)
        return torch.randn(len(flat), 5, generator=generator), torch.randn(5, flat.shape[1], generator=generator)


def doubled(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


def low_rank(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", LowRank(), unsafe=True)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that it is old
        return weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return prune.random_unstructured(layer, "weight", 0.2)


NEWER: list[Change] = [parametrizations.weight_norm, parametrizations.spectral_norm, doubled, low_rank]
OLDER: list[Change] = [old_weight_norm, spectral_norm, pruned]


def network(change: Change) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3), change(nn.Conv2d(12, 16, 3)), change(nn.Linear(16, 8)), nn.Linear(8, 4)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers[2:])


@pytest.mark.parametrize("change", NEWER + OLDER)
def test_layers_say_the_sizes_of_the_weights_that_they_compute(change: Change) -> None:
    small = hfp.wrap(network(change), torch.zeros(1, 3, 8, 8), target_macs=0.5).compact()
    conv, linear = small[2], small[5]
    assert conv.weight.shape[:2] == (conv.out_channels, conv.in_channels) != (16, 12)
    assert linear.weight.shape == (linear.out_features, linear.in_features)
    assert linear.in_features < 16


@pytest.mark.parametrize("change", OLDER)
def test_hooks_have_left_the_weight_of_the_cut_layer(change: Change) -> None:
    small = hfp.wrap(network(change), torch.zeros(1, 3, 8, 8), target_macs=0.5).compact()
    found = [small[at].weight.clone() for at in (2, 5)]
    buffers = {name: buffer.clone() for name, buffer in small.named_buffers()}
    assert small.training
    small.eval()(torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(weight, small[at].weight) for weight, at in zip(found, (2, 5), strict=True))
    assert all(torch.equal(before, small.get_buffer(name)) for name, before in buffers.items())
    copy.deepcopy(hfp.wrap(network(change), torch.zeros(1, 3, 8, 8), target_macs=0.5).compact())  # no history in them


def test_a_weight_norm_can_be_taken_out_of_a_cut_network() -> None:
    small = hfp.wrap(network(old_weight_norm), torch.zeros(1, 3, 8, 8), target_macs=0.5).compact()
    x = torch.randn(2, 3, 8, 8)
    before = small(x)
    for at in (2, 5):
        remove_weight_norm(small[at])
    torch.testing.assert_close(small(x), before)


class Attentive(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        change(self.attention.out_proj)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.attention(x, x, x)[0])


@pytest.mark.parametrize("change", NEWER)
def test_attention_whose_last_weight_is_computed(change: Change) -> None:
    attention = hfp.wrap(Attentive(change), torch.zeros(1, 5, 6), target_macs=0.5).compact().attention
    last = attention.out_proj
    assert last.weight.shape == (last.out_features, last.in_features)
    assert last.out_features == attention.embed_dim and last.in_features == attention.num_heads * attention.head_dim


def test_a_parametrization_that_looks_at_numbers_does_not_tell_sizes() -> None:
    class Choosy(Doubled):
        def forward(self, weight: Tensor) -> Tensor:
            return weight if float(weight.detach().abs().max()) > 0 else 2 * weight

    model = network(lambda layer: parametrize.register_parametrization(layer, "weight", Choosy()))
    small = hfp.wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.5).compact()
    assert small[2].weight.shape[1] < small[2].in_channels == 12
    assert small(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
