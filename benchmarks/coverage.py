"""Which published networks hold the promises: `python benchmarks/coverage.py LIBRARY`, one of `networks.LIBRARIES`.

Every network of `networks.py` is traced, cut at three densities, and checked: gated output against compacted output,
predicted against counted parameters and multiply-adds, as integers, before and after. Each runs in a process of its
own, on one thread, under limits of time and memory. Writes each row to results/coverage_<library>.json as it is done;
a second call goes on where the first one stopped: it runs what is missing, what did not hold, and what an hfp of other
source code has checked.

    held         every check passed
    refused      hfp said no, with a reason: a ValueError of its own
    wrong        a promise is broken: another output or other costs than predicted, without an error
    crashed      any other error, or a compacted network that does not run
    timeout      the trace or a compaction took more than --limit-seconds of processor time
    memory       the process took more than --limit-gb and three times the network's own weights
    unavailable  the network itself could not be built, or does not run
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ENGINE, RESULTS, engine, machine, seconds, write_json
from double import doubled
from networks import LIBRARIES, Arguments, Network
from processes import Limits, Row, Tell, rows_of
from promises import Gated, call, leaves, measured, predicted, random_keep, relative_difference
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact
from hfp.model.inputs import placed
from hfp.proof.as_trained import randomise, settle

DENSITIES = (0.2, 0.5, 0.8)
TOLERANCE = 1e-5
DOUBLE_TOLERANCE = 1e-6  # some networks compute a part of theirs in float32, whatever the type of their weights
ENOUGH = 0.6  # share of the multiply-adds that is to be prunable
STATUSES = ("held", "refused", "wrong", "crashed", "timeout", "memory", "unavailable")


# --- one network -----------------------------------------------------------------------------------------------------


def examine(network: Network, tell: Tell) -> None:
    """`tell` gets the row of a network as it fills, at the start of every stage, and at the end with its status."""
    row: Row = {"stage": "build", "notes": []}
    try:
        broken = list(_broken_promises(network, row, tell))
    except Exception as error:  # a row of the table: this benchmark reports what does not work
        row |= {"status": _status(error, row["stage"]), "message": _one_line(error)}
    else:
        row |= {"status": "wrong", "message": "; ".join(broken)} if broken else {"status": "held"}
    tell(row)


def _broken_promises(network: Network, row: Row, tell: Tell) -> Iterator[str]:
    def enter(stage: str) -> None:
        row["stage"] = stage
        tell(row)

    enter("build")
    torch.manual_seed(0)
    model = randomise(network.build()).eval()
    inputs = network.inputs(model)
    settle(model, lambda: call(model, inputs))
    row["class"] = type(model).__name__
    row["model_gb"] = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**30
    dense = _finite(call(model, inputs))
    if not all(leaf.numel() for leaf in leaves(dense)):
        row["notes"].append("an output is empty: the checks mean little")
    enter("trace")
    row["trace_seconds"], table = seconds(lambda: trace(model, inputs[1] or inputs[0]), time.process_time)
    row |= _described(table)
    row["notes"] += table.notes
    enter("check")
    everything = torch.ones(table.channels, dtype=torch.bool)
    row["macs"], row["params"] = measured(model, inputs)
    yield from _costs_differ(predicted(table, everything), (row["macs"], row["params"]), "dense")
    row["cuts"] = []
    generator = torch.Generator().manual_seed(0)
    for density in DENSITIES:
        keep = random_keep(table, density, generator)
        enter("compact")
        compact_seconds, small = seconds(lambda keep=keep: compact(model, table, keep), time.process_time)
        enter("check")
        cut = {"density": density, "compact_seconds": compact_seconds}
        row["cuts"].append(cut)
        yield from _outputs_differ(Cut(model, table, keep, small), inputs, f"density {density}", cut)
        cut["macs"], cut["params"] = measured(small, inputs)
        yield from _costs_differ(predicted(table, keep), (cut["macs"], cut["params"]), f"density {density}")
        if density == min(DENSITIES):  # a check means little where the output is hardly made of what was cut
            cut["change"] = min(_largest(dense, call(Gated(model, table, keep), inputs)), 1.0)
            if cut["change"] < 100 * TOLERANCE:
                row["notes"].append("the output hardly depends on what was cut: the checks mean little")
        if network.training and density == 0.5:
            enter("check training")
            yield from _outputs_differ(Cut(model, table, keep, small), network.training(model), "training", cut, True)


@dataclass(frozen=True)
class Cut:
    """A network, gated and compacted by the same keep vector."""

    model: nn.Module
    table: ChannelTable
    keep: Tensor
    small: nn.Module

    def difference(self, inputs: Arguments, dtype: torch.dtype, training: bool) -> float:
        """Of the outputs, relative; infinite where even their shapes differ."""
        model, small = self.model, self.small
        if training or dtype != torch.float32:  # running statistics change in training; both must stay as they are
            model, small = copy.deepcopy((model, small))
            inputs = placed(inputs, torch.device("cpu"), {torch.float32: dtype})
        gated = Gated(model.to(dtype), self.table, self.keep).train(training)
        small = small.to(dtype).train(training)
        with doubled() if dtype == torch.float64 else nullcontext():
            return _largest(_finite(call(gated, inputs)), _finite(call(small, inputs)))

    def rounding(self, inputs: Arguments) -> float:
        """How much the outputs of the gated network, in float64, change with the last digit of its inputs."""
        inputs = placed(inputs, torch.device("cpu"), {torch.float32: torch.float64})
        nudged = tree_map(_last_digit, inputs)
        gated = Gated(copy.deepcopy(self.model).double(), self.table, self.keep).eval()
        with doubled():
            return _largest(call(gated, inputs), call(gated, nudged))


def _last_digit(value: Any) -> Any:
    return value * (1 + 2**-52) if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _outputs_differ(cut: Cut, inputs: Arguments, where: str, row: Row, training: bool = False) -> Iterator[str]:
    """Complaints. Rounding, and choices that rest on it, may tell float32 outputs apart: then float64 decides.

    Unless the last digit of the inputs changes the outputs about as much: the row tells, as `rounding`.
    """
    name = "training_error" if training else "error"
    error = cut.difference(inputs, torch.float32, training)
    row[name] = error if math.isfinite(error) else None
    if error < TOLERANCE:
        return
    double = f"double_{name}"
    try:
        row[double] = cut.difference(inputs, torch.float64, training)
    except Exception as failure:  # constants of the code that are float32
        row[double] = None
        yield f"{where}: outputs differ by {error:.1e}; not to be had in float64 ({_one_line(failure)})"
        return
    if not row[double] < DOUBLE_TOLERANCE:
        if not training:
            row["rounding"] = cut.rounding(inputs)
            if row[double] < 10 * row["rounding"]:  # chaotic, so that there is nothing to be seen
                return
        yield f"{where}: outputs differ by {error:.1e}, in float64 by {row[double]:.1e}"


def _largest(a: Any, b: Any) -> float:
    try:
        return relative_difference(a, b)
    except AssertionError:  # of other shapes
        return math.inf


def _finite(out: Any) -> Any:
    """A comparison with what is not a number would always pass."""
    if not all(leaf.isfinite().all() for leaf in leaves(out)):
        raise FloatingPointError("the output is not finite")
    return out


def _costs_differ(wanted: tuple[int, int], found: tuple[int, int], where: str) -> Iterator[str]:
    for name, ours, theirs in zip(("MACs", "parameters"), wanted, found, strict=True):
        if ours != theirs:
            yield f"{where}: {ours:,} {name} predicted, {theirs:,} counted"


def _described(table: ChannelTable) -> Row:
    """What of a network can go, and why the rest can not."""
    pinned = Counter[str]()
    for line in table.pinned:
        pinned[f"{line.place.operator}: {_without_numbers(line.reason)}"] += line.count
    least = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        least[group.channels[: group.least]] = True
    return {
        "channels": table.channels,
        "groups": len(table.groups),
        "prunable_macs": 1 - table.macs.count(least) / max(table.macs.dense(), 1),
        "pinned_channels": pinned.total() / max(table.channels + pinned.total(), 1),
        "reasons": pinned.most_common(8),
    }


def _status(error: Exception, stage: str) -> str:
    if stage == "build":
        return "unavailable"
    frames = traceback.extract_tb(error.__traceback__)
    own = bool(frames) and ENGINE in Path(frames[-1].filename).resolve().parents
    return "refused" if isinstance(error, ValueError) and own else "crashed"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


# --- the table -------------------------------------------------------------------------------------------------------


def show(library: str, rows: dict[str, Row]) -> None:
    table = Table("network", "status", "MACs prunable", "channels pinned", "error", "trace s", "cut s", "GB", "why")
    for name, row in rows.items():
        cuts = row.get("cuts", [])
        errors = [cut["error"] for cut in cuts if cut.get("error") is not None]
        why = row.get("message") or ", ".join(reason for reason, _ in row.get("reasons", [])[:2])
        table.add_row(
            name,
            row["status"] if row["status"] == "held" else f"[red]{row['status']}",
            f"{100 * row['prunable_macs']:.1f} %" if "prunable_macs" in row else "",
            f"{100 * row['pinned_channels']:.1f} %" if "pinned_channels" in row else "",
            f"{max(errors):.1e}" if errors else "",
            f"{row['trace_seconds']:.2f}" if "trace_seconds" in row else "",
            f"{max(cut['compact_seconds'] for cut in cuts):.2f}" if cuts else "",
            f"{row['peak_gb']:.1f}",
            why[:200].replace("[", "\\["),
        )
    console = Console(width=180)
    console.print(table)
    for heading, counts in (("what fails", failures(rows)), ("what pins channels", pins(rows))):
        console.print(f"\n{heading}", highlight=False)
        for cause, names in counts:
            examples = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            console.print(f"{len(names):4}  {cause}  ({examples})", highlight=False, markup=False)
    print(f"\n{summary(library, rows)}")


def failures(rows: dict[str, Row]) -> list[tuple[str, list[str]]]:
    """Cause -> the networks that it stops, the most frequent cause first."""
    return _grouped(
        (f"{row['status']}: {row['message'].replace(row.get('class', ' '), 'the model')}", name)
        for name, row in rows.items()
        if "message" in row
    )


def pins(rows: dict[str, Row]) -> list[tuple[str, list[str]]]:
    """Operator and reason -> the networks in which it pins channels."""
    return _grouped((reason, name) for name, row in rows.items() for reason, _ in row.get("reasons", []))


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for cause, name in pairs:
        groups.setdefault(_without_numbers(cause)[:250], []).append(name)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*(e[-+]\d+)?", "#", text)


def summary(library: str, rows: dict[str, Row]) -> str:
    counts = Counter(row["status"] for row in rows.values())
    held = [row for row in rows.values() if row["status"] == "held"]
    enough = sum(row["prunable_macs"] >= ENOUGH for row in held)
    others = ", ".join(f"{status} {counts[status]}" for status in STATUSES[1:] if counts[status] or status == "wrong")
    total = max(len(rows), 1)
    return (
        f"{library}: held {len(held)} of {len(rows)} ({100 * len(held) / total:.1f} %); {enough} of them "
        f"({100 * enough / total:.1f} %) with {100 * ENOUGH:.0f} % or more of the MACs prunable; {others}"
    )


# --- the command -----------------------------------------------------------------------------------------------------


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--only", default="", help="regular expression: only networks whose name it matches")
    parser.add_argument("--failed", action="store_true", help="only what has not held yet, whatever the source code")
    parser.add_argument("--again", action="store_true", help="forget the rows that are already there")
    parser.add_argument("--show", action="store_true", help="print the table of the rows that are there, and end")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--limit-seconds", type=float, default=Limits.seconds, help="per trace, per compaction (60)")
    parser.add_argument("--limit-gb", type=float, default=Limits.gb, help="besides the network's own weights (4)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/coverage_<library>.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(1)
    output = options.output or RESULTS / f"coverage_{options.library}.json"
    rows: dict[str, Row] = {} if options.again or not output.exists() else json.loads(output.read_text())["networks"]
    now = engine()

    def wanted(network: Network) -> bool:
        row = rows.get(network.name, {})
        held = row.get("status") == "held"
        due = not held if options.failed else not held or row["engine"] != now
        return due and bool(re.search(options.only, network.name))

    limits = Limits(options.limit_seconds, options.limit_gb)
    every = [] if options.show else LIBRARIES[options.library]()
    todo = ((network.name, partial(examine, network)) for network in every if wanted(network))
    for name, row in rows_of(todo, limits, options.jobs):
        rows[name] = {**row, "engine": now}
        print(
            name, row["status"], row.get("message", f"{100 * row.get('prunable_macs', 0):.1f} % prunable"), flush=True
        )
        rows = dict(sorted(rows.items()))
        write_json(output, {"machine": machine(), "limits": vars(limits), "tolerance": TOLERANCE, "networks": rows})
    show(options.library, rows)
    if old := sum(row["engine"] != now for row in rows.values()):
        print(f"{old} of the rows were made by an hfp of other source code")


if __name__ == "__main__":
    main()
