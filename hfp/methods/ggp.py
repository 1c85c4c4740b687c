"""GGP: in many small steps, each of which drops the least important channels of all layers together.

Gradually Global Pruning, Wang, Zhu, Xia, Guo and Liu, arXiv 1703.09916. Known from the paper: each step drops a small
percentage of the neurons of all layers, with training in between; the bias of importance scores between layers is
removed first, which is what makes one global ranking fair; it ends at the thinnest network that keeps a given
performance (`net.stop()`, `train.py --accuracy-floor`). Reconstructed: the score is mean |w|, and the bias is removed
by dividing by the root mean square of the scores in the layer, over the channels that are still there; a step is a
fiftieth of the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfp.methods.magnitude import filter_sizes
from hfp.methods.method import Method, steadily

if TYPE_CHECKING:
    from hfp.gated import GatedModel

STEPS = 50


def scores(net: GatedModel) -> Tensor:
    found, keep = filter_sizes(net.model, net.table), net.keep.cpu()
    for group in net.table.groups:
        live = found[group.channels[keep[group.channels]]]
        found[group.channels] /= live.square().mean().sqrt().clamp_min(torch.finfo(found.dtype).tiny)
    return found


METHOD = Method("ggp", scores=scores, schedule=steadily, cuts=STEPS)
