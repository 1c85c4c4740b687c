"""Promise 5 by the thousand: `python benchmarks/random_networks.py --count 10000 --jobs 2`.

Random networks (tests/generator.py) are traced, cut at four densities, and checked in training and evaluation mode:
gated against compacted output in float64, predicted against counted costs as integers. Every network becomes a line of
runs/random_networks.jsonl, and a run that was stopped goes on where it was; lines of other code are left aside. The
summary is results/random_networks.json. One network by itself, with its table and its traceback: `--seed 123`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import HERE, RESULTS, machine, write_json
from generator import image, network
from promises import check_cut, leaves, measured, predicted, random_keep
from rich.console import Console
from rich.table import Table
from torch import nn

import hfp
from hfp.channels import ChannelTable
from hfp.labels import FIXED

DENSITIES = (0.0, 0.25, 0.5, 0.75)
TOLERANCE = 1e-9
LIMIT = 60
"""Seconds for one network; more is a failure."""
CODE = sorted([*(HERE.parent / "hfp").rglob("*.py"), *(HERE.parent / "tests").glob("generator*.py"), Path(__file__)])


# ---------------------------------------------------------------------------------------------- one network


def check(seed: int) -> tuple[nn.Module, ChannelTable, float]:
    """The network, its table, and the largest error. AssertionError where a promise does not hold."""
    model, _ = network(seed)
    inputs = ((image(seed),), {})
    with torch.no_grad():
        assert all(leaf.isfinite().all() for leaf in leaves(model(*inputs[0]))), "the network itself is not finite"
    table = hfp.trace(model, inputs[0])
    draws = torch.Generator().manual_seed(seed)
    assert predicted(table, torch.ones(table.channels, dtype=torch.bool)) == measured(model, inputs), "costs differ"
    keeps = [random_keep(table, density, draws) for density in DENSITIES]
    return model, table, max(check_cut(model, table, keep, inputs, TOLERANCE, chaos=True) for keep in keeps)


def channels_made(model: nn.Module, table: ChannelTable) -> tuple[int, Counter[str]]:
    """How many channels the layers make that can be removed, and how many each reason pins; outputs are left out."""
    free, pinned = 0, Counter[str]()
    for module_name, module in model.named_modules():
        for name, weight in module.named_parameters(module_name, recurse=False):
            dim = 1 if isinstance(module, (nn.ConvTranspose2d, nn.Embedding)) else 0
            if weight.dim() > 1 and weight.numel() > len(weight) and name in table.axes:
                free += int((table.axes[name][dim] != FIXED).sum())
                for row in table.pinned:
                    if (row.tensor, row.dim) == (name, dim) and "is an output" not in row.reason:
                        pinned[row.reason.split(":")[0]] += row.count
    return free, pinned


def examine(seed: int) -> dict[str, Any]:
    """One line of the record."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    start, row = time.perf_counter(), {"seed": seed, "blocks": network(seed)[1]}
    try:
        model, table, error = check(seed)
        free, pinned = channels_made(model, table)
        row |= {"free": free, "pinned": dict(pinned), "error": error}
    except Exception as error:  # counted and printed: this benchmark is there to find them
        row["failure"] = f"{type(error).__name__}: {error}"[:400]
    finally:
        signal.alarm(0)
    return row | {"seconds": round(time.perf_counter() - start, 3)}


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"not done in {LIMIT} s")


# ---------------------------------------------------------------------------------------------- all of them


def recorded(path: Path, code: str) -> dict[int, dict[str, Any]]:
    """What the record holds of this code. The line that a killed run left half written is dropped."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.pop("code") == code:
            rows[row["seed"]] = row
    return rows


def examined(seeds: list[int], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from map(examine, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(examine, seeds, chunksize=8)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if "failure" not in row]
    reasons: Counter[str] = Counter()
    networks_pinned: Counter[str] = Counter()
    for row in good:
        reasons.update(row["pinned"])
        networks_pinned.update(row["blocks"] if sum(row["pinned"].values()) > row["free"] else [])
    free, pinned = sum(row["free"] for row in good), sum(reasons.values())
    return {
        "networks": len(rows),
        "failed": len(rows) - len(good),
        "with_channels_to_prune": sum(row["free"] > 0 for row in good),
        "channels": free + pinned,
        "share_pinned": pinned / max(1, free + pinned),
        "largest_error": max((row["error"] for row in good), default=None),
        "seconds_each": sum(row["seconds"] for row in rows) / max(1, len(rows)),
        "slowest_seconds": max((row["seconds"] for row in rows), default=None),
        "pinned_channels": dict(reasons.most_common()),
        "blocks_of_networks_mostly_pinned": dict(networks_pinned.most_common(10)),
        "apart_by_rounding": {row["seed"]: row["error"] for row in good if row["error"] >= TOLERANCE},
        "failures": {row["seed"]: f"{row['blocks']} {row['failure']}" for row in rows if "failure" in row},
    }


def show(result: dict[str, Any]) -> None:
    table = Table("", "", show_header=False)
    for name in ("networks", "failed", "with_channels_to_prune", "largest_error", "seconds_each", "slowest_seconds"):
        value = result[name]
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    table.add_row("channels pinned", f"{100 * result['share_pinned']:.1f} % of {result['channels']}")
    for reason, count in list(result["pinned_channels"].items())[:12]:
        table.add_row(f"pinned: {reason}", str(count))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--seed", type=int, help="this network only, with its table and its traceback")
    parser.add_argument("--record", type=Path, default=HERE.parent / "runs" / "random_networks.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS / "random_networks.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seed is not None:
        print(network(options.seed)[1], hfp.trace(network(options.seed)[0], image(options.seed)), sep="\n")
        print("largest error", check(options.seed)[2])
        return
    code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()[:16]
    options.record.parent.mkdir(parents=True, exist_ok=True)
    rows, wanted = recorded(options.record, code), range(options.first, options.first + options.count)
    with options.record.open("a") as record:
        record.write("\n")
        for row in examined([seed for seed in wanted if seed not in rows], options.jobs):
            rows[row["seed"]] = row
            record.write(json.dumps({"code": code, **row}) + "\n")
            record.flush()
            if "failure" in row:
                print(f"seed {row['seed']}: {row['blocks']} {row['failure']}", flush=True)
    result = {"machine": machine(), "first_seed": options.first, **summary([rows[seed] for seed in wanted])}
    write_json(options.output, result)
    show(result)
    raise SystemExit(bool(result["failed"]))


if __name__ == "__main__":
    main()
