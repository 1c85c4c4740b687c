"""Random scores, a baseline: what any method must beat. One cut, in the first step, drawn by PyTorch's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfp.methods.method import Method, at_once

if TYPE_CHECKING:
    from hfp.gated import GatedModel


def scores(net: GatedModel) -> Tensor:
    return torch.rand(net.table.channels)


METHOD = Method("random", scores=scores, schedule=at_once)
