"""From ids to channels, beside a plain reference in Python."""

from __future__ import annotations

import random

import pytest
import torch

from hfp.labels import FIXED, Ledger, Place, extended
from hfp.resolve import Numbering, resolve

HERE = Place("test", "", "")


def ledger_of(
    size: int, ties: list[tuple[int, int]], products: dict[int, tuple[int, ...]], pins: list[int], made: list[int]
) -> Ledger:
    ledger = Ledger(size=size)
    ledger.ties = [torch.tensor(ties).T] if ties else []
    ledger.products = [(torch.tensor([i]), torch.tensor([factors])) for i, factors in products.items()]
    for i in pins:
        ledger.pin(torch.tensor([i]), f"pin {i}", HERE)
    ledger.produced = [torch.tensor(made, dtype=torch.long)]
    return ledger


def plain(ledger: Ledger) -> tuple[list[int], set[int]]:
    """(root of every id, the roots that are channels), by rules applied again and again until nothing changes."""
    parent = list(range(ledger.size))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    def tie(a: int, b: int) -> bool:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
        return low != high

    for pairs in ledger.ties:
        for a, b in pairs.T.tolist():
            tie(a, b)
    records = [(int(i), f) for ids, rows in ledger.products for i, f in zip(ids, rows.tolist(), strict=True)]

    def atoms(i: int) -> list[int]:
        """The factors of an id, down to those that have none."""
        for product, factors in records:
            if find(product) == find(i):
                return [atom for factor in factors for atom in atoms(factor)]
        return [find(i)]

    changed = True
    while changed:
        changed = False
        for a, first in records:
            for b, second in records:
                if find(a) == find(b):
                    lists = [[atom for f in factors for atom in atoms(f)] for factors in (first, second)]
                    changed |= any([tie(x, y) for x, y in zip(*lists, strict=True)])
    pinned = {atom for pin in ledger.pins for i in pin.ids.tolist() for atom in atoms(i)}
    made = {atom for ids in ledger.produced for i in ids.tolist() for atom in atoms(i)}
    return [find(i) for i in range(ledger.size)], {find(i) for i in made} - {find(i) for i in pinned}


def assert_sound(ledger: Ledger, found: Numbering, keep: torch.Tensor) -> None:
    """Whichever channels stay: tied ids live alike, products if all their factors do, what is pinned always."""
    lives = extended(keep, found.products)[found.of].tolist()
    for pairs in ledger.ties:
        assert all(lives[a] == lives[b] for a, b in pairs.T.tolist())
    for ids, rows in ledger.products:
        for i, factors in zip(ids.tolist(), rows.tolist(), strict=True):
            assert lives[i] == all(lives[f] for f in factors)
    assert all(lives[i] for pin in ledger.pins for i in pin.ids.tolist())


def random_ledger(seed: int, ties_of_equals: bool = True) -> Ledger:
    """Atoms, products of two atoms, products of such a product and an atom; ties of such as are of one kind, or any."""
    draw = random.Random(seed)
    atoms, pairs, nested = range(0, 12), range(12, 20), range(20, 25)
    products: dict[int, tuple[int, ...]] = {i: (draw.choice(atoms), draw.choice(atoms)) for i in pairs}
    products |= {i: (draw.choice(pairs), draw.choice(atoms)) for i in nested}
    kinds = [kind for kind in (atoms, pairs, nested) for _ in range(draw.randint(0, 2))]
    ties = [(draw.choice(kind), draw.choice(kind)) for kind in (kinds if ties_of_equals else [range(25)] * 6)]
    pins = draw.sample(range(25), draw.randint(0, 3))
    return ledger_of(25, ties, products, pins, draw.sample(range(25), draw.randint(3, 15)))


@pytest.mark.parametrize("seed", range(60))
def test_random_ledgers(seed: int) -> None:
    ledger = random_ledger(seed)
    found = resolve(ledger)
    root, channels = plain(ledger)
    assert found.channels == len(channels)
    assert {found.of[i].item() for i in channels} == set(range(found.channels))
    assert [found.of[i].item() for i in sorted(channels)] == list(range(found.channels)), "in the order of ids"
    assert all(found.of[i] == found.of[root[i]] for i in range(ledger.size))
    generator = torch.Generator().manual_seed(seed)
    for density in (0.0, 0.3, 0.5, 0.8, 1.0):
        assert_sound(ledger, found, torch.rand(found.channels, generator=generator) < density)


@pytest.mark.parametrize("seed", range(100))
def test_random_ledgers_that_may_not_fit_are_sound(seed: int) -> None:
    ledger = random_ledger(seed, ties_of_equals=False)
    found = resolve(ledger)
    generator = torch.Generator().manual_seed(seed)
    for density in (0.0, 0.3, 0.5, 0.8, 1.0):
        assert_sound(ledger, found, torch.rand(found.channels, generator=generator) < density)


def test_what_nothing_makes_is_no_channel() -> None:
    found = resolve(ledger_of(3, [(0, 1)], {}, [], [1]))
    assert found.of.tolist() == [0, 0, FIXED] and found.channels == 1


def test_a_product_is_told_by_its_factors() -> None:
    """Rows 0 to 3 are 2 heads (4, 5) times 2 places (6, 7); row 8 of another layer has the factors of row 3."""
    products = {0: (4, 6), 1: (4, 7), 2: (5, 6), 3: (5, 7), 8: (5, 7)}
    found = resolve(ledger_of(9, [], products, [], [0, 1, 2, 3, 8]))
    assert found.channels == 4 and found.of[4:8].tolist() == [0, 1, 2, 3]
    assert found.products.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert found.of[:4].tolist() == [4, 5, 6, 7] and found.of[8] == 7


def test_equal_products_have_equal_factors() -> None:
    """Two layers that are added after both were split into heads: heads are tied to heads, places to places."""
    found = resolve(ledger_of(6, [(0, 3)], {0: (1, 2), 3: (4, 5)}, [], [0, 3]))
    assert found.channels == 2
    assert found.of[1] == found.of[4] != found.of[2] == found.of[5]


def test_factors_tied_by_equal_products_make_others_equal() -> None:
    """What congruence ties may make further products equal, and so on."""
    products = {0: (1, 2), 3: (4, 5), 6: (1, 7), 8: (4, 7), 9: (6, 10), 11: (8, 12)}
    found = resolve(ledger_of(13, [(0, 3), (9, 11)], products, [], [0, 3, 6, 8, 9, 11]))
    assert found.of[6] == found.of[8] and found.of[10] == found.of[12]


def test_products_of_different_numbers_of_factors_stay_whole() -> None:
    found = resolve(ledger_of(7, [(0, 3)], {0: (1, 2), 3: (4, 5, 6)}, [], [0, 3]))
    assert found.channels == 0 and (found.of == FIXED).all()
    assert "split into axes in two ways" in found.pins[int(found.why[0])].reason


def test_a_factor_that_is_held_makes_no_difference() -> None:
    """0 is which (1) of three, a head (2) and a place (3); what comes of them, 4, is a head (5) and a place (6)."""
    products = {0: (1, 2, 3), 4: (5, 6)}
    found = resolve(ledger_of(7, [(0, 4)], products, [1], [0, 4]))
    assert found.channels == 2 and found.of[2] == found.of[5] and found.of[3] == found.of[6]


def test_a_product_that_is_its_own_factor_is_none_and_the_others_stay() -> None:
    """Places 0 to 3 are pairs (4, 5) times sides (6, 7), and are merged as if both sides were the pair: 0 is 4."""
    products = {0: (4, 6), 1: (4, 7), 2: (5, 6), 3: (5, 7)}
    found = resolve(ledger_of(8, [(0, 4), (1, 4), (2, 5), (3, 5)], products, [], [0, 1, 2, 3]))
    assert found.channels == 2 and not len(found.products)
    assert found.of.tolist() == [0, 0, 1, 1, 0, 1, FIXED, FIXED]


def test_one_of_two_equal_products_may_be_its_own_factor() -> None:
    """0 is 1 * 2, and 3 * 4, where 3 is 0: 4 stays."""
    ledger = ledger_of(5, [(0, 3)], {0: (1, 2)}, [], [0])
    ledger.products.append((torch.tensor([0]), torch.tensor([[3, 4]])))
    found = resolve(ledger)
    assert found.channels == 2 and found.of.tolist() == [2, 0, 1, 2, FIXED]
    assert_sound(ledger, found, torch.tensor([False, True]))


def test_a_factor_may_be_told_to_be_a_product_by_another() -> None:
    """The weight (0) of what reads heads (8, of 9 and 10) is laid out as a row and back: 1 is 4, and so it is 8."""
    products = {0: (1, 2, 3), 7: (4, 5, 6), 8: (9, 10)}
    found = resolve(ledger_of(11, [(0, 7), (4, 8)], products, [], [0, 8]))
    assert found.channels == 4 and found.of[1] == found.of[4] == found.of[8]
    assert found.of[2] == found.of[5] and found.of[3] == found.of[6]


def test_products_in_products_are_products_of_all() -> None:
    """A head, a place in it, and a half of the place."""
    found = resolve(ledger_of(5, [], {0: (1, 2), 2: (3, 4)}, [], [0]))
    assert found.channels == 3
    factors = [set(found.products[int(found.of[i]) - 3].tolist()) - {FIXED} for i in (0, 2)]
    assert factors == [{0, 1, 2}, {1, 2}]


@pytest.mark.parametrize("pins, channels", [([], 2), ([1], 1), ([2], 1), ([1, 2], 0), ([0], 0)])
def test_a_pinned_factor_drops_out_and_a_pinned_product_holds_all(pins: list[int], channels: int) -> None:
    found = resolve(ledger_of(3, [], {0: (1, 2)}, pins, [0]))
    assert found.channels == channels
    if channels == 1:  # what has one factor left is that channel
        (left,) = {1, 2} - set(pins)
        assert found.of[0] == found.of[left] == 0 and not len(found.products)
    if pins == [0]:
        assert [found.pins[int(found.why[i])].reason for i in range(3)] == ["pin 0"] * 3


def test_a_factor_that_has_an_axis_to_itself_drops_out() -> None:
    """Places 0, 1, 2 of a weight beside channels 3, 4, where what comes in has the channels alone at each place."""
    rows = [(place, channel) for place in (0, 1, 2) for channel in (3, 4)]
    products = {5 + number: factors for number, factors in enumerate(rows)}
    ties = [(5 + number, 11 + number % 2) for number in range(6)]
    ledger = ledger_of(13, ties, products, [], [11, 12])
    assert resolve(ledger).channels == 3
    ledger.axes = {"weight": (torch.tensor([0, 1, 2]), torch.tensor([3, 4])), "before": (torch.tensor([11, 12]),)}
    numbers = resolve(ledger)
    assert numbers.channels == 2 and not len(numbers.products)
    assert numbers.of[:5].tolist() == [FIXED] * 3 + [0, 1] and numbers.of[11:].tolist() == [0, 1]


def test_a_factor_that_comes_twice_counts_once() -> None:
    found = resolve(ledger_of(3, [(1, 2)], {0: (1, 2)}, [], [0]))
    assert found.channels == 1 and found.of.tolist() == [0, 0, 0]


def test_the_first_reason_is_the_one_that_is_told() -> None:
    found = resolve(ledger_of(3, [(0, 1)], {}, [1, 0], [0, 2]))
    assert found.pins[int(found.why[0])].reason == "pin 1"
    assert int(found.why[2]) == len(found.pins)


def test_an_empty_ledger() -> None:
    found = resolve(Ledger())
    assert found.channels == 0 and not len(found.of) and not len(found.products)
