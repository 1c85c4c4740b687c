"""The figures of the CIFAR-10 runs: a table over seeds, and pictures of the widths. `cifar.py` is the command."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Result = dict[str, Any]
"""What a result.json holds."""


def load_results(folder: Path) -> list[Result]:
    """All results in `folder`: small networks first, then by falling target, then by seed.

    Raises:
        ValueError: there are none.
    """
    results = [json.loads(path.read_text()) for path in folder.glob("*-seed*.json")]
    if not results:
        raise ValueError(f"There is no result in {folder}; run `python benchmarks/cifar.py --data DIR --weights DIR`.")
    return sorted(results, key=lambda one: (one["baseline"]["macs"], -one["config"]["target_macs"], one["seed"]))


def cases(results: Sequence[Result]) -> Iterator[tuple[str, float, list[Result]]]:
    """Network, target, and a result for every seed of the two."""
    keyed = itertools.groupby(results, key=lambda one: (one["config"]["model"], one["config"]["target_macs"]))
    for (network, target), members in keyed:
        yield network, target, list(members)


# ---------------------------------------------------------------------------------------------------------------------
# The table

HEADINGS = (
    "network", "target", "seeds", "baseline", "control", "before fine-tuning", "fine-tuned", "lost, points",
    "MACs", "parameters",
)  # fmt: skip
CAPTION = (
    "Test accuracy in %: mean over seeds (lowest..highest). Baseline: the dense network that all seeds start from. "
    "Control: the baseline trained on, unpruned, for as many epochs by the same recipe. Lost: control less fine-tuned, "
    "seed by seed. MACs and parameters: share of the dense network; the target is the share of MACs that may stay."
)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The cells below `HEADINGS`: a row for every network and target."""
    controls = {
        (one["config"]["model"], one["seed"]): one["control"]["accuracy"] for one in results if "control" in one
    }
    made: list[tuple[str, ...]] = []
    for network, target, members in cases(results):
        control = {one["seed"]: controls.get((network, one["seed"])) for one in members}
        lost = [
            control[one["seed"]] - one["finetuned"]["accuracy"] for one in members if control[one["seed"]] is not None
        ]
        some = f", {len(lost)} of {len(members)} seeds" if 0 < len(lost) < len(members) else ""
        made.append(
            (
                network,
                f"{target:g}",
                str(len(members)),
                spread([100 * one["baseline"]["accuracy"] for one in members], 2),
                spread([100 * accuracy for accuracy in control.values() if accuracy is not None], 2),
                spread([100 * one["compacted"]["accuracy"] for one in members], 2),
                spread([100 * one["finetuned"]["accuracy"] for one in members], 2),
                spread([100 * share for share in lost], 2) + some,
                spread([one["finetuned"]["macs_share"] for one in members], 4),
                spread([one["finetuned"]["params_share"] for one in members], 4),
            )
        )
    return made


def spread(values: Sequence[float], digits: int) -> str:
    """
    >>> spread([92.25, 92.5, 92.75], 2), spread([92.25], 2), spread([], 2)
    ('92.50 (92.25..92.75)', '92.25', '-')
    """
    if not values:
        return "-"
    low, mean, high = (f"{value:.{digits}f}" for value in (min(values), statistics.fmean(values), max(values)))
    return mean if low == high else f"{mean} ({low}..{high})"


def rich_table(results: Sequence[Result]) -> Table:
    """For the terminal: the spread goes below its mean."""
    table = Table(title="CIFAR-10", title_justify="left", caption=CAPTION, caption_justify="left", show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows(results):
        table.add_row(*(cell.replace(" (", "\n(").replace(", ", "\n") for cell in row))
    return table


def markdown(results: Sequence[Result], recipe: str) -> str:
    """The same table for a page, with what it was made by; `recipe` is the flags of train.py."""
    ruled = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *rows(results)]
    torches = sorted({one["versions"]["torch"] for one in results})
    devices = sorted({one["machine"]["device"] for one in results})
    hours = sum(one["train_seconds"] for one in results) / 3600
    paragraphs = [
        "# CIFAR-10",
        "\n".join(f"| {' | '.join(row)} |" for row in ruled),
        CAPTION,
        f"{len(results)} runs, {hours:.1f} hours of training, torch {', '.join(torches)} on {', '.join(devices)}: "
        f"`train.py {recipe}`.",
        "Made from the JSON files beside it by `python benchmarks/cifar.py --report-only`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The pictures

GREY = "#d0d0d0"
COLOURS = ("#2f6db3", "#e08a3c", "#3c8c5a", "#8a4fa3")


def draw_widths(results: Sequence[Result], path: Path) -> None:
    """Widths of one network, dense and at every target: layer by layer, and the share of each stage that stayed."""
    from matplotlib.figure import Figure  # slow to load; and without pyplot no display is needed

    dense: dict[str, int] = results[0]["widths"]["dense"]
    stages = {stage: list(names) for stage, names in itertools.groupby(dense, lambda name: name.partition(".")[0])}
    figure = Figure(figsize=(max(11.0, 4.5 + 0.21 * len(dense)), 5.0), layout="constrained")
    by_layer, by_stage = figure.subplots(1, 2, width_ratios=(max(1.5, len(dense) / 15), 1))
    figure.suptitle(f"{results[0]['config']['model']} on CIFAR-10: output channels that stay")
    draw_layers(by_layer, results, stages)
    draw_stages(by_stage, results, stages)
    figure.legend(*by_layer.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the same picture from the same figures, byte by byte


def draw_layers(axes: Any, results: Sequence[Result], stages: dict[str, list[str]]) -> None:
    """A grey bar a layer, and on it one for every target; a gap and a line between stages."""
    dense: dict[str, int] = results[0]["widths"]["dense"]
    places: list[int] = []
    centres: dict[str, float] = {}
    labels: list[str] = []
    for number, (stage, names) in enumerate(stages.items()):
        own = [len(places) + number + index for index in range(len(names))]
        if number:
            axes.axvline(own[0] - 1, color="#808080", linewidth=0.8, linestyle=":")
        places += own
        labels += [name.removeprefix(f"{stage}.") for name in names]
        if len(names) > 1:
            centres[stage] = statistics.fmean(own)
    axes.bar(places, dense.values(), width=0.95, color=GREY, label="dense")
    targets = list(cases(results))
    for number, (_, target, members) in enumerate(targets):
        thickness, shift = slot(number, len(targets))
        widths = [[one["widths"]["compact"].get(name, 0) for one in members] for name in dense]
        means = [statistics.fmean(each) for each in widths]
        ends = [[mean - min(each) for mean, each in zip(means, widths, strict=True)]]
        ends += [[max(each) - mean for mean, each in zip(means, widths, strict=True)]]
        seeds = f", mean of {len(members)} seeds (whiskers: lowest, highest)" if len(members) > 1 else ""
        axes.bar(
            [place + shift for place in places],
            means,
            width=thickness,
            color=COLOURS[number % len(COLOURS)],
            label=f"{target:g} of the MACs{seeds}",
            yerr=ends if len(members) > 1 else None,
            error_kw={"elinewidth": 0.9},
        )
    top = 1.12 * max(dense.values())
    for stage, centre in centres.items():
        axes.text(centre, 0.97 * top, stage, ha="center", va="top", weight="bold")
    axes.set(ylabel="output channels", ylim=(0, top), xlim=(places[0] - 1, places[-1] + 1))
    axes.set_xticks(places, labels, rotation=90, fontsize=7)


def draw_stages(axes: Any, results: Sequence[Result], stages: dict[str, list[str]]) -> None:
    """Share of a stage's channels that stay, the layers together."""
    targets = list(cases(results))
    for number, (_, _, members) in enumerate(targets):
        shares = [
            100 * statistics.fmean(share_of_stage(one["widths"], names) for one in members) for names in stages.values()
        ]
        thickness, shift = slot(number, len(targets))
        places = [index + shift for index in range(len(stages))]
        bars = axes.bar(places, shares, width=thickness, color=COLOURS[number % len(COLOURS)])
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.axhline(100, color=GREY, zorder=0)
    axes.set(ylabel="channels that stay, %", ylim=(0, 112))
    axes.set_xticks(range(len(stages)), list(stages), rotation=90, fontsize=8)


def slot(number: int, count: int) -> tuple[float, float]:
    """Width of one of `count` bars that stand side by side, and how far its middle is from theirs.

    >>> slot(0, 2)
    (0.4, -0.2)
    """
    return 0.8 / count, (number - (count - 1) / 2) * 0.8 / count


def share_of_stage(widths: dict[str, dict[str, int]], names: Sequence[str]) -> float:
    """
    >>> share_of_stage({"dense": {"a": 4, "b": 6}, "compact": {"a": 1, "b": 4}}, ["a", "b"])
    0.5
    """
    return sum(widths["compact"].get(name, 0) for name in names) / sum(widths["dense"][name] for name in names)
