"""Gates: a channel is gated where it is read, so that a gated network computes what the compacted one will.

Every weight that reads channels is multiplied, column by column, by the gates of the channels it reads. That equals
slicing those columns, whatever lies between the layer that makes a channel and the one that reads it (the shift of a
batch norm, a sigmoid, a constant): a gate of 0 at the producer would leave f(0) behind. The model itself is not
touched: the gated weights stand in for its own during one forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hfp.channels import ChannelTable
from hfp.tracing import aliases


class Readers(nn.Module):
    """The weights of a model that read prunable channels, and the channels along their reading dims."""

    def __init__(self, model: nn.Module, table: ChannelTable) -> None:
        super().__init__()
        names: dict[str, list[str]] = {}
        for alias, name in aliases(model).items():
            names.setdefault(name, []).append(alias)
        self.places = [(name, dim, tuple(names[name])) for name, dim in table.readers]
        for number, (name, dim, _) in enumerate(self.places):
            self.register_buffer(f"channels{number}", table.axes[name][dim], persistent=False)

    def gated(self, model: nn.Module, gates: Tensor) -> dict[str, Tensor]:
        """Name -> weight times the gates (channels,) of what it reads, under every name that the weight has."""
        padded = torch.cat([gates, gates.new_ones(1)])  # FIXED, -1, looks up the last entry
        found: dict[str, Tensor] = {}
        for number, (name, dim, every) in enumerate(self.places):
            weight = found.get(name)
            if weight is None:
                weight = model.get_parameter(name)
            columns = padded[getattr(self, f"channels{number}")].to(weight)
            found.update(
                dict.fromkeys(every, weight * columns.reshape([-1 if d == dim else 1 for d in range(weight.dim())]))
            )
        return found


def gated_forward(model: nn.Module, readers: Readers, gates: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`model(*args, **kwargs)` with every channel multiplied by its gate where it is read."""
    return torch.func.functional_call(model, readers.gated(model, gates), args, kwargs, tie_weights=False)
