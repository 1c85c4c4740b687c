"""The size of filters: what is known of a channel before anything has been learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfp.channels import ChannelTable, with_products
from hfp.labels import FIXED, prunable
from hfp.names import Names


def relative_magnitude(model: nn.Module, table: ChannelTable) -> Tensor:
    """(channels,) the mean |w| of the filters that make a channel, relative to the mean of its group.

    A filter that belongs to several channels (to a head, and to a place in it) counts for each of them. Relative, since
    layers differ in scale for reasons (their fan-in) that say nothing of their worth.
    """
    sums = torch.zeros(table.channels + len(table.products), 2, dtype=torch.float64)  # of |w|, and how many w
    for name, tensor in Names.of(model).tensors.items():
        for dim, vector in enumerate(table.axes[name]):
            if tensor.dim() > 1 and (name, dim) not in table.readers and prunable(vector):
                size = _absolute_sums(tensor.detach(), dim)
                filters = torch.stack([size, torch.full_like(size, tensor.numel() // len(vector))], 1)
                sums.index_add_(0, vector[vector != FIXED], filters[vector != FIXED])
    total, count = with_products(sums, table.channels, table.products).unbind(1)
    mean = total / count.clamp_min(1.0)
    for group in table.groups:
        mean[group.channels] /= mean[group.channels].mean().clamp_min(torch.finfo(torch.float64).tiny)
    return mean


def _absolute_sums(tensor: Tensor, dim: int) -> Tensor:
    """The sum of |w| at every index of `dim`; only sums are float64, since weights may be large."""
    sizes = tensor.abs()
    others = [other for other in range(tensor.dim()) if other != dim]
    return sizes.sum(others, dtype=torch.promote_types(sizes.dtype, torch.float32)).double().cpu()
