"""Normalisers that treat each channel by itself: they keep the labels and tie their own per-channel tensors to them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from hfp.labels import Ledger, Planes
from hfp.rules.call import Call, Rule


def batch_norm(ledger: Ledger, call: Call) -> Planes:
    """`(input, weight, bias, running_mean, running_var, ...)`: each vector has one entry per channel."""
    source, vectors = call.args[0], [v for v in call.args[1:5] if isinstance(v, Tensor)]
    plane = call.plane(source, 1)
    for vector in vectors:
        own = call.plane(vector, 0)
        if own is not None and plane is not None:
            ledger.tie(ledger.vector(plane, 1, call.place), own, call.place)
        elif own is not None:
            ledger.pin(own, "normalises values that belong to no channel", call.place)
        elif plane is not None and vector.numel() > 1:
            ledger.pin(plane, "is normalised by a tensor of its own, fixed size", call.place)
    if plane is not None and isinstance(call.module, _NormBase) and call.module.weight is None:
        ids = ledger.vector(
            plane, 1, call.place
        )  # an instance norm without tensors still says how many channels it takes
        ledger.attributes[call.place.module, "num_features"] = ids[: call.module.num_features]
    return call.planes_of(source)


_NAMES = """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
_batch_norm_with_update _batch_norm_no_update miopen_batch_norm batch_norm"""

NORMS: dict[str, Rule] = {name: batch_norm for name in _NAMES.split()}
