"""Operators on pairs of vectors: bilinear forms, and distances of every vector from every other."""

from __future__ import annotations

from torch import Tensor

from hfp.labels import Labels, Ledger
from hfp.rules.call import Call, Rule
from hfp.rules.mixers import batch_labels, is_weight, read_by


def trilinear(ledger: Ledger, call: Call) -> Labels:
    """`_trilinear(a, b, c, of_a, of_b, of_c, summed)`, of `F.bilinear`: the sum of a product of three tensors.

    Each is first given axes of length 1 at the places that are said for it. b is the weight.
    """
    *tensors, summed = call.args[:3] + (call.args[6],)
    ids = [_expanded(call, tensor, places) for tensor, places in zip(tensors, call.args[3:6], strict=True)]
    rank = len(ids[0])
    made: list[Tensor | None] = []
    for axis in range(rank):
        left, weight, right = (own[axis] for own in ids)
        if axis in summed:
            read_by(ledger, call, left if right is None else right, tensors[1], weight)
            continue
        ledger.makes(weight)
        there = [own for own in (left, weight, right) if own is not None]
        for own in there[1:]:
            ledger.tie(there[0], own, call.place)
        made.append(there[0] if there else None)
    return tuple(made)


def _expanded(call: Call, tensor: Tensor, places: list[int]) -> list[Tensor | None]:
    labels = list(call.labels(tensor) or (None,) * tensor.dim())
    for place in places:
        labels.insert(place, None)
    return labels


def distances(ledger: Ledger, call: Call) -> Labels:
    """`cdist(a, b)` of a (..., M, K) and b (..., N, K): whatever the norm, zeros in both add nothing to it.

    `FlopCounterMode` counts no multiply-adds.
    """
    a, b = call.args[:2]
    left, right = call.ids(a, -1), call.ids(b, -1)
    for ids, other in ((left, right), (right, left)):
        if ids is None:
            continue
        if other is None:
            ledger.pin(ids, "is compared with values that belong to no channel", call.place)
        else:
            ledger.ask(ids, "zero", "is a distance along the channels", call.place)
    if left is not None and right is not None:
        ledger.tie(left, right, call.place)
    batch = [batch_labels(ledger, call, a, b, axis) for axis in range(-call.out.dim(), -2)]
    rows = call.ids(a, -2), call.ids(b, -2)
    for ids, own, other in ((rows[0], a, b), (rows[1], b, a)):
        if is_weight(call, own, other):
            ledger.makes(ids)
    return (*batch, *rows)


PAIRS: dict[str, Rule] = {
    "_trilinear": trilinear,
    **dict.fromkeys("cdist _cdist_forward _euclidean_dist".split(), distances),
}
