"""What pruning gains where networks are run: `python benchmarks/deployment.py`. Writes deployment.json.

Ten networks are cut to 0.4 of their multiply-adds by the code of `python -m hfp.compact --round-to auto`, and timed
beside the dense ones: PyTorch eager, also in channels_last, torch.compile and onnxruntime, at batch 1 and 8. An ideal
processor would be 1 / 0.4 = 2.5 times as fast. The compact network also has to compute the same in every other form
that networks are deployed in. Widths decide latency, values do not: weights are random, and cut evenly ("uniform",
which leaves widths as odd as training does), except where --weights gives those of resnet56, which `pag` then judges.

Dense and compact take turns; a speed-up is the median over the turns. Times are processor time of one thread, which
what else runs on the machine disturbs little; speed-ups by the clock on the wall are in the JSON beside them. What is
in the file is not measured again, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import random
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, engine, machine, write_json
from processes import Row
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hfp import catalogue, checkpoint, compact, program
from hfp.deploy import formats
from hfp.deploy.origin import Outcome
from hfp.model import outputs

NETWORKS = (
    "resnet50", "vgg16_bn", "resnet18", "mobilenet_v2", "densenet121",
    "regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "vit_b_16", "resnet56",
)  # fmt: skip
"""Wide convolutions, depthwise ones, concatenations, squeeze and excitation, LayerNorm, attention; and one small
network with narrow layers, of which trained weights are at hand."""
TARGET = 0.4
IDEAL = 1 / TARGET
BATCHES = (1, 8)
CLOSE = {"export": 1e-5, "onnx": 1e-4, "compile": 1e-4, "channels_last": 1e-4, "bf16": 0.1, "int8": 0.2}
"""How far outputs may be from the compact network's in float32, relative to the largest."""
LESS_THAN_DENSE = 2.0
"""Fewer bits cost accuracy whatever the network; the compact one may lose so many times what the dense one does."""


@dataclass(frozen=True)
class Case:
    """A network of the table, cut."""

    outcome: Outcome
    seconds: float
    """For each measurement, unless the least number of turns takes longer."""
    folder: Path
    """For what is written on the way."""

    @property
    def nets(self) -> dict[str, nn.Module]:
        return {"dense": self.outcome.dense.eval(), "compact": self.outcome.small.eval()}

    @functools.cached_property
    def onnx_files(self) -> dict[str, Path]:
        found = {name: self.folder / f"{name}.onnx" for name in self.nets}
        for name, net in self.nets.items():
            formats.write_onnx(program.exported(copy.deepcopy(net), self.outcome.inputs), found[name])
        return found

    def images(self, batch: int) -> Tensor:
        ((example,), _) = self.outcome.inputs
        return torch.rand(batch, *example.shape[1:], generator=torch.Generator().manual_seed(0))


def cut(name: str, weights: Path | None, rounding: str) -> tuple[Outcome, Row]:
    """What `python -m hfp.compact WEIGHTS --model NAME --target-macs 0.4 --round-to auto` makes, and its widths."""
    with tempfile.TemporaryDirectory() as folder:
        source = weights
        if source is None:
            torch.manual_seed(0)
            source = Path(folder) / "random.safetensors"
            checkpoint.save_weights(alive(catalogue.build(name).model), source)
        method = "uniform" if weights is None else "pag"
        command = [source, "--model", name, "--target-macs", TARGET, "--method", method, "--round-to", rounding]
        outcome, said = compact.made(compact.parser().parse_args([*map(str, command), "--output", folder]))
    record = checkpoint.record_of(outcome.small)
    widths = checkpoint.widths(outcome.small)
    return outcome, {
        "weights": "random" if weights is None else weights.name,
        "method": method,
        "rounding": said,
        "macs_share": record.macs / record.dense_macs,
        "params_share": record.params / record.dense_params,
        "widths": list(widths.values()),
    }


def alive(model: nn.Module) -> nn.Module:
    """Without layers of zeros (the head of a ViT before it is trained): outputs of zeros are equal in every form."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return model


# --- how fast --------------------------------------------------------------------------------------------------------


def side_by_side(work: dict[str, Callable[[], Any]], seconds: float, least: int = 5) -> Row:
    """Medians over turns in which dense and compact follow each other, in either order."""
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    begin, order = time.perf_counter(), random.Random(0)
    while len(cpu["dense"]) < least or time.perf_counter() - begin < seconds:
        for name in order.sample(sorted(work), len(work)):
            clocks = time.process_time(), time.perf_counter()
            work[name]()
            cpu[name].append(1e3 * (time.process_time() - clocks[0]))
            wall[name].append(1e3 * (time.perf_counter() - clocks[1]))
    return {
        **{f"{name}_ms": statistics.median(times) for name, times in cpu.items()},
        "speedup": ratio(cpu),
        "wall_speedup": statistics.median(wall["dense"]) / statistics.median(wall["compact"]),
        "turns": len(cpu["dense"]),
    }


def ratio(times: dict[str, list[float]]) -> float:
    """How many times as fast the compact network is: the median over turns.

    >>> ratio({"dense": [2.0, 8.0, 2.0], "compact": [1.0, 4.0, 2.0]})
    2.0
    """
    return statistics.median(a / b for a, b in zip(times["dense"], times["compact"], strict=True))


def eager(net: nn.Module, x: Tensor, _: Path) -> Callable[[], Any]:
    return lambda: net(x)


def channels_last(net: nn.Module, x: Tensor, _: Path) -> Callable[[], Any]:
    there = copy.deepcopy(net).to(memory_format=torch.channels_last)
    given = x.contiguous(memory_format=torch.channels_last)
    return lambda: there(given)


def compiled(net: nn.Module, x: Tensor, _: Path) -> Callable[[], Any]:
    made = torch.compile(net, fullgraph=True, dynamic=False)
    return lambda: made(x)


def in_onnxruntime(_: nn.Module, x: Tensor, path: Path) -> Callable[[], Any]:
    run = formats.session(path)
    return lambda: run(x)


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Path], Callable[[], Any]]] = {
    "eager": eager,
    "channels_last": channels_last,
    "onnxruntime": in_onnxruntime,
    "compile": compiled,
}


def speeds(case: Case, runtime: str) -> Row:
    """Of one runtime, at every batch size."""
    files = case.onnx_files if runtime == "onnxruntime" else {}
    torch.compiler.reset()
    found: Row = {}
    for batch in BATCHES:
        x = case.images(batch)
        work = {name: RUNTIMES[runtime](net, x, files.get(name, case.folder)) for name, net in case.nets.items()}
        found[str(batch)] = side_by_side(work, case.seconds)
        if runtime == "compile":
            error = distance(case.nets["compact"], lambda _, run=work["compact"]: run(), x)  # type: ignore[misc]
            found["error"] = max(found.get("error", 0.0), error)
    return found


# --- whether it is the same ------------------------------------------------------------------------------------------


def distance(net: nn.Module, other: Callable[[Tensor], Any], x: Tensor) -> float:
    """The largest difference of outputs, relative to the largest of `net`."""
    if not bool(net(x).any()):
        raise ValueError("all outputs are zero, and equal whatever is done to the network")
    return outputs.difference(net, other, ((x,), {}), as_given=True)


def checks(case: Case) -> Row:
    """Errors of the compact network in every form, {"error": ...}; with fewer bits those of the dense one, too."""
    small, x = case.nets["compact"], case.images(3)
    exported = program.exported(copy.deepcopy(small), case.outcome.inputs)
    found: Row = {"export": {"error": distance(small, exported.module(), x), "any_batch": program.any_batch(exported)}}
    found["channels_last"] = {"error": distance(small, lambda x: channels_last(small, x, Path())(), x)}
    found["bf16"] = {name: distance(net, in_bf16(net), x) for name, net in case.nets.items()}
    files = case.onnx_files
    found["onnx"] = {"error": distance(small, formats.session(files["compact"]), x)}
    found["onnx"] |= {f"{name}_bytes": path.stat().st_size for name, path in files.items()}
    found["int8"] = {name: distance(net, formats.session(in_int8(files[name])), x) for name, net in case.nets.items()}
    return found


def in_bf16(net: nn.Module) -> Callable[[Tensor], Tensor]:
    rounded = copy.deepcopy(net).bfloat16()
    return lambda x: rounded(x.bfloat16()).float()


def in_int8(path: Path) -> Path:
    """Weights, and what meets them, in 8 bits, by onnxruntime's dynamic quantisation; a weight's scale per channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[
        :
    ]  # shapes that the exporter notes down, and onnxruntime transposes weights without them
    small = path.with_suffix(".int8.onnx")
    quantize_dynamic(model, small, weight_type=QuantType.QUInt8, per_channel=True)
    return small


def passed(row: Row) -> dict[str, bool | None]:
    """Form -> whether the compact network computes the same in it; None where that was not tried.

    >>> passed({"checks": {"bf16": {"dense": 0.01, "compact": 0.015}}, "compile": {"error": 1e-3}})["bf16"]
    True
    """
    found: dict[str, bool | None] = {}
    for form, close in CLOSE.items():
        entry = row.get(form) if form == "compile" else row.get("checks", {}).get(form)
        if entry is None:
            found[form] = None
        elif "failed" in entry:
            found[form] = False
        elif "dense" in entry:
            found[form] = entry["compact"] <= max(close, LESS_THAN_DENSE * entry["dense"])
        else:
            found[form] = entry["error"] <= close
    return found


# --- the table -------------------------------------------------------------------------------------------------------


HEADINGS = ("network", "widths in multiples of", "parameters", *RUNTIMES, "share of 2.5, eager, batch 8")


def speed_cells(rows: dict[str, Row]) -> list[tuple[str, ...]]:
    """A line for each network under HEADINGS: how many times as fast at batch 1 and at batch 8; "-": not measured."""
    lines = []
    for name, row in rows.items():
        speeds = {
            runtime: [row.get(runtime, {}).get(str(batch), {}).get("speedup") for batch in BATCHES]
            for runtime in RUNTIMES
        }
        texts = ["-" if None in pair else " / ".join(f"{speed:.2f}" for speed in pair) for pair in speeds.values()]
        last = speeds["eager"][-1]
        reached = "-" if last is None else f"{100 * last / IDEAL:.0f} %"
        lines.append((name, str(row["rounding"]["chosen"]), f"{row['params_share']:.3f}", *texts, reached))
    return lines


def markdown(rows: dict[str, Row]) -> str:
    """The table of speeds as the README has it."""
    lines = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *speed_cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speed_table(rows: dict[str, Row]) -> Table:
    table = Table(*HEADINGS, title="times as fast, at batch 1 / 8")
    for line in speed_cells(rows):
        table.add_row(*line)
    return table


def check_table(rows: dict[str, Row]) -> Table:
    table = Table("network", *CLOSE, "ONNX bytes", title="relative errors of the compact network; (dense)")
    for name, row in rows.items():
        cells, fine = [], passed(row)
        for form in CLOSE:
            entry = row.get(form, {}) if form == "compile" else row.get("checks", {}).get(form, {})
            error = entry.get("error", entry.get("compact"))
            text = "-" if error is None else f"{error:.0e}" + (f" ({entry['dense']:.0e})" if "dense" in entry else "")
            cells.append(f"[red]{text}" if fine[form] is False else text)
        onnx = row.get("checks", {}).get("onnx", {})
        share = onnx["compact_bytes"] / onnx["dense_bytes"] if "dense_bytes" in onnx else None
        table.add_row(name, *cells, "-" if share is None else f"{share:.3f}")
    return table


# --- all of it -------------------------------------------------------------------------------------------------------

STAGES = ("checks", *RUNTIMES)


@torch.no_grad()
def examine(name: str, row: Row, stages: list[str], options: argparse.Namespace, save: Callable[[Row], None]) -> None:
    """Do those `stages` of a row that it lacks, and save it after each."""
    missing = [stage for stage in stages if stage not in row or "failed" in row[stage]]
    if not missing:
        return
    known = row.get("rounding")
    weights = options.weights if name == "resnet56" else None
    outcome, found = cut(name, weights, str(known["chosen"]) if known else "auto")
    row.update(found | {"rounding": known or found["rounding"], "engine": engine()})
    save(row)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(outcome, options.seconds, Path(folder))
        for stage in missing:
            start = time.perf_counter()
            try:
                row[stage] = checks(case) if stage == "checks" else speeds(case, stage)
            except Exception as error:  # a cell of the table: this benchmark reports what does not work
                row[stage] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            print(f"{name}: {stage}, {time.perf_counter() - start:.0f} s: {json.dumps(row[stage])[:200]}", flush=True)
            save(row)


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: only networks whose name it matches")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--weights", type=Path, help="trained weights of resnet56, of CIFAR-10")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-only", action="store_true", help="print what is in the file, for the README too")
    parser.add_argument("--output", type=Path, default=RESULTS / "deployment.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of exporters and of quantisation, about themselves
    logging.disable(logging.WARNING)
    rows: dict[str, Row] = json.loads(options.output.read_text())["rows"] if options.output.exists() else {}
    about = {"target": TARGET, "seed": 0, "machine": machine(), "versions": versions()}

    for name in NETWORKS:
        if re.search(options.only, name) and not options.report_only:

            def save(row: Row, name: str = name) -> None:
                rows[name] = row
                ordered = {each: rows[each] for each in NETWORKS if each in rows}
                write_json(options.output, about | {"rows": ordered})

            examine(name, rows.get(name, {}), list(options.stages), options, save)
    Console(width=150).print(speed_table(rows), check_table(rows))
    if options.report_only:
        print(markdown(rows))
    raise SystemExit(any(fine is False for row in rows.values() for fine in passed(row).values()))


if __name__ == "__main__":
    main()
