"""What a run shows: progress while it goes, a table at its end, pictures afterwards.

`python -m hfp.report RUN_FOLDER` prints the table of a finished run again and draws its pictures (needs matplotlib):
widths.png, the width of every layer before and after, and curves.png, what happened epoch by epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hfp.explain import PLAIN_WIDTH


def console() -> Console:
    """Standard output; tables keep their width where it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, soft_wrap=True)


# ---------------------------------------------------------------------------------------------------------------------
# While it runs


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} steps/s" if speed else "")


class Display:
    """A progress bar on a terminal, plain lines elsewhere.

    with Display() as display:
        display.start("prune", total=1000)
        display.step(lambda: "MACs 61 %  loss 0.21")      # called at most five times a second
        display.line("prune 1/10  accuracy 93.1 %")
    """

    def __init__(self) -> None:
        self.console = console()
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown = 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            columns = [
                TextColumn("[bold]{task.description:9}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[live]}"),
                Rate(),
                TimeRemainingColumn(),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a bar of `total` steps, `done` of them behind us."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=total, completed=done, live="")

    def step(self, live: Callable[[], str]) -> None:
        """One step further. `live` makes the text beside the bar; it may wait for the device: it is called seldom."""
        if self._bar is None:
            return
        if time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            self._bar.update(self._task, live=live())
        self._bar.advance(self._task)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """A line of metrics.jsonl, in words."""
    penalty = f" + {metrics['complexity_loss']:.4f}" if metrics["complexity_loss"] else ""
    return (
        f"{metrics['phase']:8} {metrics['epoch']:3d}/{epochs}"
        f"  loss {metrics['task_loss']:.4f}{penalty}"
        f"  train {percent(metrics['train_accuracy'])}"
        f"  validation {percent(metrics['validation_accuracy'])}"
        f"  MACs {metrics['macs_share']:.3f}  parameters {metrics['params_share']:.3f}"
        f"  lr {metrics['lr']:.4f}  {metrics['seconds']:.1f} s"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def circumstances(device: str) -> dict[str, Any]:
    """Where and when a result was made, for its JSON."""
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "ptflops")},
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def percent(share: float) -> str:
    """
    >>> percent(0.97314)
    '97.31 %'
    """
    return f"{100 * share:.2f} %"


# ---------------------------------------------------------------------------------------------------------------------
# The table at the end

ROWS = ("baseline", "control", "gated", "compacted", "finetuned")


def result_table(result: Mapping[str, Any]) -> Table:
    """The final table of a run, from what result.json holds."""
    table = Table(title=f"{result['config']['model']} on {result['config']['dataset']}", title_justify="left")
    for heading in ("network", "accuracy", "parameters", "share", "MACs", "share", "CPU latency"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in ROWS:
        if name in result:
            row = result[name]
            table.add_row(
                name,
                percent(row["accuracy"]),
                f"{row['params']:,}",
                f"{row['params_share']:.4f}",
                f"{row['macs']:,}",
                f"{row['macs_share']:.4f}",
                f"{row['latency_ms']:.2f} ms",
            )
    return table


def ptflops_line(result: Mapping[str, Any]) -> str:
    """The same networks in the count of ptflops, which many people check with."""
    counted = result["ptflops"]
    return (
        f"ptflops counts {counted['finetuned']:,} of {counted['baseline']:,} MACs ({counted['share']:.4f}): "
        "it adds bias, normalisation, activations and pools."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_widths(dense: Mapping[str, int], compact: Mapping[str, int], path: str | Path) -> None:
    """A bar a layer: its width before, grey, and after, blue. `dense` and `compact` as `widths` gives them."""
    plt = _pyplot()
    names = [name for name in dense if name in compact]
    figure, axes = plt.subplots(figsize=(max(5.0, 0.22 * len(names)), 4.0), layout="constrained")
    axes.bar(names, [dense[name] for name in names], color="#d0d0d0", label="dense")
    axes.bar(names, [compact[name] for name in names], color="#2f6db3", label="compact")
    axes.set(ylabel="output channels", title="Width of every layer")
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curves(lines: list[dict[str, Any]], path: str | Path) -> None:
    """Validation accuracy, task loss and live shares by epoch; `lines` as in metrics.jsonl."""
    plt = _pyplot()
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    start = 0
    for phase in dict.fromkeys(line["phase"] for line in lines):
        own = [line for line in lines if line["phase"] == phase]
        epochs = [start + index + 1 for index in range(len(own))]
        top.plot(epochs, [100 * line["validation_accuracy"] for line in own], marker=".", label=phase)
        bottom.plot(epochs, [line["macs_share"] for line in own], color="#2f6db3")
        bottom.plot(epochs, [line["params_share"] for line in own], color="#b35c2f", linestyle="--")
        start += len(own)
    top.set(ylabel="validation accuracy, %")
    top.legend()
    bottom.set(ylabel="share of dense", xlabel="epoch", ylim=(0, 1.05))
    bottom.legend(["MACs", "parameters"])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot() -> Any:
    """Imported only where a picture is drawn: it is slow to load, and nothing else here needs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("Pictures need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hfp.report", description="Table and pictures of a finished run.")
    parser.add_argument("run", type=Path, help="the run folder, as given to train.py --output")
    folder = parser.parse_args(argv).run
    try:
        result = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        table, line, widths = result_table(result), ptflops_line(result), result["widths"]
        dense, compact = widths["dense"], widths["compact"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {folder} is not the folder of a finished run: {error!r}", file=sys.stderr)
        return 2
    console().print(table)
    print(line)
    try:
        draw_widths(dense, compact, folder / "widths.png")
        draw_curves(lines, folder / "curves.png")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: no pictures: {error}", file=sys.stderr)
        return 2
    print(f"drawn: {folder / 'widths.png'}, {folder / 'curves.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
