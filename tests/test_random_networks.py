"""Promise 5: no network is ever cut wrongly in silence; `benchmarks/random_networks.py` tries thousands."""

from __future__ import annotations

import pytest
import torch
from generator import image, network
from promises import check_cut, measured, predicted, random_keep

from hfp import trace

SEEDS = 150


@pytest.mark.parametrize("start", range(0, SEEDS, 10))
def test_random_networks_keep_the_promises(start: int) -> None:
    for seed in range(start, start + 10):
        model, blocks = network(seed)
        inputs = ((image(seed),), {})
        table = trace(model, inputs[0])
        generator = torch.Generator().manual_seed(seed)
        try:
            assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
            for density in (0.0, 0.5):
                check_cut(model, table, random_keep(table, density, generator), inputs, tolerance=1e-9)
        except Exception as error:
            raise AssertionError(f"seed {seed}, blocks {blocks}") from error


def test_most_random_networks_can_be_pruned() -> None:
    """A table that pins everything keeps every promise; so some must have channels to remove."""
    tables = [trace(network(seed)[0], image(seed)) for seed in range(30)]
    assert sum(table.channels > 0 for table in tables) >= 27
