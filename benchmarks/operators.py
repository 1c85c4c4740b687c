"""Every operator that PyTorch's own tests have samples of: `python benchmarks/operators.py`.

The first argument of a sample is made by a linear layer along one of its axes, each in turn, and what the operator
gives is read by another along the same axis, where there is one: so the channels of the first layer meet the operator
in every place. The network is traced and cut at random; gated and compacted are compared in float64, and predicted with
counted costs as integers. What has no channels that could be removed stays whole. Samples that are no function of their
input, or give no finite numbers, are left out and counted.

Takes `pip install -e ".[bench]"`. One operator by itself: `--only addmm`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from common import RESULTS, engine, machine, write_json
from promises import check_cut, leaves, only_plain_operators
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db

import hfp
from hfp.model.chance import NoChance
from hfp.model.source import first_line
from hfp.proof.verify import random_keeps

MOST = 12
"""Places in which one operator is tried."""
CUTS = 3
TOLERANCE = 1e-6  # some operators turn to float32


class Between(nn.Module):
    """An operator between two linear layers along one axis of its first argument; all its outputs are returned."""

    def __init__(self, operator: Any, sample: Any, axis: int) -> None:
        super().__init__()
        self.call = lambda h: operator(h, *sample.args, **sample.kwargs)
        self.axis = axis
        self.make = nn.Linear(3, sample.input.shape[axis], dtype=torch.float64)
        self.read = nn.ModuleList(map(self._reader, self._given(self._example(sample.input))))

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = self._given(x)
        return [
            out if isinstance(read, nn.Identity) else read(out.movedim(self.axis, -1))
            for out, read in zip(outs, self.read, strict=True)
        ]

    def _example(self, given: Tensor) -> Tensor:
        shape = [3 if axis == self.axis else length for axis, length in enumerate(given.shape)]
        return torch.rand(shape, dtype=torch.float64) + 0.1

    def _given(self, x: Tensor) -> list[Tensor]:
        outs = leaves(self.call(self.make(x.movedim(self.axis, -1)).movedim(-1, self.axis)))
        return [torch.view_as_real(out.resolve_conj())[..., 0] if out.is_complex() else out for out in outs]

    def _reader(self, out: Tensor) -> nn.Module:
        along = out.is_floating_point() and out.dim() > self.axis and out.shape[self.axis] > 1
        return nn.Linear(out.shape[self.axis], 2, dtype=out.dtype) if along else nn.Identity()


def places(operator: Any) -> Iterator[tuple[Any, int]]:
    """(sample, axis): the first few that differ in more than numbers."""
    seen = set()
    for sample in operator.sample_inputs("cpu", torch.float64):
        x = sample.input
        if not isinstance(x, Tensor) or not x.is_floating_point() or 0 in x.shape or x.layout != torch.strided:
            continue
        shown = [tuple(a.shape) if isinstance(a, Tensor) else repr(a) for a in sample.args]
        key = str((tuple(x.shape), shown, sorted(sample.kwargs.items(), key=lambda item: item[0])))[:400]
        if key not in seen:
            seen.add(key)
            yield from ((sample, axis) for axis, length in enumerate(x.shape) if length > 1)


def outcome(operator: Any, sample: Any, axis: int) -> str:
    """`held`, `whole`, `unfit`, or what went wrong."""
    torch.manual_seed(0)
    try:
        model = Between(operator.op, sample, axis)
        x = model._example(sample.input)
        once, again = model(x), model(x)
        fit = once and all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(once, again, strict=True))
    except Exception:  # whatever PyTorch says of an argument that is made by a layer
        return "unfit"
    if not fit:
        return "unfit"
    try:
        table = hfp.trace(model, x)
        for keep in random_keeps(table, CUTS):
            with NoChance(), only_plain_operators():
                check_cut(model, table, keep, ((x,), {}), TOLERANCE, training=False)
    except Exception as error:
        return first_line(error)[:200]
    return "held" if table.channels else "whole"


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="NAME", help="one operator; no file is written")
    given = made.parse_args()
    warnings.simplefilter("ignore")
    named = (operator for operator in op_db if given.only in (None, operator.name))
    chosen = [operator for operator in named if "empty" not in operator.name]  # whose numbers are anything
    counts, failed = Counter[str](), {}
    for operator in track(chosen, "operators", console=Console(stderr=True)):
        for sample, axis in itertools.islice(places(operator), MOST):
            found = outcome(operator, sample, axis)
            counts[found if found in ("held", "whole", "unfit") else "failed"] += 1
            if found not in ("held", "whole", "unfit"):
                name = f"{operator.name} {operator.variant_test_name}".strip()
                failed.setdefault(name, f"{tuple(sample.input.shape)}, axis {axis}: {found}")
    for name, told in failed.items():
        print(f"{name}: {told}")
    print(f"{len(chosen)} operators; places: {dict(counts)}")
    if given.only is None:
        result = {
            "operators": len(chosen),
            "places": counts,
            "failed": failed,
            "engine": engine(),
            "machine": machine(),
        }
        write_json(RESULTS / "operators.json", result)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
