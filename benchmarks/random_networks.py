"""Promise 5 by the thousand: `python benchmarks/random_networks.py --count 1000`.

Random networks (tests/generator.py) are traced, cut at four densities, and checked in training and evaluation mode:
gated against compacted output in float64, predicted against counted costs as integers. Writes random_networks.json.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, write_json
from generator import image, network
from promises import check_cut, measured, predicted, random_keep
from rich.console import Console
from rich.table import Table

import hfp

DENSITIES = (0.0, 0.25, 0.5, 0.75)
TOLERANCE = 1e-9


def examine(seed: int) -> dict[str, Any]:
    """One network. AssertionError (or whatever the engine raised) where a promise does not hold."""
    model, blocks = network(seed)
    inputs = ((image(seed),), {})
    table = hfp.trace(model, inputs[0])
    generator = torch.Generator().manual_seed(seed)
    assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs)
    keeps = [random_keep(table, density, generator) for density in DENSITIES]
    errors = [check_cut(model, table, keep, inputs, TOLERANCE) for keep in keeps]
    made = table.channels + sum(row.count for row in table.pinned if "output" not in row.reason)
    reasons = Counter(row.reason.split(":")[0] for row in table.pinned)
    return {"blocks": blocks, "channels": table.channels, "made": made, "error": max(errors), "pinned": dict(reasons)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--output", type=Path, default=RESULTS / "random_networks.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, failures, good = time.perf_counter(), {}, []
    for seed in range(options.first, options.first + options.count):
        try:
            good.append(examine(seed))
        except Exception as error:  # counted and printed: this benchmark is there to find them
            failures[seed] = f"{network(seed)[1]} {type(error).__name__}: {error}"[:400]
            print(f"seed {seed}: {failures[seed]}", flush=True)
    reasons = sum((Counter(row["pinned"]) for row in good), Counter())
    result = {
        "machine": machine(),
        "first_seed": options.first,
        "networks": options.count,
        "failed": len(failures),
        "with_channels_to_prune": sum(row["channels"] > 0 for row in good),
        "share_of_channels_that_can_be_pruned": sum(r["channels"] for r in good) / max(1, sum(r["made"] for r in good)),
        "largest_error": max((row["error"] for row in good), default=None),
        "pinned_layers": dict(reasons.most_common()),
        "seconds": time.perf_counter() - start,
        "failures": failures,
    }
    write_json(options.output, result)
    table = Table("", "", show_header=False)
    for name in ("networks", "failed", "with_channels_to_prune", "largest_error", "seconds"):
        table.add_row(
            name.replace("_", " "), f"{result[name]:.3g}" if isinstance(result[name], float) else str(result[name])
        )
    table.add_row("channels that can be pruned", f"{100 * result['share_of_channels_that_can_be_pruned']:.1f} %")
    for reason, count in reasons.most_common(12):
        table.add_row(f"pinned: {reason}", str(count))
    Console(width=120).print(table)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
