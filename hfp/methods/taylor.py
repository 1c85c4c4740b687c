"""First-order Taylor, a baseline: what a channel does to the loss, as far as its gradient tells.

Molchanov et al., arXiv 1906.10771: the importance of a channel is (dL / d phi)^2, phi being a gate of 1 on it,
averaged over batches. The gates gather it in the first fifth of the schedule, as those of HFP do (`hfp.methods.hfp`)
but without a price; then there is one cut. Ours: each batch counts in units of its own root mean square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfp.methods.hfp import task_gate
from hfp.methods.magnitude import learned
from hfp.methods.method import Method, after

if TYPE_CHECKING:
    from hfp.gated import GatedModel

GATHER = 0.2  # share of the schedule


def gate(net: GatedModel) -> Tensor:
    return task_gate(net.gates, net.keep, torch.ones_like(net.gates))


METHOD = Method("taylor", scores=learned, schedule=after(GATHER), gate=gate)
