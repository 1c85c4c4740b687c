"""From ids to channels: what is tied is one, products are told by their factors, what is pinned drops out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.labels import FIXED, NO_IDS, Ledger, Pin, Place, components, unique_rows

_NONE = -1  # no factor here: rows of products are filled up to the same length
_NOWHERE = Place("", "", "")  # what comes of the ledger as a whole, not of one operator


@dataclass(frozen=True)
class Numbering:
    """Which channel, or product of channels, every id of a ledger is."""

    channels: int
    products: Tensor
    """(n, k) the factors, channel numbers, of each product; FIXED where it has fewer than k."""
    of: Tensor
    """Id -> number of its channel, or `channels` + number of its product, or FIXED."""
    why: Tensor
    """Id -> number of the pin that holds it; len(pins) for none."""
    pins: list[Pin]


def resolve(ledger: Ledger) -> Numbering:
    """Number the channels of a ledger, in the order of their smallest id, which is that of the model's own tensors."""
    pins = list(ledger.pins)
    ids, rows = _records(ledger)
    root = ledger.roots()
    while True:
        left, plain = root[ids], _found(root, rows)
        itself = plain == left[:, None]
        if itself.any():  # c is c * j, where pairs are merged as if each were c: every j stays, and c is no product
            merged = itself.any(1)
            others = plain[merged][~itself[merged]]
            pins.append(Pin(others[others != _NONE], "is merged with its neighbours, as one channel", _NOWHERE))
            ids, rows = ids[~merged], rows[~merged]
            continue
        factors, endless = _expanded(root, ids, rows)
        held = _held(root, left, factors, pins)
        same, clash = _congruent(left, factors, plain, _packed(factors.masked_fill(held[factors], _NONE)))
        if not same.numel():
            break
        root = components(ledger.size, [same], root)
    clash = torch.cat([clash, endless])
    if clash.numel():
        pins.append(Pin(clash, "is split into axes in two ways that do not fit", _NOWHERE))
    if len(ids) and ledger.axes and (alone := _alone(ledger, root)).numel():
        pins.append(Pin(alone, "is one channel all along an axis", _NOWHERE))

    free = torch.zeros(ledger.size + 1, dtype=torch.bool)  # the last entry is for _NONE
    free[root[torch.cat([ids.new_empty(0), *ledger.produced])]] = True
    free[factors[free[left]]] = True
    why = _reasons(root, left, factors, pins)
    atom = torch.ones(ledger.size, dtype=torch.bool)
    atom[left] = False
    channel = free[:-1] & (why[:-1] == len(pins)) & atom & (root == torch.arange(ledger.size))
    count = int(channel.sum())
    number = torch.full((ledger.size + 1,), FIXED)
    number[:-1][channel] = torch.arange(count)

    # What has one factor left is that channel; what has several is a product of them, the same one for equal factors.
    own, products = _distinct(number[factors])
    several = (own != FIXED).sum(1) > 1
    table, index = unique_rows(own[several]) if several.any() else (own[:0], None)
    number[left] = own.max(1).values if own.shape[1] else torch.full_like(left, FIXED)
    if index is not None:
        number[left[several]] = count + index
    of = number[:-1].index_select(0, root)
    held = why[:-1].clone()
    if factors.shape[1]:  # a product could be cut until the last of its factors was held
        reasons = why[factors]
        last = reasons.masked_fill(reasons == len(pins), -1).amax(1)
        held.scatter_reduce_(0, left, torch.where(last < 0, len(pins), last), "amin")
    return Numbering(count, table, of, held.index_select(0, root), pins)


def _alone(ledger: Ledger, root: Tensor) -> Tensor:
    """The roots that have an axis to themselves, as factors of products can: without them nothing is left of it."""
    vectors = list({id(ids): ids for own in ledger.axes.values() for ids in own if len(ids) > 1}.values())
    lengths = torch.tensor([len(vector) for vector in vectors])
    first, axis = root[torch.stack([vector[0] for vector in vectors])], torch.repeat_interleave(lengths)
    several = torch.zeros(len(vectors), dtype=torch.bool)
    several[axis[root[torch.cat(vectors)] != first[axis]]] = True
    return first[~several]


def _records(ledger: Ledger) -> tuple[Tensor, Tensor]:
    """All products of the ledger as one: ids (n,) and their factors (n, k), filled up with _NONE."""
    most = max((factors.shape[1] for _, factors in ledger.products), default=0)
    pad = torch.nn.functional.pad
    rows = [pad(factors.clamp_min(_NONE), (0, most - factors.shape[1]), value=_NONE) for _, factors in ledger.products]
    return torch.cat([NO_IDS, *(ids for ids, _ in ledger.products)]), torch.cat([NO_IDS.reshape(0, most), *rows])


def _found(root: Tensor, rows: Tensor) -> Tensor:
    """The roots of the ids in rows of factors."""
    return torch.cat([root, torch.tensor([_NONE])])[rows]


def _expanded(root: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (n, k) of every record, with factors that are products themselves replaced by their own.

    And the roots that are their own factors, at some depth.
    """
    record = torch.full((len(root) + 1,), _NONE)
    record[root[ids]] = torch.arange(len(ids))
    rows = plain = _found(root, rows)
    for _ in range(8):
        nested = record[rows] != _NONE
        if not nested.any():
            break
        deeper = torch.where(nested[..., None], plain[record[rows]], _NONE)
        deeper[..., 0] = torch.where(nested, deeper[..., 0], rows)
        rows = _packed(deeper.flatten(1))
    endless = record[rows] != _NONE
    return torch.where(endless, _NONE, rows), torch.cat([root[ids][endless.any(1)], rows[endless]]).unique()


def _packed(rows: Tensor) -> Tensor:
    """The entries of each row moved to its front, in their order; without columns that are empty in all rows."""
    if not rows.numel():
        return rows
    order = (rows == _NONE).to(torch.uint8).argsort(dim=1, stable=True)
    rows = rows.gather(1, order)
    return rows[:, : int((rows != _NONE).sum(1).max())]


def _held(root: Tensor, left: Tensor, factors: Tensor, pins: list[Pin]) -> Tensor:
    """Root -> whether a pin holds it, or a product that it is a factor of."""
    held = torch.zeros(len(root) + 1, dtype=torch.bool)
    held[root[torch.cat([NO_IDS, *(pin.ids for pin in pins)])]] = True
    held[factors[held[left]]] = True
    return held


def _congruent(left: Tensor, factors: Tensor, plain: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Ties (2, n) between the factors of equal products, and the ids of those that have other numbers of them.

    `plain`: factors that are products themselves as they are. Of (a, b, c) and (d, e, f) one may be told only later
    that d is a product, and that it is a: where the expanded factors are not as many, these may be. `free`: without
    those that are held. Of (which, head, place), as queries, keys and values stand together, and (head, place) of what
    comes of them, these are as many.
    """
    order = left.argsort(stable=True)
    left = left[order]
    other, ties = (left[1:] == left[:-1]).nonzero().flatten(), NO_IDS
    for rows in (factors[order], plain[order], free[order]):
        if ties.numel() or not other.numel():
            break
        ties, fits = _pairs(rows[other], rows[other + 1])
        other = other[~fits]
    return ties, left[other].unique()


def _pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Ties (2, n) between the factors (n, k) of rows that have as many, and which rows these are."""
    fits = ((a == _NONE) == (b == _NONE)).all(1)
    differ = (a != b) & fits[:, None]
    return torch.stack([a[differ], b[differ]]), fits


def _reasons(root: Tensor, left: Tensor, factors: Tensor, pins: list[Pin]) -> Tensor:
    """Root -> the first pin that holds it. What holds a product holds all its factors."""
    why = torch.full((len(root) + 1,), len(pins))
    for number in reversed(range(len(pins))):
        why[root[pins[number].ids]] = number
    held = why[left]
    return why.scatter_reduce(
        0,
        torch.where(factors == _NONE, len(root), factors).flatten(),
        held[:, None].expand_as(factors).flatten(),
        "amin",
    ).index_fill(0, torch.tensor([len(root)]), len(pins))


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers in each row, each once, ascending, FIXED first; and how many there are."""
    rows = rows.sort(1).values
    if rows.shape[1] > 1:
        rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = FIXED
    rows = rows.sort(1).values
    return rows, (rows != FIXED).sum(1)
