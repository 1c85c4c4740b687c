"""Movers put elements somewhere else: they are executed on the planes themselves, so index arithmetic is PyTorch's own.

Whether a size in the model's code is a literal or follows the channels cannot be seen here: `x.view(b, 4, c // 4)` and
`x.view(b, 4, 16)` are the same call. So movers suppose the likely (the parts of an even split are cut alike, slot by
slot), and the trial cut (`hfp.trial`) pins whatever does not follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfp.labels import FIXED, Ledger, Planes, along, compress, varying
from hfp.rules.call import Call, Rule


def _replay(call: Call, plane: Tensor) -> list[Tensor]:
    """The operator itself, run on a plane of its first argument: one plane for each output."""
    moved = call.func(plane.expand(call.args[0].shape), *call.args[1:], **call.kwargs)
    return [compress(part) for part in (moved if isinstance(moved, (list, tuple)) else [moved])]


def whole(ledger: Ledger, call: Call) -> Planes:
    """Axes move, merge, flip or repeat as wholes."""
    return tuple(_replay(call, plane)[0] for plane in call.planes_of(call.args[0]))


def squeeze(ledger: Ledger, call: Call) -> Planes:
    """An axis of length 1 goes; a labelled one must not get there."""
    source = call.args[0]
    dims = call.argument(1, "dim", list(range(source.dim())))
    axes = {axis % max(source.dim(), 1) for axis in ([dims] if isinstance(dims, int) else dims)}
    for plane in call.planes_of(source):
        for axis in varying(plane) & axes:
            ledger.wide.append(ledger.vector(plane, axis, call.place))
    return whole(ledger, call)


def roll(ledger: Ledger, call: Call) -> Planes:
    """`(input, shifts, dims)`: a shift by a number of channels means others once some are gone."""
    dims = call.argument(2, "dims", ()) or range(call.out.dim())
    axes = {axis % max(call.out.dim(), 1) for axis in dims}
    for plane in call.planes_of(call.args[0]):
        if varying(plane) & axes:
            ledger.pin(plane, "is rolled along the channels", call.place)
    return whole(ledger, call)


def view(ledger: Ledger, call: Call) -> Planes:
    """A view may merge a labelled axis with others. Where it splits one, the parts are cut alike, slot by slot."""
    source, planes = call.args[0], []
    if source.numel() != call.out.numel() or source.dtype != call.out.dtype:
        for plane in call.planes_of(source):
            ledger.pin(plane, "is reinterpreted as another type", call.place)
        return ()
    for plane in call.planes_of(source):
        moved = compress(plane.expand(source.shape).reshape(call.out.shape))  # a view of PyTorch refuses strides of 0
        axes = sorted(varying(moved))
        if len(axes) > len(varying(plane)):
            ledger.vector(moved, axes[-1], call.place)
        planes.append(moved)
    return tuple(planes)


def split(ledger: Ledger, call: Call) -> list[Planes]:
    """Parts of equal length are cut alike, slot by slot; unequal ones stay whole."""
    parts: list[Planes] = [() for _ in call.out]
    for plane in call.planes_of(call.args[0]):
        moved = _replay(call, plane)
        if len({tuple(part.shape) for part in moved}) > 1:
            ledger.pin(plane, "is split into unequal parts", call.place)
        elif any(not torch.equal(moved[0], part) for part in moved):  # the split is along the channels
            for part in moved[1:]:
                ledger.tie(moved[0], part, call.place)
        parts = [(*before, part) for before, part in zip(parts, moved, strict=True)]
    return parts


def slice_(ledger: Ledger, call: Call) -> Planes:
    """`(input, dim, start, end, step)`: a slice that is one of several equal parts is cut like the others."""
    source, planes = call.args[0], []
    axis, size = call.argument(1, "dim", 0) % source.dim(), source.shape[call.argument(1, "dim", 0)]
    length, start = call.out.shape[axis], call.argument(2, "start", 0) or 0
    part = call.argument(4, "step", 1) == 1 and length > 1 and size % length == 0 and start % length == 0
    for plane in call.planes_of(source):
        if axis in varying(plane) and length < size:
            if part:
                ids = ledger.vector(plane, axis, call.place).reshape(-1, length)
                ledger.tie(ids[:1], ids, call.place)
            else:
                ledger.pin(plane, "is cut at fixed positions", call.place)
        planes += _replay(call, plane)
    return tuple(planes)


def select(ledger: Ledger, call: Call) -> Planes:
    """`(input, dim, index)`: one channel, picked by its position, pins them all."""
    axis = call.argument(1, "dim", 0) % call.args[0].dim()
    for plane in call.planes_of(call.args[0]):
        if axis in varying(plane):
            ledger.pin(plane, "is cut at fixed positions", call.place)
    return whole(ledger, call)


def pad(ledger: Ledger, call: Call) -> Planes:
    """Padding a labelled axis adds elements of no channel; padding any other adds to every channel alike."""
    source, widths = call.args[0], call.args[1]
    axis_of = [source.dim() - 1 - i // 2 for i in range(len(widths))]
    planes = []
    for plane in call.planes_of(source):
        own = [width if axis in varying(plane) else 0 for axis, width in zip(axis_of, widths, strict=True)]
        planes.append(torch.nn.functional.pad(plane, own, value=FIXED))
    return tuple(planes)


def cat(ledger: Ledger, call: Call) -> Planes:
    """Along the joined axis labels follow one another; along every other axis the parts are tied to each other."""
    tensors = [tensor for tensor in call.args[0] if tensor.shape != (0,)]
    axis = call.argument(1, "dim", 0) % call.out.dim()
    planes: list[Tensor] = []
    for other in range(call.out.dim()):
        found = [call.plane(tensor, other) for tensor in tensors]
        ids = [None if plane is None else ledger.vector(plane, other, call.place) for plane in found]
        if all(vector is None for vector in ids):
            continue
        if other == axis:
            joined = [
                torch.full((t.shape[axis],), FIXED) if v is None else v for t, v in zip(tensors, ids, strict=True)
            ]
            planes.append(along(torch.cat(joined), axis, call.out.dim()))
        else:
            planes += _tied(ledger, call, ids, other)
    return tuple(planes)


def _tied(ledger: Ledger, call: Call, ids: list[Tensor | None], axis: int) -> Planes:
    """The common plane of parts that lie beside each other; a part without labels along `axis` pins the others."""
    labelled = [vector for vector in ids if vector is not None]
    if len(labelled) == len(ids):
        for vector in labelled[1:]:
            ledger.tie(labelled[0], vector, call.place)
        return (along(labelled[0], axis, call.out.dim()),)
    for vector in labelled:
        ledger.pin(vector, "is joined to a tensor of its own, fixed size", call.place)
    return ()


def stack(ledger: Ledger, call: Call) -> Planes:
    """A new axis; along every other axis the parts are tied to each other."""
    tensors = call.args[0]
    new = call.argument(1, "dim", 0) % call.out.dim()
    planes: list[Tensor] = []
    for axis in range(call.out.dim()):
        if axis != new:
            source = axis - (axis > new)
            found = [call.plane(tensor, source) for tensor in tensors]
            ids = [None if plane is None else ledger.vector(plane, source, call.place) for plane in found]
            if any(vector is not None for vector in ids):
                planes += _tied(ledger, call, ids, axis)
    return tuple(planes)


def expand(ledger: Ledger, call: Call) -> Planes:
    """New leading axes, and longer ones where nothing varies."""
    lead = (1,) * (call.out.dim() - call.args[0].dim())
    return tuple(plane.reshape(lead + plane.shape) for plane in call.planes_of(call.args[0]))


def pixel_shuffle(ledger: Ledger, call: Call) -> Planes:
    """`(input, r)`: (C * r * r, H, W) to (C, H * r, W * r); the r * r that make one channel go together."""
    source, factor = call.args[0], call.args[1]
    axis = source.dim() - 3
    planes = []
    for plane in call.planes_of(source):
        ids = ledger.vector(plane, axis, call.place).reshape(-1, factor * factor)
        if varying(plane) != {axis}:
            ledger.pin(plane, "is shuffled between channels and space", call.place)
            continue
        ledger.tie(ids[:, :1], ids, call.place)
        planes.append(along(ids[:, 0], axis, call.out.dim()))
    return tuple(planes)


_WHOLE = "t transpose permute movedim unsqueeze flip repeat alias numpy_T mT adjoint swapaxes"
_VIEWS = "view _unsafe_view reshape _reshape_alias"
_SPLITS = "split split_with_sizes unsafe_split chunk unbind"

MOVERS: dict[str, Rule] = {
    **dict.fromkeys(_WHOLE.split(), whole),
    **dict.fromkeys(_VIEWS.split(), view),
    **dict.fromkeys(_SPLITS.split(), split),
    "squeeze": squeeze,
    "roll": roll,
    "select": select,
    "slice": slice_,
    "constant_pad_nd": pad,
    "cat": cat,
    "stack": stack,
    "expand": expand,
    "pixel_shuffle": pixel_shuffle,
}
