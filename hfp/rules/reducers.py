"""Reductions, pooling and interpolation: they work along some axes and keep the others, channels among these."""

from __future__ import annotations

from collections.abc import Callable

from hfp.labels import Labels, Ledger
from hfp.rules.call import Call, Rule, stays_whole

HIDDEN = {
    "sum": "zero",
    "norm": "zero",
    "linalg_vector_norm": "zero",
    "mean": "mean",
    "max": "lowest",
    "amax": "lowest",
    "logsumexp": "lowest",
    "min": "highest",
    "amin": "highest",
    "_softmax": "lowest",
    "_safe_softmax": "lowest",
    "_log_softmax": "lowest",
    "softmax": "lowest",
    "log_softmax": "lowest",
}
"""What a removed channel must look like to an operator that works across channels, see `hfp.tracing.operands`."""


def along(axes_of: Callable[[Call], tuple[set[int], bool]]) -> Rule:
    """A rule for operators that mix elements along some axes. `axes_of(call)`: these, and whether they remain."""

    def rule(ledger: Ledger, call: Call) -> Labels:
        labels = call.labels(call.args[0])
        axes, remain = axes_of(call)
        axes = {axis % max(call.args[0].dim(), 1) for axis in axes}
        how = None if _of_the_least(call) else HIDDEN.get(call.place.operator)
        reason = "is reduced or normalised along the channels"
        for axis, ids in enumerate(labels):
            if ids is not None and axis in axes:
                if how:
                    ledger.ask(ids, how, reason, call.place, axis - len(labels))
                else:
                    ledger.pin(ids, reason, call.place)
        if call.place.operator in _SOFTMAXES:
            return labels
        kept = [None if axis in axes else ids for axis, ids in enumerate(labels)]
        return tuple(kept if remain else [ids for axis, ids in enumerate(kept) if axis not in axes])

    return rule


def _of_the_least(call: Call) -> bool:
    """Whether it is a norm of a negative order, to which zeros would matter most."""
    order = call.argument(1, "ord") if call.place.operator in ("norm", "linalg_vector_norm") else None
    return isinstance(order, (int, float)) and order < 0


def _spatial(rank: int) -> Callable[[Call], tuple[set[int], bool]]:
    return lambda call: ({-1 - i for i in range(rank)}, True)


def _reduced(call: Call) -> tuple[set[int], bool]:
    """The `dim` and `keepdim` of a reduction, wherever its schema has them."""
    schema = [argument.name for argument in call.func._schema.arguments]  # type: ignore[attr-defined]
    dims = call.argument(schema.index("dim"), "dim") if "dim" in schema else None
    keepdim = bool(call.argument(schema.index("keepdim"), "keepdim", False)) if "keepdim" in schema else False
    if dims is None or dims == []:
        return set(range(call.args[0].dim())), keepdim
    return ({dims} if isinstance(dims, int) else set(dims)), keepdim


def _one(call: Call) -> tuple[set[int], bool]:
    schema = [argument.name for argument in call.func._schema.arguments]  # type: ignore[attr-defined]
    return {call.argument(schema.index("dim"), "dim", -1)}, True


def unpooled(rank: int) -> Rule:
    """`max_unpool2d(input, indices, ...)`: the indices are of the same channels, from a pooling far back perhaps."""
    along_space = along(_spatial(rank))

    def rule(ledger: Ledger, call: Call) -> Labels:
        found, indices = along_space(ledger, call), call.labels(call.args[1])
        assert isinstance(found, tuple)
        for ids, own in zip(found, indices, strict=False):
            if ids is not None and own is not None:
                ledger.tie(ids, own, call.place)
        return found if indices else stays_whole(ledger, call)

    return rule


def checked(ledger: Ledger, call: Call) -> Labels:
    """Of `_is_all_true`, with which PyTorch checks arguments: nothing is computed from it."""
    return ()


def regions(ledger: Ledger, call: Call) -> Labels:
    """`roi_align(input, boxes, ...)`: (N, C, H, W) and (K, 5) to (K, C, h, w)."""
    labels, boxes = call.labels(call.args[0]), call.labels(call.args[1])
    for ids in (*labels[:1], *labels[2:], *boxes):
        ledger.pin(ids, "is read at boxes", call.place)
    return (None, labels[1], None, None) if labels else ()


_REDUCTIONS = """
all amax amin any argmax argmin count_nonzero kthvalue linalg_vector_norm logsumexp max mean median min nanmedian
nansum norm prod std std_mean sum var var_mean
""".split()
_SOFTMAXES = "_softmax _safe_softmax _log_softmax softmax log_softmax".split()
_ALONG_ONE = "cummax cummin cumprod cumsum logcumsumexp sort topk".split()
_POOLS = {
    1: """avg_pool1d max_pool1d adaptive_avg_pool1d upsample_linear1d upsample_nearest1d reflection_pad1d
    replication_pad1d""",
    2: """avg_pool2d max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d
    upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_nearest_exact2d fractional_max_pool2d tril triu reflection_pad2d replication_pad2d
    avg_pool2d_backward max_pool2d_with_indices_backward _adaptive_avg_pool2d_backward upsample_nearest2d_backward
    upsample_bilinear2d_backward""",
    3: """avg_pool3d max_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d
    upsample_trilinear3d upsample_nearest3d fractional_max_pool3d reflection_pad3d replication_pad3d""",
}

REDUCERS: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, along(_reduced)),
    **dict.fromkeys(_SOFTMAXES + _ALONG_ONE, along(_one)),
    **dict.fromkeys("torchvision::roi_align torchvision::roi_pool".split(), regions),
    **dict.fromkeys("_is_all_true _is_any_true".split(), checked),
    "max_unpool2d": unpooled(2),
    "max_unpool3d": unpooled(3),
    **{name: along(_spatial(rank)) for rank, names in _POOLS.items() for name in names.split()},
}
