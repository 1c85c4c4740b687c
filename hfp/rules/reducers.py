"""Reductions, pooling and interpolation: they work along some axes and keep the others, channels among these."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hfp.labels import Ledger, Planes, varying
from hfp.rules.call import Call, Rule


def along(axes_of: Callable[[Call], tuple[set[int], bool]]) -> Rule:
    """A rule for operators that mix elements along some axes. `axes_of(call)`: these, and whether they remain."""

    def rule(ledger: Ledger, call: Call) -> Planes:
        source = call.args[0]
        axes, remain = axes_of(call)
        axes = {axis % max(source.dim(), 1) for axis in axes}
        planes = []
        for plane in call.planes_of(source):
            if varying(plane) & axes:
                ledger.pin(plane, "is reduced or normalised along the channels", call.place)
            else:
                planes.append(plane if remain else _drop(plane, axes))
        return tuple(planes)

    return rule


def _drop(plane: Tensor, axes: set[int]) -> Tensor:
    return plane.reshape([size for axis, size in enumerate(plane.shape) if axis not in axes])


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
    return {call.argument(1, "dim", -1)}, True


_REDUCTIONS = """
all amax amin any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean median min nansum norm prod std
sum var
""".split()
_ALONG_ONE = """
_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod sort
""".split()
_POOLS = {
    1: """avg_pool1d max_pool1d adaptive_avg_pool1d upsample_linear1d upsample_nearest1d reflection_pad1d
    replication_pad1d""",
    2: """avg_pool2d max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d
    upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_nearest_exact2d reflection_pad2d replication_pad2d""",
    3: """avg_pool3d max_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d
    upsample_trilinear3d upsample_nearest3d reflection_pad3d replication_pad3d""",
}

REDUCERS: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, along(_reduced)),
    **dict.fromkeys(_ALONG_ONE, along(_one)),
    **{name: along(_spatial(rank)) for rank, names in _POOLS.items() for name in names.split()},
}
