"""Planes and the ledger."""

from __future__ import annotations

import pytest
import torch

from hfp.labels import FIXED, Ledger, Place, align, components, compress, varying

HERE = Place("test", "", "")


@pytest.mark.parametrize(
    "plane, shape",
    [
        (torch.arange(4).reshape(1, 4, 1).expand(2, 4, 5), (1, 4, 1)),
        (torch.zeros(2, 3, dtype=torch.long), (1, 1)),
        (torch.arange(6).reshape(2, 3), (2, 3)),
        (torch.tensor([[0, 1], [0, 1]]), (1, 2)),
        (torch.tensor([[0, 0], [1, 1]]), (2, 1)),
        (torch.zeros(0, 3, dtype=torch.long), (0, 1)),
    ],
)
def test_a_compressed_plane_is_as_small_as_can_be_and_says_the_same(
    plane: torch.Tensor, shape: tuple[int, ...]
) -> None:
    small = compress(plane)
    assert small.shape == shape
    assert torch.equal(small.expand(plane.shape), plane)
    assert varying(small) == {axis for axis, size in enumerate(shape) if size != 1}


def test_aligning_adds_leading_axes() -> None:
    assert align(torch.zeros(4, 1), 4).shape == (1, 1, 4, 1)


def test_numbering_gives_every_index_of_every_dim_an_id_of_its_own() -> None:
    ledger = Ledger()
    ledger.number("weight", (4, 3, 1))
    ledger.number("bias", (4,))
    ids = torch.cat([vector for vectors in ledger.axes.values() for vector in vectors])
    assert ids.tolist() == list(range(4 + 3 + 1 + 4))
    assert [tuple(plane.shape) for plane in ledger.planes("weight")] == [(4, 1, 1), (1, 3, 1)]
    assert ledger.planes("bias")[0].tolist() == ledger.axes["bias"][0].tolist()


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


def test_meeting_a_fixed_element_pins() -> None:
    ledger = Ledger()
    ledger.tie(torch.tensor([0, FIXED, 2, FIXED]), torch.tensor([4, 5, FIXED, FIXED]), HERE)
    assert torch.cat(ledger.ties, dim=1).T.tolist() == [[0, 4]]
    assert sorted(torch.cat([pin.ids for pin in ledger.pins]).tolist()) == [2, 5]


def test_ids_that_share_a_position_are_tied() -> None:
    ledger = Ledger()
    ids = ledger.vector(torch.tensor([[0, 1, 2], [3, 4, 5]]), 1, HERE)
    assert ids.tolist() == [0, 1, 2]
    assert components(6, ledger.ties).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_place_reads_as_a_sentence() -> None:
    assert str(Place("roll", "block.1", "net.py:7")) == "roll in block.1 (net.py:7)"
    assert str(Place("output", "", "")) == "output"
