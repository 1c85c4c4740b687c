"""The size of filters: what is known of a channel before anything has been learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfp.channels import ChannelTable
from hfp.labels import FIXED
from hfp.tracing import named_tensors


def relative_magnitude(model: nn.Module, table: ChannelTable) -> Tensor:
    """(channels,) the mean |w| of the filters that make a channel, relative to the mean of its group.

    Relative, since layers differ in scale for reasons (their fan-in) that say nothing of their worth.
    """
    total, count = torch.zeros(table.channels, dtype=torch.float64), torch.zeros(table.channels, dtype=torch.float64)
    for name, tensor in named_tensors(model).items():
        for dim, vector in enumerate(table.axes[name]):
            here = vector != FIXED
            if tensor.dim() > 1 and (name, dim) not in table.readers and bool(here.any()):
                filters = tensor.detach().abs().double().cpu().transpose(0, dim).flatten(1)[here]
                total.index_add_(0, vector[here], filters.sum(1))
                count.index_add_(0, vector[here], torch.full_like(filters[:, 0], filters.shape[1]))
    mean = total / count.clamp_min(1.0)
    for group in table.groups:
        mean[group.channels] /= mean[group.channels].mean().clamp_min(torch.finfo(torch.float64).tiny)
    return mean
