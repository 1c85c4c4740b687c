"""Ids, and what the ledger makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hfp.labels import ANY, FIXED, Ledger, Place, anything, components, extended, prunable, unique_rows

HERE = Place("test", "", "")


def pinned(ledger: Ledger) -> list[int]:
    return sorted(torch.cat([pin.ids for pin in ledger.pins]).tolist()) if ledger.pins else []


def tied(ledger: Ledger) -> list[list[int]]:
    return torch.cat(ledger.ties, dim=1).T.tolist() if ledger.ties else []


def test_numbering_gives_every_index_of_every_dim_an_id_of_its_own() -> None:
    ledger = Ledger()
    ledger.number("weight", (4, 3, 1))
    ledger.number("bias", (4,))
    ids = torch.cat([vector for vectors in ledger.axes.values() for vector in vectors])
    assert ids.tolist() == list(range(4 + 3 + 1 + 4)) and ledger.size == 12
    assert ledger.fresh(2).tolist() == [12, 13]


def test_the_labels_of_a_tensor_are_its_axes_but_for_those_of_length_one() -> None:
    ledger = Ledger()
    ledger.number("weight", (4, 3, 1))
    labels = ledger.labels("weight")
    assert labels[0] is ledger.axes["weight"][0] and labels[1] is ledger.axes["weight"][1] and labels[2] is None


def test_components_are_those_of_a_plain_union_find() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, count in ((1, 0), (5, 3), (200, 90), (500, 800)):
        ties = [torch.randint(0, size, (2, count), generator=generator) for _ in range(3)]
        parent = list(range(size))

        def find(i: int, parent: list[int] = parent) -> int:
            while parent[i] != i:
                i = parent[i]
            return i

        for a, b in torch.cat(ties, dim=1).T.tolist():
            low, high = sorted((find(a), find(b)))
            parent[high] = low
        assert components(size, ties).tolist() == [find(i) for i in range(size)]


def test_a_long_chain_is_one_component() -> None:
    chain = torch.stack([torch.arange(99_999), torch.arange(1, 100_000)])
    assert int(components(100_000, [chain]).max()) == 0


@pytest.mark.parametrize(
    "a, b, ties, pins",
    [
        ([0, 1], [2, 3], [[0, 2], [1, 3]], []),
        ([0, 1], [0, 3], [[1, 3]], []),
        ([0, FIXED, 2, FIXED], [4, 5, FIXED, FIXED], [[0, 4]], [2, 5]),
        ([0, ANY, 2, ANY], [4, 5, ANY, ANY], [[0, 4]], []),
        ([ANY, FIXED], [FIXED, ANY], [], []),
        ([[0], [1]], [[2, 3], [4, 5]], [[0, 2], [0, 3], [1, 4], [1, 5]], []),
        ([], [], [], []),
    ],
)
def test_tying_joins_ids_and_pins_those_that_meet_no_channel(a: list, b: list, ties: list, pins: list) -> None:
    for first, second in ((a, b), (b, a)):
        ledger = Ledger()
        ledger.tie(torch.tensor(first, dtype=torch.long), torch.tensor(second, dtype=torch.long), HERE)
        assert [sorted(pair) for pair in tied(ledger)] == ties
        assert pinned(ledger) == pins


def test_a_vector_tied_to_itself_is_nothing_new() -> None:
    ledger, ids = Ledger(), torch.tensor([0, FIXED])
    ledger.tie(ids, ids, HERE)
    assert not ledger.ties and not ledger.pins


def test_only_ids_can_be_pinned() -> None:
    ledger = Ledger()
    ledger.pin(torch.tensor([[3, FIXED], [ANY, 1]]), "why", HERE)
    ledger.pin(torch.tensor([FIXED, ANY]), "why", HERE)
    assert [(pin.ids.tolist(), pin.reason, pin.place) for pin in ledger.pins] == [([3, 1], "why", HERE)]


def test_splitting_an_axis_gives_factors_for_each_part() -> None:
    """12 ids as 3 heads of 4: id 4 * h + d lives if head h and place d do."""
    ledger = Ledger()
    ledger.number("weight", (12,))
    heads, places = ledger.split(torch.arange(12).reshape(3, 4), HERE)
    assert (len(heads), len(places)) == (3, 4) and ledger.size == 12 + 7
    ((ids, factors),) = ledger.products
    assert ids.tolist() == list(range(12))
    assert factors.tolist() == [[int(heads[i // 4]), int(places[i % 4])] for i in range(12)]


def test_splitting_into_three() -> None:
    ledger = Ledger(size=24)
    parts = ledger.split(torch.arange(24).reshape(2, 3, 4), HERE)
    ((ids, factors),) = ledger.products
    assert factors.shape == (24, 3)
    for i, row in zip(ids.tolist(), factors.tolist(), strict=True):
        assert row == [int(parts[0][i // 12]), int(parts[1][i // 4 % 3]), int(parts[2][i % 4])]


def test_what_is_split_beside_values_of_no_channel_stays() -> None:
    """Zeros in the last place of head 0: neither the head nor the place can go."""
    ledger = Ledger(size=3)
    heads, places = ledger.split(torch.tensor([[0, FIXED], [1, 2]]), HERE)
    assert pinned(ledger) == sorted([int(heads[0]), int(places[1])])
    assert ledger.products[0][0].tolist() == [0, 1, 2]


def test_merging_axes_gives_products() -> None:
    ledger = Ledger(size=4)
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 2, 3])
    merged = ledger.merge([a, b])
    assert merged.tolist() == [4, 5, 6, 7]
    ((ids, factors),) = ledger.products
    assert ids is merged and factors.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_merging_with_what_can_be_any_channel_makes_none() -> None:
    ledger, ids = Ledger(size=4), torch.tensor([0, 1, 0, 1])
    assert ledger.merge([ids]) is ids
    assert ledger.merge([anything(4), ids]) is ids
    assert ledger.merge([anything(4), anything(4)]).tolist() == [ANY] * 4
    assert not ledger.products


def test_what_holds_for_channels_is_extended_to_products() -> None:
    products = torch.tensor([[0, 1], [1, 2], [0, FIXED]])
    for bits in range(8):
        keep = torch.tensor([bool(bits >> i & 1) for i in range(3)])
        a, b, c = keep.tolist()
        every = extended(keep, products)
        assert every.dtype == torch.bool and every.tolist() == [a, b, c, a and b, b and c, a, True]
        assert torch.equal(extended(keep.double(), products), every.double())
    assert extended(torch.tensor([0.5]), torch.empty(0, 0, dtype=torch.long)).tolist() == [0.5, 1.0]


def test_gradients_reach_every_factor() -> None:
    products = torch.tensor([[0, 1], [0, FIXED]])

    def function(gates: Tensor) -> Tensor:
        return extended(gates, products)

    gates = torch.tensor([0.0, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (gates,))


@pytest.mark.parametrize("ids, answer", [([FIXED, FIXED], False), ([ANY], False), ([FIXED, 0], True), ([], False)])
def test_prunable(ids: list[int], answer: bool) -> None:
    assert prunable(torch.tensor(ids, dtype=torch.long)) is answer


def test_a_place_reads_as_a_sentence() -> None:
    assert str(Place("roll", "block.1", "net.py:7")) == "roll in block.1 (net.py:7)"
    assert str(Place("output", "", "")) == "output"


def test_what_is_joined_later_is_joined_with_what_was_before() -> None:
    generator = torch.Generator().manual_seed(0)
    ties = [torch.randint(60, (2, 4), generator=generator) for _ in range(8)]
    ledger = Ledger(size=60)
    for number, tie in enumerate(ties):
        ledger.ties.append(tie)
        assert torch.equal(ledger.roots(), components(60, ties[: number + 1]))
    ledger.fresh(5)
    assert torch.equal(ledger.roots(), components(65, ties))


def test_equal_rows_have_equal_numbers() -> None:
    rows = torch.randint(-1, 3, (200, 3), generator=torch.Generator().manual_seed(0))
    distinct, number = unique_rows(rows)
    expected, inverse = rows.unique(dim=0, return_inverse=True)
    assert torch.equal(distinct, expected) and torch.equal(number, inverse)
    assert [len(part) for part in unique_rows(rows[:0])] == [0, 0]


def test_what_meets_twice_is_tied_once() -> None:
    ledger = Ledger(size=8)
    a, b = torch.tensor([0, ANY, 2]), torch.tensor([3, 4, ANY])
    both = ledger.meet(a, b, HERE)
    assert both.tolist() == [0, 4, 2] and ledger.meet(a, b, HERE) is both and ledger.meet(a, a, HERE) is a
    assert [tie.tolist() for tie in ledger.ties] == [[[0], [3]]]
