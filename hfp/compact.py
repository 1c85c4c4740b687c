"""`python -m hfp.compact CHECKPOINT --output SMALL`: a small deployable file from any checkpoint, theirs or ours.

    python -m hfp.compact resnet56.th --model resnet56 --target-macs 0.4 --output small.safetensors

CHECKPOINT is a training checkpoint of train.py at any moment of a run, a compact file of ours, or anybody's dense
weights, to which a method that needs no training is applied. What comes out computes what the gated network does, or
nothing is written. Where a network comes from is in `hfp.deploy.origin`, what it is written as in `hfp.deploy.formats`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfp import report
from hfp.deploy import comparison, formats, rounding
from hfp.deploy.origin import ONE_SHOT, USUAL, Outcome, Wanted, compact
from hfp.experiment.options import amount, whole
from hfp.files import flush_folder
from hfp.inspect import shape_and_dtype
from hfp.proof.verify import Disagreement

TOLERANCE = 1e-5  # relative, in float32: gated and compact networks add up the same products in another order
AUTO = "auto"
HOW_TO_READ = {
    "safetensors": "; hfp.load(path, model) reads it, with the dense model from its constructor",
    "pt2": "; hfp.load(path, trusted=True) reads it",
}
EXAMPLES = """\
examples:
  python -m hfp.compact runs/a/checkpoint.safetensors --output small.safetensors
  python -m hfp.compact resnet56.th --model resnet56 --target-macs 0.4 --output small --format safetensors,pt2
  python -m hfp.compact r50.pth --model resnet50 --target-macs 0.4 --round-to auto --output small.onnx
  python -m hfp.compact small.safetensors --target-macs 0.3 --dry-run --output smaller.safetensors

Read what was written with hfp.load("small.safetensors", model), where model is the dense network from its own
constructor, or hfp.load("small.pt2", trusted=True), which needs none.
"""


def made(given: argparse.Namespace) -> tuple[Outcome, dict[str, Any] | None]:
    """The compact network that the command line asks for, and what was measured to choose its rounding.

    Raises:
        ValueError: it cannot be made, or computes something else than the gated network.
    """
    wanted = Wanted(
        model=given.model,
        num_classes=given.num_classes,
        shapes=given.input_shape,
        target_macs=given.target_macs,
        target_params=given.target_params,
        round_to=None if given.round_to == AUTO else given.round_to,
        method=given.method,
        ignore=tuple(given.ignore),
        use_ema=given.use_ema,
        seed=given.seed,
    )
    if given.round_to != AUTO:
        return compact(given.checkpoint, wanted), None

    def cut(size: int) -> Outcome:
        return compact(given.checkpoint, dataclasses.replace(wanted, round_to=size))

    return rounding.choose(cut, given.batch, lambda outcome: formats.runs(outcome, wanted_formats(given)), progress)


def wanted_formats(given: argparse.Namespace) -> list[str]:
    return given.format or [formats.of_suffix(given.output)]


def progress(line: str) -> None:
    """What is being done, on a terminal: JSON and files get none of it."""
    if sys.stderr.isatty():
        print(f"{line} ...", file=sys.stderr, flush=True)


def gate_difference(outcome: Outcome) -> float | None:
    """How far the gated network's outputs are from the compact one's, relative; None if there is no gated network.

    Raises:
        ValueError: too far.
    """
    if outcome.gated is None:
        return None
    error = outcome.apart(outcome.gated.eval(), outcome.small)
    if not error <= TOLERANCE:  # may be they draw numbers
        error = outcome.apart(outcome.gated, outcome.small, chance=False)
    if not error <= TOLERANCE:
        raise ValueError(
            f"The compact network differs from the gated one by {error:.1e} (relative); nothing was written."
        )
    return error


@contextlib.contextmanager
def destination(given: argparse.Namespace) -> Iterator[dict[str, Path]]:
    """A path for each format, in a folder that goes again: once all are written, each gets its name.

    Raises:
        ValueError: one of them is the checkpoint itself.
    """
    names = wanted_formats(given)
    formats.check(names, given.output)
    found = formats.paths(given.output, names)
    for path in found.values():
        if path.resolve() == given.checkpoint.resolve():
            raise ValueError(f"--output {path} is the checkpoint itself; give another name.")
        if path.is_dir():
            raise ValueError(f"--output {path} is a folder; give the name of a file.")
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield {name: Path(folder) / path.name for name, path in found.items()}
        return
    parent = given.output.parent
    new = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=parent) as folder:
            yield {name: Path(folder) / path.name for name, path in found.items()}
            for path in Path(folder).iterdir():
                os.replace(path, parent / path.name)
            flush_folder(parent)
    except BaseException:
        for path in new:  # inner ones first
            with contextlib.suppress(OSError):  # somebody has put something there
                path.rmdir()
        raise


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that the command does and says, as JSON.

    Raises:
        ValueError, Disagreement: the checkpoint cannot be compacted as asked.
        OSError: a file could not be written.
    """
    with destination(given) as targets:
        outcome, chosen = made(given)
        found: dict[str, Any] = {"checkpoint": str(given.checkpoint), "said": outcome.said, "dry_run": given.dry_run}
        found["gated_difference"] = gate_difference(outcome)
        found["rounding"] = chosen
        found["written"] = {
            name: {"path": str(given.output.parent / path.name), "difference": formats.write(outcome, name, path)}
            for name, path in targets.items()
        }
        sizes = {name: path.stat().st_size for name, path in targets.items()}
        return found | comparison.figures(outcome, sizes, given.batch)


def show(found: dict[str, Any]) -> None:
    """What `run` has found, for people."""
    print(f"{found['checkpoint']}: {found['said']}")
    if found["rounding"] is not None:
        print(rounding.sentence(found["rounding"]))
    if found["gated_difference"] is not None:
        print(f"its outputs and the gated network's differ by {found['gated_difference']:.1e} (relative)")
    for name, entry in found["written"].items():
        done = "not written (--dry-run), but tried" if found["dry_run"] else "written and read back"
        print(f"{entry['path']}: {done}, {found['files'][name]:,} bytes{HOW_TO_READ.get(name, '')}")
    report.console().print(comparison.table(found))
    for line in comparison.width_lines(found["widths"]):
        print(line)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m hfp.compact",
        description="Make a small deployable file of a checkpoint: one of train.py at any moment of a run, a compact\n"
        "file, or anybody's dense weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("checkpoint", type=Path, help="a file of train.py, of hfp.save, of torch.save (.pt, .pth, .th) or .safetensors")
    add("--output", type=Path, required=True, metavar="SMALL", help="the file to write")
    add(
        "--format",
        type=lambda text: list(dict.fromkeys(name.strip() for name in text.split(","))),
        metavar="LIST",
        help=f"some of {','.join(formats.FORMATS)}; for several, suffixes are put to --output (default: by its suffix)",
    )
    add("--model", metavar="NAME", help="the dense network: of torchvision, timm or `models`, or module:function")
    add("--num-classes", type=whole(1), metavar="N", help="of the network that --model names (default: its usual ones)")
    add(
        "--input-shape",
        action="append",
        default=[],
        type=shape_and_dtype,
        metavar="SHAPE",
        help="1,3,224,224, or with a dtype 1,12:int64; once for each input; where neither network nor file tells",
    )
    add("--method", metavar="NAME", help=f"how channels of dense weights are judged: {', '.join(ONE_SHOT)} ({USUAL})")
    add("--target-macs", type=amount, metavar="SHARE|COUNT", help="multiply-adds that may stay (0.4, or 50M)")
    add("--target-params", type=amount, metavar="SHARE|COUNT", help="parameters that may stay, likewise")
    add(
        "--round-to",
        type=_rounding,
        metavar="N|auto",
        help="widths in multiples of N; auto: of what is the fastest here at --batch, in PyTorch, or in onnxruntime if "
        "only ONNX is written",
    )
    add("--ignore", action="append", default=[], metavar="PATTERN", help="modules that stay whole, such as 'layer1.*'")
    add("--use-ema", action="store_true", help="take the averaged weights of the checkpoint")
    add("--seed", type=whole(0), default=0, metavar="N", help="of --method random (default: 0)")
    add("--batch", type=whole(1), default=8, metavar="N", help="the larger batch that is timed (default: 8)")
    add("--dry-run", action="store_true", help="do and measure everything, but leave no file")
    add("--json", action="store_true", help="print JSON, for programs")
    return made


def _rounding(text: str) -> int | str:
    return AUTO if text == AUTO else whole(1)(text)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the file could not be written, 2 a checkpoint that cannot be compacted as asked."""
    given = parser().parse_args(argv)
    try:
        found = run(given)
    except (ValueError, Disagreement) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {given.output} could not be written: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2)) if given.json else show(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
