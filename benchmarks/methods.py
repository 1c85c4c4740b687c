"""Every method on every network, to both budgets: `python benchmarks/methods.py`. Writes methods.json.

A few training steps on made-up images, the cut, and then what hfp promises, counted independently: multiply-adds by
PyTorch's FlopCounterMode, parameters by adding them up, outputs of the gated and the compact network side by side, and
no removed channel that could have stayed. It says nothing of accuracy. A row that is in the file is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import RESULTS, machine, seconds, write_json
from exactness import check_exact
from promises import call, measured, relative_difference
from rich.console import Console
from rich.table import Table
from torch import nn

import hfp
import models
from hfp.methods import METHODS

OURS = ("lenet5", "alexnet", "vgg16_bn", "resnet20", "resnet56")
TORCHVISION = {"resnet18": 64, "mobilenet_v2": 64, "vit_b_16": 112}
"""Side of the images: small, since seconds of 160 rows add up."""
BUDGETS = ("macs", "params")
TARGET = 0.4
STEPS = 6  # so that methods that learn for a fifth of the schedule see a gradient before they cut
TOLERANCE = 1e-5  # relative, in float32


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network and an image."""
    torch.manual_seed(0)
    if name in OURS:
        model = models.build(name)
        return model, torch.randn(1, *model.input_size)
    side = TORCHVISION[name]
    options = {"image_size": side} if name == "vit_b_16" else {}
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(1, 3, side, side)


def examine(name: str, method: str, budget: str) -> dict[str, Any]:
    """A row of the table.

    Raises:
        AssertionError: a promise is broken.
    """
    model, image = build(name)
    dense = measured(model.eval(), ((image,), {}))
    net = hfp.wrap(model.train(), image, steps=STEPS, method=method, verify=False, **{f"target_{budget}": TARGET})
    assert (net.dense_macs, net.dense_params) == dense
    train(net, image)
    arguments = ((image,), {})
    small: Any = net.eval().compact()
    error = relative_difference(call(net, arguments), call(small.eval(), arguments))
    assert error < TOLERANCE, f"gated and compacted differ by {error:.1e}"
    macs, params = measured(small, arguments)
    assert (macs, params) == (net.macs(), net.params()) == (small.hfp_record.macs, small.hfp_record.params)
    cost = net.budgets[0].cost
    check_exact(net.keep, net.table, [(cost, int(TARGET * cost.dense()))], brute_force=False)
    return {
        "macs_share": macs / dense[0],
        "params_share": params / dense[1],
        "error": error,
        "live": int(net.keep.sum()),
        "channels": net.table.channels,
        "narrowest": min(float(net.keep[group.channels].float().mean()) for group in net.table.groups),
    }


def train(net: hfp.GatedModel, image: torch.Tensor) -> None:
    """The whole schedule, on noise; with two images at least, for the statistics of batch norms."""
    optimizer = torch.optim.SGD(net.param_groups(lr=0.001), momentum=0.9)
    for _ in range(STEPS):
        out = net(torch.randn(2, *image.shape[1:]))
        loss = F.cross_entropy(out, torch.randint(out.shape[1], (2,))) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.progress == 1.0


def table_of(rows: dict[str, Any]) -> Table:
    """A line for each network and method, both budgets beside each other."""
    table = Table("network", "method", "MACs, of 0.4", "parameters, of 0.4", "largest error", "narrowest group")
    for name in dict.fromkeys(key.rpartition("/")[0] for key in rows):
        own = [rows.get(f"{name}/{budget}") for budget in BUDGETS]
        failed = next((row["failed"] for row in own if row and "failed" in row), None)
        if failed or None in own:
            table.add_row(*name.split("/"), f"[red]{failed or 'not yet'}")
            continue
        table.add_row(
            *name.split("/"),
            f"{own[0]['macs_share']:.5f}",
            f"{own[1]['params_share']:.5f}",
            f"{max(row['error'] for row in own):.0e}",
            f"{100 * min(row['narrowest'] for row in own):.1f} %",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[*OURS, *TORCHVISION], choices=[*OURS, *TORCHVISION])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=RESULTS / "methods.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(options.output.read_text())["rows"] if options.output.exists() else {}
    for name, method, budget in itertools.product(options.networks, options.methods, BUDGETS):
        key = f"{name}/{method}/{budget}"
        if "failed" in rows.get(key, {"failed": ""}):
            try:
                took, row = seconds(lambda case=(name, method, budget): examine(*case))
                rows[key] = row | {"seconds": round(took, 2)}
            except Exception as error:  # a row of the table: this benchmark reports what does not work
                rows[key] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            write_json(options.output, {"machine": machine(), "target": TARGET, "rows": rows})
    Console(width=120).print(table_of(rows))
    raise SystemExit(any("failed" in row for row in rows.values()))


if __name__ == "__main__":
    main()
