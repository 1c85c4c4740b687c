"""`python -m hfp.inspect --model NAME`: what can be pruned in a network, how far, and what stays whole, and why.

    python -m hfp.inspect --model resnet50
    python -m hfp.inspect --model vit_b_16 --input-shape 1,3,384,384 --verify
    python -m hfp.inspect --model my_package.nets:tagger --input-shape 1,12:int64 --json

NAME is any network of torchvision or timm, built with random weights, or a function of yours that returns one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hfp import catalogue
from hfp.channels import ChannelTable
from hfp.explain import table_data
from hfp.model.inputs import arguments
from hfp.proof.as_trained import randomise, settle
from hfp.proof.verify import Disagreement, verify
from hfp.trace import trace

CUTS = 3


@dataclass(frozen=True)
class Report:
    """What there is to print."""

    data: dict[str, Any]
    """As JSON: `hfp.explain.table_data`, the network, and, if it was asked for, what the check has found."""
    table: ChannelTable
    verdict: str
    """Of the check, in words."""
    holds: bool


def shape_and_dtype(text: str) -> tuple[catalogue.Shape, torch.dtype]:
    """`1,12:int64` -> ((1, 12), torch.int64); float32 without a dtype."""
    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape; expected such as 1,3,224,224 or, for indices, 1,12:int64"
        )
    return shape, dtype


def inspect(name: str, inputs: Sequence[tuple[catalogue.Shape, torch.dtype]], check: bool) -> Report:
    """Build the network, trace it, and `check` that gating its channels is removing them.

    Raises:
        ValueError: there is no such network, or it does not run on such inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = catalogue.build(name, [shape for shape, _ in inputs], [dtype for _, dtype in inputs])
        network.model.eval()
        table = trace(network.model, network.inputs)
        data = {"model": name, "class": type(network.model).__name__, "note": network.note, **table_data(table)}
        if not check:
            return Report(data, table, "", True)
        args, kwargs = arguments(randomise(network.model), network.inputs)
        settle(network.model, lambda: network.model(*args, **kwargs))
        try:
            error = verify(network.model, table, network.inputs, cuts=CUTS)
        except Disagreement as found:
            data["verified"] = {"holds": False, "groups": list(found.groups), "message": str(found)}
            return Report(data, table, f"verify: {found}", False)
        cuts = CUTS if table.groups else 0
        data["verified"] = {"holds": True, "cuts": cuts, "difference": error}
        words = f"gated and compact outputs differ by {error:.1e} at most, in {cuts} cuts" if cuts else "nothing to cut"
        return Report(data, table, f"verify: {words}", True)


def shapes_of(inputs: dict[str, Any]) -> str:
    """`1 x 3 x 224 x 224`, for every input of a description (see `hfp.model.inputs.describe`)."""
    tensors = tree_leaves(inputs, is_leaf=lambda entry: isinstance(entry, dict) and "shape" in entry)
    return ", ".join(" x ".join(map(str, each["shape"])) for each in tensors)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 gating is not the same as removing (--verify), 2 a network that cannot be inspected."""
    parser = argparse.ArgumentParser(
        prog="python -m hfp.inspect",
        description="Show what can be pruned in a network, how far it can go down, and what stays whole, and why.",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="a network of torchvision or timm, or module:function"
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        type=shape_and_dtype,
        metavar="SHAPE",
        help="1,3,224,224, or with a dtype 1,12:int64; once for each input; left out, the usual one of the network",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--verify", action="store_true", help="also compare gated and compacted outputs, on random weights and cuts"
    )
    given = parser.parse_args(argv)
    try:
        found = inspect(given.model, given.input_shape, given.verify)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(found.data, indent=2))
    else:
        print(f"{found.data['model']}: {found.data['class']}, {shapes_of(found.data['inputs'])}")
        for words in (found.data["note"], str(found.table), found.verdict):
            if words:
                print(words)
    return 0 if found.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
