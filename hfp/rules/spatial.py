"""Movers that know which axes are space: the last two or three.

What they move between space and channels goes together, taps or pixels of one channel; what has labels in space stays
whole.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from hfp.labels import Labels, Ledger
from hfp.rules.call import Call, Rule, labelled


def pixel_shuffle(ledger: Ledger, call: Call) -> Labels:
    """`(input, r)`: (C * r * r, H, W) to (C, H * r, W * r); the r * r that make one channel go together."""
    labels = list(call.labels(call.args[0]))
    if labels and labels[-3] is not None:
        ids = labels[-3].reshape(-1, call.args[1] ** 2)
        ledger.tie(ids[:, :1], ids, call.place)
        labels[-3] = ids[:, 0] if len(ids) > 1 else None
    return _off_space(ledger, call, labels)


def pixel_unshuffle(ledger: Ledger, call: Call) -> Labels:
    """`(input, r)`: (C, H * r, W * r) to (C * r * r, H, W); every channel becomes r * r."""
    labels = list(call.labels(call.args[0]))
    if labels and labels[-3] is not None:
        labels[-3] = labels[-3].repeat_interleave(call.args[1] ** 2)
    return _off_space(ledger, call, labels)


def _off_space(ledger: Ledger, call: Call, labels: list[Tensor | None]) -> Labels:
    for axis, ids in labelled(tuple(labels)):
        if axis >= len(labels) - 2:
            ledger.pin(ids, "is shuffled between channels and space", call.place)
            labels[axis] = None
    return tuple(labels)


def im2col(ledger: Ledger, call: Call) -> Labels:
    """`(input, kernel, ...)`: (B, C, H, W) to (B, C * kernel, positions); a channel becomes as many as it has taps."""
    *batch, ids, height, width = call.labels(call.args[0]) or (None,) * call.args[0].dim()
    _off_space(ledger, call, [height, width])
    return *batch, None if ids is None else ids.repeat_interleave(prod(call.args[1])), None


def col2im(ledger: Ledger, call: Call) -> Labels:
    """`(input, size, kernel, ...)`: the inverse; the taps of a channel go together."""
    *batch, ids, places = call.labels(call.args[0]) or (None,) * call.args[0].dim()
    _off_space(ledger, call, [places])
    if ids is not None:
        taps = ids.reshape(-1, prod(call.args[2]))
        ledger.tie(taps[:, :1], taps, call.place)
        ids = taps[:, 0] if len(taps) > 1 else None
    return *batch, ids, None, None


def rot90(ledger: Ledger, call: Call) -> Labels:
    """`(input, k, dims)`: axes in `dims` change places."""
    labels, dims = list(call.labels(call.args[0])), call.argument(2, "dims", [0, 1])
    for axis in dims if labels else ():
        if labels[axis] is not None:
            ledger.pin(labels[axis], "is rotated along the channels", call.place)
            labels[axis] = None
    return tuple(labels)


def grid_sample(ledger: Ledger, call: Call) -> Labels:
    """`(input, grid, ...)`: space is sampled; batch and channels are kept."""
    for tensor in call.args[:2]:
        for axis, ids in enumerate(call.labels(tensor)):
            if tensor is call.args[1] or axis > 1:
                ledger.pin(ids, "is sampled at points", call.place)
    labels = call.labels(call.args[0])
    return labels[:2] + (None,) * (call.out.dim() - 2) if labels else ()


def transform(ledger: Ledger, call: Call) -> Labels:
    """`(input, dims, ...)` of a Fourier transform: it works along `dims`."""
    labels = list(call.labels(call.args[0]))
    for axis in call.args[1] if labels else ():
        if labels[axis] is not None:
            ledger.pin(labels[axis], "is transformed along the channels", call.place)
            labels[axis] = None
    return tuple(labels)


SPATIAL: dict[str, Rule] = {
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "im2col": im2col,
    "col2im": col2im,
    "rot90": rot90,
    **dict.fromkeys("grid_sampler_2d grid_sampler_3d".split(), grid_sample),
    **dict.fromkeys("_fft_r2c _fft_c2r _fft_c2c".split(), transform),
}
