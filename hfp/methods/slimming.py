"""Network slimming, a baseline: the scales of the normalisation layers say which channels matter.

Liu et al., arXiv 1708.06519: training with an L1 penalty on the scales of batch norms drives those of channels that
are not needed towards zero; then one global threshold on them. The penalty's strength is the paper's. Ours: layer
norms and group norms have scales too; a channel with several scales (a residual stage) has their mean; where there is
none (a network without normalisation), the size of the filters, relative to their layer, stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hfp.channels import ChannelTable
from hfp.labels import FIXED, prunable
from hfp.methods.magnitude import channel_means, relative_magnitude
from hfp.methods.method import Method, after
from hfp.model.names import Names

if TYPE_CHECKING:
    from hfp.gated import GatedModel

SPARSITY = 1e-4  # strength of the L1 penalty
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scales(model: nn.Module, table: ChannelTable) -> Iterator[tuple[Tensor, Tensor]]:
    """(scale of a normalisation layer, the channel number at every index of it), of those with prunable channels."""
    names = Names.of(model)
    for module, prefix in names.modules.items():
        weight = getattr(module, "weight", None)
        name = names.aliases.get(f"{prefix}.weight" if prefix else "weight")  # none where it is computed
        if isinstance(module, NORMS) and name and isinstance(weight, Tensor) and weight.dim() == 1:
            (vector,) = table.axes[name]
            if prunable(vector):
                yield weight, vector


def scores(net: GatedModel) -> Tensor:
    """(channels,) the mean |scale|, over that of all channels; relative magnitudes where there is no scale."""
    places = ((vector, weight.detach().abs(), 1) for weight, vector in scales(net.model, net.table))
    means, count = channel_means(net.table, places)
    found = relative_magnitude(net.model, net.table)
    scaled = count > 0
    found[scaled] = means[scaled] / means[scaled].mean().clamp_min(torch.finfo(means.dtype).tiny)
    return found


def penalty(net: GatedModel) -> Tensor:
    """The gap, which trains nothing here, and while the schedule runs the L1 norm of the scales."""
    loss = net.live_gap()
    if net.progress < 1.0:
        for weight, vector in scales(net.model, net.table):
            loss = loss + SPARSITY * (weight.abs() * (vector != FIXED).to(weight)).sum()
    return loss


METHOD = Method("slimming", scores=scores, schedule=after(1.0), penalty=penalty, trains_gates=False)
