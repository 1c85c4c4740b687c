"""Uniform width, a baseline: the same share of every channel group; in it the largest filters stay.

The per-layer pruning of Li et al. (arXiv 1608.08710) with one ratio for all layers; one cut at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfp.methods.magnitude import filter_sizes
from hfp.methods.method import Method, at_once

if TYPE_CHECKING:
    from hfp.wrap import GatedModel


def scores(net: GatedModel) -> Tensor:
    """(channels,) the rank in the group, as a share of its width: one threshold then leaves the same share of each."""
    sizes = filter_sizes(net.model, net.table)
    ranks = torch.empty_like(sizes)
    for group in net.table.groups:
        best = group.channels[sizes[group.channels].argsort(descending=True, stable=True)]
        ranks[best] = -(torch.arange(group.width, dtype=ranks.dtype) + 0.5) / group.width
    return ranks


METHOD = Method("uniform", scores=scores, schedule=at_once)
