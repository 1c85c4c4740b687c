"""Uniform width, a baseline: the same share of every channel group; in it the largest filters stay.

The per-layer pruning of Li et al. (arXiv 1608.08710) with one ratio for all layers; one cut at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hfp.methods.magnitude import filter_sizes, standing
from hfp.methods.method import Method, at_once

if TYPE_CHECKING:
    from hfp.gated import GatedModel


def scores(net: GatedModel) -> Tensor:
    """(channels,) one threshold on the standing in the group leaves the same share of each group."""
    return -standing(filter_sizes(net.model, net.table), net.table)


METHOD = Method("uniform", scores=scores, schedule=at_once)
