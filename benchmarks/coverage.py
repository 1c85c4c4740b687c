"""Which published networks the channel table understands: `python benchmarks/coverage.py torchvision`.

Every variant up to 100 million parameters is traced, cut at three densities, and checked: gated output against
compacted output, predicted against counted parameters and multiply-adds, as integers, before and after. Writes each row
to benchmarks/coverage_<library>.json as it is done; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, randomise_statistics, seconds, write_json
from promises import Gated, call, measured, predicted, random_keep, relative_difference
from rich.console import Console
from rich.table import Table
from torch import nn

import hfp
from hfp.channels import ChannelTable
from hfp.surgery import compact

DENSITIES = (0.2, 0.5, 0.8)
LIMIT = 100_000_000
TOLERANCE = 1e-5
FAMILIES = re.compile(
    r"(alexnet|vgg\d+(_bn)?|resnet\d+|resnext.*|wide_resnet.*|densenet.*|googlenet|inception_v3|squeezenet.*|mnasnet.*"
    r"|mobilenet_v[23].*|efficientnet.*|regnet.*)"
)
LARGER = {"inception_v3": 299, "alexnet": 128, "squeezenet1_0": 128, "squeezenet1_1": 128}
"""Image sizes of those that do not run at the default one."""

Network = tuple[str, Callable[[], nn.Module], int]


def torchvision_networks(size: int) -> Iterator[Network]:
    import torchvision.models as zoo

    for name in sorted(zoo.list_models(module=zoo)):
        if FAMILIES.fullmatch(name) and zoo.get_model_weights(name).DEFAULT.meta["num_params"] <= LIMIT:
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

            def build(name: str = name, options: dict[str, Any] = options) -> nn.Module:
                return zoo.get_model(name, weights=None, **options)

            yield name, build, max(size, LARGER.get(name, 0))


LIBRARIES = {"torchvision": torchvision_networks}


def examine(build: Callable[[], nn.Module], size: int) -> dict[str, Any]:
    """One row: AssertionError where a promise does not hold."""
    torch.manual_seed(0)
    model = randomise_statistics(build()).eval()
    inputs = ((torch.randn(1, 3, size, size),), {})
    trace_seconds, table = seconds(lambda: hfp.trace(model, inputs[0]))
    everything = torch.ones(table.channels, dtype=torch.bool)
    macs, params = measured(model, inputs)
    assert predicted(table, everything) == (macs, params), "predicted and counted costs of the dense network differ"
    row = {
        "size": size,
        "params": params,
        "macs": macs,
        "channels": table.channels,
        "groups": len(table.groups),
        "least_macs": least_macs(table) / macs,
        "pinned": sorted({row.reason for row in table.pinned}),
        "trace_seconds": trace_seconds,
        "cuts": [],
    }
    generator = torch.Generator().manual_seed(0)
    for density in DENSITIES:
        row["cuts"].append(cut(model, table, random_keep(table, density, generator), inputs, density))
    return row


def cut(model: nn.Module, table: ChannelTable, keep: torch.Tensor, inputs: Any, density: float) -> dict[str, Any]:
    compact_seconds, small = seconds(lambda: compact(model, table, keep))
    error = relative_difference(call(Gated(model, table, keep), inputs), call(small, inputs))
    assert error < TOLERANCE, f"gated and compacted differ by {error:.1e} at density {density}"
    macs, params = measured(small, inputs)
    assert predicted(table, keep) == (macs, params), f"predicted and counted costs differ at density {density}"
    return {"density": density, "error": error, "macs": macs, "params": params, "compact_seconds": compact_seconds}


def least_macs(table: ChannelTable) -> int:
    """Multiply-adds with the least of every group: what pinned layers and single channels still cost."""
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        keep[group.channels[: group.least]] = True
    return table.macs.count(keep)


def show(rows: dict[str, Any]) -> None:
    table = Table(
        "network", "params M", "MACs G", "groups", "channels", "least MACs", "largest error", "trace s", "cut s"
    )
    for name, row in rows.items():
        if "failed" in row:
            table.add_row(name, f"[red]{row['failed']}")
            continue
        cells = [f"{row['params'] / 1e6:.1f}", f"{row['macs'] / 1e9:.2f}", str(row["groups"]), str(row["channels"])]
        worst = max(each["error"] for each in row["cuts"])
        slowest = max(each["compact_seconds"] for each in row["cuts"])
        cells += [f"{100 * row['least_macs']:.2f} %", f"{worst:.1e}", f"{row['trace_seconds']:.2f}", f"{slowest:.2f}"]
        table.add_row(name, *cells)
    Console(width=120).print(table)
    good = sum("failed" not in row for row in rows.values())
    print(f"{good} of {len(rows)} networks keep the promises")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--size", type=int, default=96, help="image size, where a network runs at it (default: 96)")
    parser.add_argument("--only", default="", help="regular expression: only networks whose name it matches")
    parser.add_argument("--again", action="store_true", help="forget the rows that are already there")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = options.output or RESULTS / f"coverage_{options.library}.json"
    rows = {} if options.again or not output.exists() else json.loads(output.read_text())["networks"]
    for name, build, size in LIBRARIES[options.library](options.size):
        done = name in rows and "failed" not in rows[name]
        if done or not re.search(options.only, name):
            continue
        try:
            rows[name] = examine(build, size)
        except Exception as error:  # a row of the table: this benchmark reports what does not work
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(name, rows[name].get("failed", f"{rows[name].get('trace_seconds', 0):.2f} s"), flush=True)
        write_json(output, {"machine": machine(), "tolerance": TOLERANCE, "networks": dict(sorted(rows.items()))})
        gc.collect()
    show(rows)


if __name__ == "__main__":
    main()
