"""`python -m hfp.compact CHECKPOINT --output SMALL`: a compact network from a checkpoint, at any moment of a run.

    python -m hfp.compact runs/a/checkpoint.safetensors --output small.safetensors

Run it in the checkout, where the package `models` is: the network is built again by `models.build` with the arguments
that the checkpoint records. Those are data: only names that `models` itself lists and values of the right kind are
taken, and nothing that a file names is imported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from hfp import checkpoint, report, surgery
from hfp.experiment import loop
from hfp.experiment.run import PHASES
from hfp.inputs import arguments
from hfp.ptflops_check import measured
from hfp.verify import Disagreement
from hfp.wrap import GatedModel, wrap

TOLERANCE = 1e-5  # relative, in float32: gated and compact networks add up the same products in another order

BUILD = {
    "name": (str,),
    "num_classes": (int,),
    "image_size": (int, None),
    "in_channels": (int, None),
    "shortcut": (str, None),
}
WRAP = {
    "target_macs": (float, int, None),
    "target_params": (float, int, None),
    "ignore": (list,),
    "round_to": (int,),
    "counter": (str,),
    "method": (str,),
    "steps": (int,),
}
LARGEST = 10**6  # of any integer in BUILD: a file must not make us allocate without bound

WHERE = {
    "dense": "pruning has not begun, the gates have learnt nothing: channels are removed by untrained scores",
    "prune": "pruning: the gates as they are now, cut to the target (with an accuracy floor: where they stand)",
    "finetune": "compacted, fine-tuning",
    "control": "compacted and fine-tuned, training the control",
}


@dataclass(frozen=True)
class Outcome:
    """A compact network, and what it is compared with."""

    phase: str
    epoch: int
    dense: nn.Module
    gated: GatedModel | None
    """The gated network with the same channels live; None once the run has left it behind."""
    small: nn.Module


def compact(path: str | Path) -> Outcome:
    """The compact network of the training checkpoint `path`, with what it came from.

    Raises:
        ValueError: the file is damaged, not a checkpoint of train.py, or asks for what `models` does not have.
    """
    state = checkpoint.load_training(path)
    if state.get("phase") not in PHASES or not isinstance(state.get("net"), dict):
        raise ValueError(f"{path} is not a checkpoint of train.py: it names no phase of a run and no network.")
    phase, epoch = state["phase"], state.get("epoch", 0)
    dense = dense_network(state, path)
    if phase in ("finetune", "control"):
        record = checkpoint.record_from_json(state.get("record"), source=str(path))
        small = checkpoint.rebuild(dense, record, source=str(path))
        checkpoint.fill(small, state["net"] if phase == "finetune" else state.get("small") or {}, source=str(path))
        return Outcome(phase, epoch, dense, None, small.eval())
    options = checked(state.get("wrap"), WRAP, path, "wrap")
    if phase == "dense":
        checkpoint.fill(dense, state["net"], source=str(path))
    try:
        gated = wrap(dense, **options)
    except ValueError as error:
        raise ValueError(f"{path} was made with settings that this hfp does not take: {error}") from error
    if phase == "prune":
        checkpoint.fill(gated, state["net"], source=str(path))
        config = state.get("config")
        if isinstance(config, dict) and config.get("accuracy_floor") is not None:
            gated.stop()  # there, the target is only the end of the road
    small = gated.eval().compact()
    gated.keep.copy_(checkpoint.record_of(small).keep)
    return Outcome(phase, epoch, dense, gated, small.eval())


def dense_network(state: Mapping[str, Any], path: str | Path) -> nn.Module:
    """The dense network that a checkpoint was made from, with fresh weights."""
    try:
        import models
    except ImportError as error:
        raise ValueError(
            "The package `models` is not here. Run `python -m hfp.compact` in the checkout that train.py was run in."
        ) from error
    options = checked(state.get("build"), BUILD, path, "build")
    if any(isinstance(value, int) and not 0 < value <= LARGEST for value in options.values()):
        raise ValueError(f"{path} asks for a network of an impossible size: {options}.")
    return models.build(**options)  # takes only names that it lists itself


def checked(options: Any, kinds: Mapping[str, tuple[type | None, ...]], path: str | Path, what: str) -> dict[str, Any]:
    """`options` if it has exactly the keys of `kinds`, each with a value of one of its kinds (a bool is no int)."""
    if not isinstance(options, dict) or options.keys() != kinds.keys():
        raise ValueError(
            f"{path} does not say how its network is made: its entry {what!r} should have {', '.join(kinds)}."
        )
    for name, value in options.items():
        if (None if value is None else type(value)) not in kinds[name]:
            raise ValueError(f"{path} has {name}={value!r} in its entry {what!r}, which is of the wrong kind.")
    if not all(isinstance(pattern, str) for pattern in options.get("ignore", ())):
        raise ValueError(f"{path} has something other than names in its list of ignored modules.")
    return dict(options)


def gate_difference(outcome: Outcome) -> float | None:
    """How far the gated network's outputs are from the compact one's, relative; None if there is no gated network.

    Raises:
        ValueError: too far.
    """
    if outcome.gated is None:
        return None
    error = surgery.difference(outcome.gated.eval(), outcome.small, arguments(outcome.dense))
    if not error <= TOLERANCE:
        raise ValueError(
            f"The compact network differs from the gated one by {error:.1e} (relative); nothing was written."
        )
    return error


def write(outcome: Outcome, output: Path) -> None:
    """Write the compact network to `output` and read it back.

    Raises:
        ValueError: what was read back computes something else.
        OSError: the disk is full, or the folder cannot be written.
    """
    checkpoint.save(outcome.small, output)
    loaded = checkpoint.load(output, outcome.dense).eval()
    error = surgery.difference(outcome.small, loaded, arguments(outcome.dense))
    if error:
        raise ValueError(f"{output} does not hold what was written to it: outputs differ by {error:.1e} (relative).")


def before_and_after(outcome: Outcome, output: Path) -> Table:
    """Parameters, multiply-adds, file size and latency of the dense and the compact network."""
    dense, small = outcome.dense, outcome.small
    input_size = tuple(dense.input_size)  # type: ignore[arg-type]
    image = torch.zeros(1, *input_size)
    speed = loop.latency({"dense": dense, "small": small}, image)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_weights(dense, Path(folder) / "dense")
        dense_size = (Path(folder) / "dense").stat().st_size
    rows = {
        "parameters": (report.count_params(dense), report.count_params(small)),
        "MACs": (report.count_macs(dense, input_size), report.count_macs(small, input_size)),
        "MACs, as ptflops counts": tuple(measured(net, ((image,), {})) for net in (dense, small)),
        "file, bytes": (dense_size, output.stat().st_size),
        "CPU latency, ms": (speed["dense"], speed["small"]),
    }
    table = Table()
    for heading in ("", "dense", "compact", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, (before, after) in rows.items():
        form = "{:.3f}" if isinstance(before, float) else "{:,}"
        table.add_row(name, form.format(before), form.format(after), f"{after / before:.4f}")
    return table


def against_gates(error: float | None) -> str:
    return "" if error is None else f"; its outputs and the gated network's differ by {error:.1e} (relative)"


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the file could not be written, 2 a checkpoint that cannot be compacted."""
    parser = argparse.ArgumentParser(
        prog="python -m hfp.compact",
        description="Make a compact network of a training checkpoint of train.py, taken at any moment of a run.",
        epilog="Read the file with hfp.load(SMALL, model), where model is the dense network from its own constructor.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.safetensors of a run folder")
    parser.add_argument("--output", type=Path, required=True, metavar="SMALL", help="the file to write, .safetensors")
    given = parser.parse_args(argv)
    try:
        if given.output.resolve() == given.checkpoint.resolve():
            raise ValueError(f"--output {given.output} is the checkpoint itself; give another name.")
        outcome = compact(given.checkpoint)
        print(f"{given.checkpoint}: phase {outcome.phase!r}, {outcome.epoch} epochs done; {WHERE[outcome.phase]}")
        error = gate_difference(outcome)
        write(outcome, given.output)
        print(f"{given.output}: written and read back" + against_gates(error))
    except (ValueError, Disagreement) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {given.output} could not be written: {error}", file=sys.stderr)
        return 1
    report.console().print(before_and_after(outcome, given.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
