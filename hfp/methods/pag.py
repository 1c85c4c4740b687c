"""PaG: filters by their relative L1 norm against one global threshold, without sensitivity analysis.

Pruning at a Glance, Salama, Ostapenko, Klein and Nabi, arXiv 1912.00200. Known from the paper: whole filters and
neurons go by their relative L1 norm, whatever layer they are in; tied widths of residual stages go together; then the
network is retrained. Reconstructed: "relative" is the L1 norm over the number of weights, mean |w|; channels that
several filters make together are judged by all their weights. `pag` cuts once, in the first step; `pag-rounds` in
five rounds, with retraining between them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from hfp.methods.magnitude import filter_sizes
from hfp.methods.method import Method, at_once, rounds

if TYPE_CHECKING:
    from hfp.gated import GatedModel


def scores(net: GatedModel) -> Tensor:
    return filter_sizes(net.model, net.table)


METHOD = Method("pag", scores=scores, schedule=at_once)
IN_ROUNDS = dataclasses.replace(METHOD, name="pag-rounds", schedule=rounds(5))
