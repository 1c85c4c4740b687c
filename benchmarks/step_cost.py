"""What the gates cost: `python benchmarks/step_cost.py`. Writes step_cost.json.

A training step of the gated network against one of the plain network, in turns A B A B so that a busy machine slows
both; the figure is the median of the ratios of neighbours. Also the time of one `hfp.trace`. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, machine, seconds, write_json
from rich.console import Console
from rich.table import Table
from torch import nn

import hfp
import models

Case = tuple[Callable[[], nn.Module], int, int]


def torchvision_resnet50() -> nn.Module:
    import torchvision.models as zoo

    return zoo.resnet50()


CASES: dict[str, Case] = {
    "resnet56, batch 128 at 32 x 32": (lambda: models.build("resnet56"), 128, 32),
    "torchvision resnet50, batch 8 at 224 x 224": (torchvision_resnet50, 8, 224),
}


def stepper(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, gated: bool) -> Callable[[], None]:
    """One training step, as train.py does it."""
    synchronise = torch.cuda.synchronize if images.is_cuda else (lambda: None)
    if gated:
        model = hfp.wrap(model.train(), images[:1], target_macs=0.4, steps=10_000)
        groups = model.param_groups(lr=0.01)
    else:
        groups = model.train().parameters()
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        if gated:
            loss = loss + model.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise()

    return step


def compare(case: Case, rounds: int, batch: int | None, size: int | None, device: str) -> dict[str, Any]:
    build, own_batch, own_size = case
    shape = (batch or own_batch, 3, size or own_size, size or own_size)
    images, labels = torch.randn(shape, device=device), torch.randint(10, shape[:1], device=device)
    plain = stepper(build().to(device), images, labels, gated=False)
    gated = stepper(build().to(device), images, labels, gated=True)
    plain(), gated()  # the first step of each allocates
    times = [(seconds(plain)[0], seconds(gated)[0]) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in times)
    return {
        "shape": list(shape),
        "rounds": rounds,
        "plain_seconds": statistics.median(a for a, _ in times),
        "gated_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
    }


def trace_seconds(size: int, rounds: int) -> dict[str, Any]:
    """`hfp.trace` of torchvision's resnet50 on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, image = torchvision_resnet50(), torch.zeros(1, 3, size, size)
    times = [seconds(lambda: hfp.trace(model, image))[0] for _ in range(rounds)]
    torch.set_num_threads(threads)
    return {"size": size, "rounds": rounds, "median": statistics.median(times), "least": min(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="another batch size, for a quick look")
    parser.add_argument("--size", type=int, help="another image size, for a quick look")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "step_cost.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = {n: compare(c, options.rounds, options.batch, options.size, options.device) for n, c in CASES.items()}
    traced = trace_seconds(options.size or 224, 5)
    result = {"machine": machine(), "device": options.device, "steps": rows, "trace_resnet50": traced}
    write_json(options.output, result)
    table = Table("training step", "plain", "gated", "ratio (quartiles)")
    for name, row in rows.items():
        low, high = row["ratio_quartiles"]
        seconds_ = (f"{row['plain_seconds']:.3f} s", f"{row['gated_seconds']:.3f} s")
        table.add_row(name, *seconds_, f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})")
    Console(width=120).print(table)
    print(f"hfp.trace of resnet50, one thread: {traced['median']:.2f} s")


if __name__ == "__main__":
    main()
