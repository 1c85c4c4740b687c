"""Normalisers that treat each channel by itself: they keep the labels and tie their own per-channel tensors to them.

Those over channels (layer norm, group norm) are taken apart into operators that have rules, see `hfp.tracing.opened`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from hfp.labels import Labels, Ledger
from hfp.rules.call import Call, Rule


def batch_norm(ledger: Ledger, call: Call) -> Labels:
    """`(input, weight, bias, running_mean, running_var, ...)`: each vector has one entry per channel."""
    source, vectors = call.args[0], [v for v in call.args[1:5] if isinstance(v, Tensor)]
    labels = call.labels(source)
    ids = call.ids(source, 1)
    for vector in vectors:
        own = call.ids(vector, 0)
        if own is not None and ids is not None:
            ledger.meet(ids, own, call.place)
        elif own is not None:
            ledger.pin(own, "normalises values that belong to no channel", call.place)
        elif ids is not None and vector.numel() > 1:
            ledger.pin(ids, "is normalised by a tensor of its own, fixed size", call.place)
    for axis, others in enumerate(labels):
        if axis != 1:
            ledger.pin(others, "is reduced or normalised along the channels", call.place)
    if ids is not None and isinstance(call.module, _NormBase) and call.module.weight is None:
        # An instance norm without tensors still says how many channels it takes.
        ledger.attributes[call.place.module, "num_features"] = ids[: call.module.num_features]
    return labels


def weight_norm(ledger: Ledger, call: Call) -> Labels:
    """`(v, g, dim)`: v times g, over the norm of v along all other axes."""
    v, g, dim = call.args[0], call.args[1], call.argument(2, "dim", 0)
    labels = call.labels(v)
    for axis, ids in enumerate(labels):
        own = call.ids(g, axis)
        if ids is not None and own is not None:
            ledger.meet(ids, own, call.place)
        elif ids is not None and axis != dim % v.dim():
            ledger.ask(ids, "zero", "is reduced or normalised along the channels", call.place)
    return labels


def renorm(ledger: Ledger, call: Call) -> Labels:
    """`(x, p, dim, maxnorm)`: each index of `dim` is scaled down, if its norm along all other axes is larger."""
    labels, dim = call.labels(call.args[0]), call.argument(2, "dim") % call.out.dim()
    for axis, ids in enumerate(labels):
        if ids is not None and axis != dim:
            ledger.ask(ids, "zero", "is reduced or normalised along the channels", call.place, axis - len(labels))
    return labels


_NAMES = """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
_batch_norm_with_update _batch_norm_no_update miopen_batch_norm batch_norm"""

NORMS: dict[str, Rule] = {
    **dict.fromkeys(_NAMES.split(), batch_norm),
    "_weight_norm_interface": weight_norm,
    "renorm": renorm,
}
