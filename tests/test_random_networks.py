"""Promise 5: no network is ever cut wrongly in silence; `benchmarks/random_networks.py` tries thousands."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from generator import BLOCKS, image, network
from promises import check_cut, leaves, measured, predicted, random_keep
from random_networks import channels_made

from hfp import trace

SEEDS = 200
MOST_PINNED = 0.1
"""The share of channels that may be pinned, over all networks."""


@pytest.mark.parametrize("start", range(0, SEEDS, 10))
def test_random_networks_keep_the_promises(start: int) -> None:
    for seed in range(start, start + 10):
        model, blocks = network(seed)
        inputs = ((image(seed),), {})
        generator = torch.Generator().manual_seed(seed)
        try:
            table = trace(model, inputs[0])
            assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
            for density in (0.0, 0.5):
                check_cut(model, table, random_keep(table, density, generator), inputs, tolerance=1e-9)
        except Exception as error:
            raise AssertionError(f"seed {seed}, blocks {blocks}") from error


def test_most_channels_of_random_networks_can_be_pruned() -> None:
    """A table that pins everything keeps every promise."""
    free = pinned = 0
    for seed in range(30):
        model = network(seed)[0]
        more, reasons = channels_made(model, trace(model, image(seed)))
        free, pinned = free + more, pinned + reasons.total()
    assert pinned / (free + pinned) < MOST_PINNED


def test_a_seed_gives_one_network_and_every_block_comes_up() -> None:
    """Nothing overflows, no parameter is left at a constant, and the draw is the same every time."""
    used: Counter[str] = Counter()
    for seed in range(300):
        model, blocks = network(seed)
        used.update(blocks)
        if seed % 10 == 0:
            again = network(seed)[0]
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
            with torch.no_grad():
                assert all(leaf.isfinite().all() for leaf in leaves(model(image(seed))))
        assert all(p.numel() == 1 or p.std() > 0 for p in model.parameters())
    assert set(used) == {block.__name__ for block in BLOCKS}
