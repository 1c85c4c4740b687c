"""How fast the channel table is made: `python benchmarks/speed.py peers` and `python benchmarks/speed.py scale`.

`peers`: a table and one compaction to half of the multiply-adds, against Torch-Pruning (`pip install torch-pruning`)
building its pruner and taking one step at a ratio of one half, in turns A B A B, for every network of torchvision.
`scale`: the time of `hfp.trace` against the number of operators, on models without weights, and its peak of memory. The
networks of a family take turns, and the fastest turn of each counts: what they take is tenths of a second.

All times are CPU seconds of one thread, so that a busy machine disturbs little. Every network has a process of its own,
which is ended when it takes too long or too much memory (Linux only). `--output FILE` writes the rows as JSON; those of
`peers` one by one, and where the file has rows of the same code and versions, it goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import engine, machine, write_json
from processes import in_a_process
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

import hfp
from hfp.cutting.surgery import compact
from hfp.methods.magnitude import relative_magnitude
from hfp.threshold import smallest, threshold

SHARE = 0.5  # of the multiply-adds for hfp; of the channels for Torch-Pruning, which knows no other target
PATIENCE = 30.0  # CPU seconds spent on a network after which no further round begins
FAMILIES = {
    "resnet": "resnet18 resnet34 resnet50 resnet101 resnet152",
    "densenet": "densenet121 densenet169 densenet201",
    "vit": "vit_b_16 vit_l_16 vit_h_14",
    "regnet_y": "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
    "regnet_y_128gf",
}

Parts = dict[str, float]
"""What was timed -> CPU seconds."""


@dataclass(frozen=True)
class Network:
    """A torchvision network by its name, and what it takes."""

    name: str
    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 224, 224),)
    classes: int = 1000

    def build(self) -> nn.Module:
        import torchvision.models as zoo

        options: dict[str, Any] = {"init_weights": False} if self.name in ("googlenet", "inception_v3") else {}
        if self.classes in (21, 91):
            options["weights_backbone"] = None
        return zoo.get_model(self.name, weights=None, **options).eval()

    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(torch.rand(shape) for shape in self.shapes)


OTHER_SIZES = {  # of the networks that do not run at the size of their kind
    "inception_v3": ((1, 3, 299, 299),),
    "mvit_v1_b": ((1, 3, 16, 224, 224),),
    "mvit_v2_s": ((1, 3, 16, 224, 224),),
    "s3d": ((1, 3, 16, 224, 224),),
}


def torchvision_networks() -> Iterator[Network]:
    """All of torchvision but the quantized ones."""
    import torchvision.models as zoo

    image, clip, flow = ((1, 3, 224, 224),), ((1, 3, 16, 112, 112),), ((1, 3, 128, 128),) * 2
    kinds = [(zoo, image, 1000), (zoo.segmentation, image, 21), (zoo.detection, image, 91)]
    for module, shapes, classes in [*kinds, (zoo.video, clip, 400), (zoo.optical_flow, flow, 0)]:
        for name in sorted(zoo.list_models(module=module)):
            yield Network(name, OTHER_SIZES.get(name, shapes), classes)


# Against Torch-Pruning


def hfp_parts(network: Network, model: nn.Module) -> Parts:
    """Trace, choose the channels by magnitude, compact."""
    inputs = network.inputs()
    clock = [time.process_time()]
    table = hfp.trace(model, inputs)
    clock.append(time.process_time())
    most = max(int(SHARE * table.macs.dense()), smallest(table, table.macs))
    keep = threshold(relative_magnitude(model, table), table, [(table.macs, most)])
    clock.append(time.process_time())
    small = compact(model, table, keep)
    clock.append(time.process_time())
    _check(model, small, inputs)
    return dict(zip(("trace", "keep", "compact"), _steps(clock), strict=True))


def torch_pruning_parts(network: Network, model: nn.Module) -> Parts:
    """Build a pruner, take its step. It gets the hints that its own examples give it, before the clock starts."""
    import torch_pruning as tp

    inputs, options = network.inputs(), peer_options(network, model)
    dense = copy.deepcopy(model)
    clock = [time.process_time()]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=inputs[0] if len(inputs) == 1 else inputs,
        importance=tp.importance.MagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=SHARE,
        **options,
    )
    clock.append(time.process_time())
    pruner.step()
    clock.append(time.process_time())
    if hasattr(model, "conv_proj") and hasattr(model, "hidden_dim"):
        model.hidden_dim = model.conv_proj.out_channels  # a vision transformer reshapes to it
    _check(dense, model, inputs)
    return dict(zip(("construct", "step"), _steps(clock), strict=True))


def peer_options(network: Network, model: nn.Module) -> dict[str, Any]:
    """The layers that make the outputs stay whole; the heads of attentions are told."""
    ignored, heads = [], {}
    for name, module in model.named_modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if width == network.classes or name in ("head", "rpn.head", "roi_heads"):
            ignored.append(module)
        if isinstance(module, nn.MultiheadAttention):
            heads[module] = module.num_heads
        elif isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads
    return {"ignored_layers": ignored, "num_heads": heads}


def _check(dense: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A result counts if it is smaller and runs; whether it is right is for benchmarks/coverage.py to say."""
    before, after = (sum(p.numel() for p in model.parameters()) for model in (dense, small))
    assert after < before, "nothing was removed"
    with torch.no_grad():
        small(*inputs)


def _steps(clock: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(clock, clock[1:], strict=False)]


CONTESTANTS: dict[str, Callable[[Network, nn.Module], Parts]] = {"hfp": hfp_parts, "peer": torch_pruning_parts}


def in_turns(send: Callable[[Any], None], network: Network, rounds: int) -> None:
    """Sends (contestant, its parts, or what it failed with) for each turn of each round."""
    warm_up()
    model, failed, start = network.build(), set(), time.process_time()
    for _ in range(rounds):
        for name, contestant in CONTESTANTS.items():
            if name in failed:
                continue
            try:
                send((name, contestant(network, copy.deepcopy(model))))
            except Exception as error:  # a row of the table: this benchmark reports what does not work
                failed.add(name)
                send((name, _named(error)))
        if time.process_time() - start > PATIENCE:
            return


def warm_up() -> None:
    """What a library does once in a process, such as late imports, is not what is measured."""
    layers = (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 4))
    network = Network("a small one", ((1, 3, 2, 2),), 4)
    for contestant in CONTESTANTS.values():
        try:
            contestant(network, nn.Sequential(*copy.deepcopy(layers), nn.Linear(4, 4)))
        except Exception:  # a library that is not there, or cannot do even this, says so in the first row
            continue


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def row_of(network: Network, messages: Iterator[tuple[str, Parts | str]]) -> dict[str, Any]:
    """One row: the medians of the parts of each contestant, or its failure, and the median ratio of neighbours."""
    row: dict[str, Any] = {"shapes": network.shapes}
    parts: dict[str, list[Parts]] = {name: [] for name in CONTESTANTS}
    turn = "hfp"  # whose turn it is: who hangs sends nothing
    try:
        for name, result in messages:
            if isinstance(result, str):
                row[f"{name}_failed"] = result
            else:
                parts[name].append(result)
            turn = "peer" if name == "hfp" and "peer_failed" not in row else "hfp"
    except (TimeoutError, ChildProcessError) as error:
        if not parts[turn]:
            row[f"{turn}_failed"] = _named(error)
    for name, each in parts.items():
        if each:
            row[f"{name}_parts"] = {part: statistics.median(one[part] for one in each) for part in each[0]}
            row[f"{name}_seconds"] = statistics.median(sum(one.values()) for one in each)
    if all(parts.values()):
        pairs = zip(parts["hfp"], parts["peer"], strict=False)
        row["ratio"] = statistics.median(sum(b.values()) / sum(a.values()) for a, b in pairs)
    return row | {"rounds": len(parts["hfp"])}


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """The figures over all networks that Torch-Pruning can do; where hfp fails on one, its ratio is 0."""
    ratios = {name: row.get("ratio", 0.0) for name, row in rows.items() if "peer_seconds" in row}
    return {
        "networks": len(rows),
        "hfp_can": sum("hfp_seconds" in row for row in rows.values()),
        "peer_can": len(ratios),
        "as_fast_or_faster": sum(ratio >= 1 for ratio in ratios.values()),
        "median_ratio": statistics.median(ratios.values()) if ratios else None,
        "densenet201_ratio": ratios.get("densenet201"),
        "slowest": dict(sorted(ratios.items(), key=lambda item: item[1])[:8]),
    }


def show_peers(rows: dict[str, Any], figures: dict[str, Any]) -> None:
    table = Table("network", "trace", "keep", "compact", "hfp s", "construct", "step", "peer s", "ratio")
    for name, row in rows.items():
        cells = []
        for contestant, names in (("hfp", ("trace", "keep", "compact")), ("peer", ("construct", "step"))):
            if f"{contestant}_seconds" in row:
                cells += [f"{row[f'{contestant}_parts'][part]:.2f}" for part in names]
                cells += [f"{row[f'{contestant}_seconds']:.2f}"]
            else:
                cells += ["-"] * len(names) + [f"[red]{row[f'{contestant}_failed'][:40]}"]
        table.add_row(name, *cells, f"{row['ratio']:.2f}" if "ratio" in row else "-")
    Console(width=150).print(table)
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{network} {ratio:.2f}" for network, ratio in value.items())
        print(f"{name.replace('_', ' ')}: {f'{value:.2f}' if isinstance(value, float) else value}")


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Row by row, each saved as soon as it is there; goes on from rows that the same code and versions have made."""
    versions = {name: _version(name) for name in ("torch", "torchvision", "torch_pruning")}
    made_by = {"engine": engine(), "versions": versions, "rounds": options.rounds}
    known = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    rows: dict[str, Any] = known["networks"] if all(known.get(key) == made_by[key] for key in made_by) else {}
    limits = {"limit": options.limit, "memory": options.memory}
    for network in torchvision_networks():
        if network.name not in rows and re.search(options.only, network.name):
            rows[network.name] = row_of(network, in_a_process(in_turns, network, options.rounds, **limits))
            print(network.name, rows[network.name], flush=True)
            save(options.output, {**made_by, "summary": summary(rows), "networks": rows})
    show_peers(rows, summary(rows))
    return {**made_by, "summary": summary(rows), "networks": rows}


def save(output: Path | None, result: dict[str, Any]) -> None:
    if output:
        write_json(output, {"machine": machine(), **result})


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# How time and memory grow


def without_weights(network: Network) -> nn.Module:
    """The network on the meta device; no weight is ever filled, so that the largest ones take no time and no memory."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return parameter if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        return network.build().to("meta")
    finally:
        handle.remove()


class _Operators(TorchDispatchMode):
    """Counts the operators that run inside it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measured(send: Callable[[Any], None], network: Network) -> None:
    """Sends one row: operators of a forward, bytes of the model, and the peak of memory of a trace."""
    warm_up()
    model, inputs = without_weights(network), _on_meta(network)
    with torch.no_grad(), _Operators() as operators:
        model(*inputs)
    peak, _ = peak_memory(lambda: hfp.trace(model, inputs))
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    send({"operators": operators.count, "bytes": size, "peak_bytes": peak})


def timed(send: Callable[[Any], None], networks: Sequence[Network], rounds: int) -> None:
    """Sends (name, CPU seconds of a trace), one network after the other, again and again."""
    warm_up()
    built = [(network.name, without_weights(network), _on_meta(network)) for network in networks]
    for _ in range(rounds):
        for name, model, inputs in built:
            start = time.process_time()
            hfp.trace(model, inputs)
            send((name, time.process_time() - start))


def _on_meta(network: Network) -> tuple[Tensor, ...]:
    return tuple(x.to("meta") for x in network.inputs())


def peak_memory(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """By how many bytes the memory of this process grew at most while `work` ran (Linux only), and what it gave.

    What an earlier allocation left in the heap is used again without growth: measure in a new process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _status("VmRSS")
    except OSError:
        return None, work()
    result = work()
    return _status("VmHWM") - before, result


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The p of time = c * size**p: the least-squares slope of log(times) over log(sizes); 1 is linear growth."""
    logs = [torch.tensor(values, dtype=torch.float64).log().tolist() for values in (sizes, times)]
    return statistics.linear_regression(*logs).slope


def scale(options: argparse.Namespace) -> dict[str, Any]:
    families: dict[str, Any] = {}
    limits = {"limit": options.limit, "memory": options.memory}
    for family, names in FAMILIES.items():
        rows: dict[str, dict[str, Any]] = {}
        networks = [Network(name) for name in names.split() if re.search(options.only, name)]
        try:
            for network in networks:
                (rows[network.name],) = in_a_process(measured, network, **limits)
            for name, seconds in in_a_process(timed, networks, options.rounds, **limits):
                rows[name]["seconds"] = min(seconds, rows[name].get("seconds", seconds))
        except (TimeoutError, ChildProcessError) as error:
            print(family, _named(error), flush=True)
            continue
        if len(rows) > 1:
            slope = exponent([row["operators"] for row in rows.values()], [row["seconds"] for row in rows.values()])
            families[family] = {"exponent": slope, "networks": rows}
    show_scale(families)
    return {"versions": {"torchvision": _version("torchvision")}, "rounds": options.rounds, "families": families}


def show_scale(families: dict[str, Any]) -> None:
    table = Table("network", "operators", "trace s", "ms / operator", "model MB", "peak above it MB")
    for family in families.values():
        for name, row in family["networks"].items():
            each = 1e3 * row["seconds"] / row["operators"]
            peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
            cells = (str(row["operators"]), f"{row['seconds']:.2f}", f"{each:.2f}", f"{row['bytes'] / 1e6:.0f}", peak)
            table.add_row(name, *cells)
        table.add_section()
    Console(width=120).print(table)
    for name, family in families.items():
        print(f"{name}: the time to trace grows as operators ** {family['exponent']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("peers", "scale"))
    parser.add_argument("--only", default="", help="regular expression: only networks whose name it matches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120, help="CPU seconds for one turn of one network")
    parser.add_argument("--memory", type=float, default=10, help="GiB for one network")
    parser.add_argument("--output", type=Path, help="a JSON file, such as benchmarks/results/speed_peers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = peers(options) if options.what == "peers" else scale(options)
    save(options.output, result)


if __name__ == "__main__":
    main()
