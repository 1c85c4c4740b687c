"""The size of filters: what is known of a channel before anything has been learned.

As a method, a baseline: the L1 norm of filters (Li et al., arXiv 1608.08710), relative to the mean in their layer, so
that layers can be compared; one cut at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hfp.channels import ChannelTable
from hfp.cutting.chunks import rows_at_hand
from hfp.groups import with_products
from hfp.labels import FIXED, prunable
from hfp.methods.method import Method, at_once
from hfp.model.names import Names

if TYPE_CHECKING:
    from hfp.gated import GatedModel


def filter_sizes(model: nn.Module, table: ChannelTable, size: Callable[[Tensor], Tensor] = torch.abs) -> Tensor:
    """(channels,) the mean of `size(w)` over the weights w of the filters that make a channel; float64.

    A filter that belongs to several channels (to a head, and to a place in it) counts for each of them.
    """

    def filters() -> Iterable[tuple[Tensor, Tensor, int]]:
        readers = set(table.readers)
        tensors = Names.of(model).tensors
        for name, axes in table.axes.items():
            tensor = tensors[name]
            for dim, vector in enumerate(axes):
                if tensor.dim() > 1 and (name, dim) not in readers and prunable(vector):
                    yield vector, _sums(size, tensor.detach(), dim), tensor.numel() // len(vector)

    return channel_means(table, filters())[0]


def relative_magnitude(model: nn.Module, table: ChannelTable) -> Tensor:
    """(channels,) the mean |w| of the filters that make a channel, relative to the mean of its group.

    Relative, since layers differ in scale for reasons (their fan-in) that say nothing of their worth.
    """
    return relative(filter_sizes(model, table), table)


def relative(scores: Tensor, table: ChannelTable) -> Tensor:
    """(channels,) scores over the mean of their group."""
    found = scores.clone()
    for group in table.groups:
        found[group.channels] /= found[group.channels].mean().clamp_min(torch.finfo(found.dtype).tiny)
    return found


def standing(scores: Tensor, table: ChannelTable) -> Tensor:
    """(channels,) float64: the rank in the group as a share of its width, from 0.5 / width for the highest score.

    Halves, so that groups of any width are treated alike when one threshold cuts them all.
    """
    found = torch.empty(table.channels, dtype=torch.float64)
    for group in table.groups:
        best = group.channels[scores[group.channels].argsort(descending=True, stable=True)]
        found[best] = (torch.arange(group.width, dtype=found.dtype) + 0.5) / group.width
    return found


def learned(net: GatedModel) -> Tensor:
    """(channels,) the gates; the size of the filters while nothing has trained them yet, so that all are 0."""
    return net.gates if bool(net.gates.any()) else relative_magnitude(net.model, net.table)


def channel_means(table: ChannelTable, places: Iterable[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """(channels,) the mean of what was found in all places where a channel stands, and of how many numbers it is.

    `places`: (channel numbers along an axis, sums along it, how many numbers each sum is of).
    """
    sums = torch.zeros(table.channels + len(table.products), 2, dtype=torch.float64)
    for vector, values, count in places:
        pairs = torch.stack([values.cpu().double(), torch.full((len(values),), float(count), dtype=torch.float64)], 1)
        sums.index_add_(0, vector[vector != FIXED], pairs[vector != FIXED])
    total, count_ = with_products(sums, table.channels, table.products).unbind(1)
    return total / count_.clamp_min(1.0), count_


def _sums(size: Callable[[Tensor], Tensor], weight: Tensor, dim: int) -> Tensor:
    """The sum of sizes at every index of `dim`; only sums are float64, since weights may be large.

    Part by part, so that the sizes themselves stay in the cache.
    """
    others = [other for other in range(weight.dim()) if other != dim]
    rows = rows_at_hand(weight, dim)
    dtype = torch.promote_types(weight.dtype.to_real(), torch.float32)
    parts = (part.abs() if part.is_complex() else part for part in weight.split(rows, dim))
    return torch.cat([size(part).sum(others, dtype=dtype) for part in parts])


def scores(net: GatedModel) -> Tensor:
    return relative_magnitude(net.model, net.table)


METHOD = Method("magnitude", scores=scores, schedule=at_once)
