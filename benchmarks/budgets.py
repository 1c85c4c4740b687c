"""Promise 4 on published networks: `python benchmarks/budgets.py`. Writes budgets.json.

For each network, targets of 10 to 90 % of the multiply-adds, the parameters, or both, and scores of several kinds: the
result must not exceed a target, and any one removed channel, put back, must exceed one. Channels of a group cost the
same, so one of each group is tried. With --trained, the scores come from a few steps of training on made-up data.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, machine, seconds, write_json
from exactness import check_exact, limits_of, scores_of
from rich.console import Console
from rich.table import Table
from torch import nn

import hfp
import models
from hfp.threshold import threshold

OURS = ("resnet20", "resnet56", "vgg16_bn", "lenet5")
TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "densenet121", "regnet_y_400mf", "efficientnet_b0",
    "googlenet", "squeezenet1_1",
)  # fmt: skip
SHARES = (0.1, 0.25, 0.4, 0.6, 0.9)
BUDGETS = ("macs", "params", "both")
KINDS = ("random", "equal", "extreme")
ROUNDED = (4, 8)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in OURS:
        model = models.build(name)
        return model, torch.randn(1, *model.input_size)
    import torchvision.models as zoo

    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return zoo.get_model(name, weights=None, **options), torch.randn(1, 3, 128, 128)


def trained(model: nn.Module, image: torch.Tensor, steps: int = 4) -> bool:
    """Scores from training: a few steps of noise, then the network's own compaction, which must meet its budget."""
    net = hfp.wrap(model.train(), image, target_macs=0.4, steps=steps)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01), momentum=0.9)
    for _ in range(steps):
        out = net(torch.randn(4, *image.shape[1:]))
        loss = F.cross_entropy(out, torch.randint(out.shape[1], (4,))) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    record = net.compact().hfp_record
    check_exact(record.keep, net.table, [(net.table.macs, int(0.4 * net.dense_macs))], brute_force=False)
    return True


def examine(name: str, with_training: bool) -> dict[str, Any]:
    model, image = build(name)
    table = hfp.trace(model, image)
    worst, slowest, cases = 0.0, 0.0, 0
    for share, which, kind in itertools.product(SHARES, BUDGETS, KINDS):
        limits, scores = limits_of(table, share, which), scores_of(kind, table.channels)
        took, keep = seconds(lambda limits=limits, scores=scores: threshold(scores, table, limits))
        check_exact(keep, table, limits, brute_force=False)
        worst = max(worst, min((most - cost.count(keep)) / cost.dense() for cost, most in limits))
        slowest, cases = max(slowest, took), cases + 1
    for size, share in itertools.product(ROUNDED, SHARES[1:]):
        limits = limits_of(table, share, "macs")
        keep = threshold(scores_of("random", table.channels), table, limits, round_to=size)
        for group in table.groups:
            live = int(keep[group.channels].sum())
            assert live % size == 0 or live == group.width, f"width {live} of {group.members[0]}"
        assert table.macs.count(keep) <= limits[0][1]
        cases += 1
    row = {"channels": table.channels, "groups": len(table.groups), "cases": cases, "unused": worst, "seconds": slowest}
    return row | ({"trained": trained(model, image)} if with_training else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*OURS, *TORCHVISION])
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "budgets.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    table = Table("network", "channels", "groups", "cases, all exact", "most budget left unused", "slowest threshold")
    for name in options.networks:
        try:
            row = rows[name] = examine(name, options.trained)
        except Exception as error:  # a row of the table: this benchmark reports what does not work
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            table.add_row(name, f"[red]{rows[name]['failed']}")
            continue
        cells = (
            row["channels"],
            row["groups"],
            row["cases"],
            f"{100 * row['unused']:.3f} %",
            f"{row['seconds']:.3f} s",
        )
        table.add_row(name, *map(str, cells))
    write_json(options.output, {"machine": machine(), "networks": rows})
    Console(width=120).print(table)
    raise SystemExit(any("failed" in row for row in rows.values()))


if __name__ == "__main__":
    main()
