"""A number for every index of every tensor that a model keeps: where all labels come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfp.labels import Ledger, Pin, Place
from hfp.model.names import Names

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm)
_BESIDE = "weight bias running_mean running_var".split()


def numbered(names: Names, shadows: dict[str, Tensor]) -> Ledger:
    """A ledger in which every index of every tensor has an id. `shadows`: name -> what stands in for it, for its shape.

    The vectors of a layer have the ids of its outputs from the start.
    """
    ledger = Ledger()
    first: dict[str, str] = {}
    for module, path in names.modules.items():
        if isinstance(module, _LAYERS) and type(module).__module__.startswith("torch.nn.modules."):
            if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
                continue
            tensors = {**module._parameters, **module._buffers}
            own = [key for key in _BESIDE if tensors.get(key) is not None]
            aliases = [names.aliases[f"{path}.{key}" if path else key] for key in own]
            first |= {name: aliases[0] for name in aliases[1:]}
    for name, tensor in shadows.items():
        like = ledger.axes.get(first.get(name, ""), ())[: tensor.dim()]
        if [len(ids) for ids in like] == list(tensor.shape) and like:
            ledger.axes[name] = like
        else:
            ledger.number(name, tensor.shape)
    _state_sizes(names, ledger)
    for name, tensor in names.tensors.items():
        if tensor.layout != torch.strided:
            ledger.pins += [Pin(ids, "is an axis of a sparse tensor", Place("", "", "")) for ids in ledger.axes[name]]
    return ledger


def _state_sizes(names: Names, ledger: Ledger) -> None:
    """The states of all layers and directions of a recurrent module have one size, which is kept as its attribute."""
    for module, path in names.modules.items():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            projected = getattr(module, "proj_size", 0) > 0
            for kind, size in (
                ("weight_hh", "proj_size" if projected else "hidden_size"),
                ("weight_hr", "hidden_size"),
            ):
                own = [names.aliases[f"{path}.{key}" if path else key] for key in module._parameters if kind in key]
                columns = [ledger.axes[name][1] for name in own]
                place = Place("state", path, "")
                for other in columns[1:]:
                    ledger.tie(columns[0], other, place)
                if not projected:  # each gate makes the whole state, though a run of one step does not show it
                    for name in own:
                        ledger.tie(ledger.axes[name][0].reshape(-1, len(columns[0])), columns[0], place)
                if columns:
                    ledger.attributes[path, size] = columns[0]
                if columns and kind == "weight_hr":
                    # PyTorch takes a projection to as many channels for none at all, so the state has to stay wider
                    # than what it is projected to. Its first channels are tied to those, one by one; of the others
                    # at least one stays.
                    projection = ledger.axes[own[0]][0]
                    ledger.tie(columns[0][: len(projection)], projection, place)
                    ledger.tie(ledger.attributes[path, "proj_size"], projection, place)
