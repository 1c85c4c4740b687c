"""The figures of the accuracy benchmark: a table over seeds, a picture of the methods, pictures of widths.

`accuracy.py` is the command.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Result = dict[str, Any]
"""What a result.json holds, and beside it the epochs ("history") and a hash of the baseline."""
CONTROL = ("uniform", 1.0)
"""Method and target of the runs in which nothing is pruned."""
RECIPE = (
    "dataset", "model", "batch_size", "lr", "weight_decay", "label_smoothing", "augment", "distill", "amp",
    "prune_epochs", "finetune_epochs", "round_to", "counter", "ignore",
)  # fmt: skip
"""Settings of train.py that have to be the same for whatever is compared."""


def label(config: dict[str, Any]) -> str:
    """
    >>> label({"model": "resnet20", "shortcut": "B"}), label({"model": "vgg16_bn", "shortcut": None})
    ('resnet20_b', 'vgg16_bn')
    """
    return config["model"] + ("_b" if config.get("shortcut") == "B" else "")


def group_of(result: Result) -> str:
    """Results are compared within one: network, and epochs of pruning and recovery together.

    >>> group_of({"config": {"model": "resnet20", "shortcut": "B", "prune_epochs": 3, "finetune_epochs": 7}})
    'resnet20_b-10ep'
    """
    config = result["config"]
    return f"{label(config)}-{config['prune_epochs'] + config['finetune_epochs']}ep"


def method_of(result: Result) -> str:
    """Its name, or "control"."""
    own = (result["config"]["method"], result["config"]["target_macs"])
    return "control" if own == CONTROL else own[0]


def load_results(folder: Path) -> list[Result]:
    """All results in `folder`: by group, then control first and by falling target, then by method and seed.

    Raises:
        ValueError: there are none, or two of a group were not made by the same recipe from the same baseline.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]
    if not results:
        raise ValueError(f"There is no result in {folder}; `python benchmarks/accuracy.py --data DIR` makes some.")
    results.sort(key=lambda one: (group_of(one), -one["config"]["target_macs"], one["config"]["method"], one["seed"]))
    for name, members in groups(results):
        for setting in RECIPE:
            check_one(name, setting, [one["config"][setting] for one in members])
        check_one(name, "baseline", [one["baseline_sha256"] for one in members if "baseline_sha256" in one])
    return results


def check_one(name: str, what: str, values: Sequence[Any]) -> None:
    """
    Raises:
        ValueError: there is more than one.
    """
    for value in values:
        if value != values[0]:
            raise ValueError(
                f"The results of {name} cannot be compared: {what} is {values[0]} in one, {value} in another."
            )


def groups(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    """What is compared with each other."""
    for name, members in itertools.groupby(results, key=group_of):
        yield name, list(members)


def cases(results: Sequence[Result]) -> Iterator[tuple[str, float, list[Result]]]:
    """Method, target, and a result for every seed of the two, of one group."""
    for (name, target), members in itertools.groupby(
        results, key=lambda one: (method_of(one), one["config"]["target_macs"])
    ):
        yield name, target, list(members)


def controls(results: Sequence[Result]) -> dict[int, float]:
    """Seed -> accuracy of the control, of one group: a run of its own, or part of another (train.py --control)."""
    found = {one["seed"]: one["control"]["accuracy"] for one in results if "control" in one}
    return found | {one["seed"]: one["finetuned"]["accuracy"] for one in results if method_of(one) == "control"}


# ---------------------------------------------------------------------------------------------------------------------
# The table

HEADINGS = (
    "network, epochs", "method", "target", "seeds", "before fine-tuning", "accuracy", "lost, points", "training loss",
    "MACs", "parameters",
)  # fmt: skip
CAPTION = (
    "Test accuracy in % after the last epoch: mean over seeds (lowest..highest). Control: the baseline that all start "
    "from, trained on, unpruned, for as many epochs by the same recipe, teacher included. Lost: control less accuracy, "
    "seed by seed. Training loss: of the last epoch, against labels and teacher; seeds differ little in it. MACs and "
    "parameters: share of the dense network; the target is the share of MACs that may stay. Methods that begin with tp "
    "are Torch-Pruning's."
)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The cells below `HEADINGS`: for every group its baseline, its control, and a row for every method and target."""
    made: list[tuple[str, ...]] = []
    for name, members in groups(results):
        control = controls(members)
        baseline = spread([100 * statistics.fmean(one["baseline"]["accuracy"] for one in members)], 2)
        made.append((name, "baseline", "1", "", "", baseline, "", "", "1", "1"))
        if not any(method_of(one) == "control" for one in members):
            accuracy = spread([100 * value for value in control.values()], 2)
            made.append((name, "control", "1", str(len(control)), "", accuracy, "", "", "1", "1"))
        made += [(name, *row(what, target, own, control)) for what, target, own in cases(members)]
    return made


def row(what: str, target: float, members: Sequence[Result], control: dict[int, float]) -> tuple[str, ...]:
    """One method at one target, without the name of the group."""
    lost = [control[one["seed"]] - one["finetuned"]["accuracy"] for one in members if one["seed"] in control]
    some = f", {len(lost)} of {len(members)} seeds" if 0 < len(lost) < len(members) else ""
    return (
        what,
        f"{target:g}",
        str(len(members)),
        spread([100 * one["compacted"]["accuracy"] for one in members], 2),
        spread([100 * one["finetuned"]["accuracy"] for one in members], 2),
        "" if what == "control" else spread([100 * share for share in lost], 2) + some,
        spread([one["history"][-1]["task_loss"] for one in members if "history" in one], 3),
        spread([one["finetuned"]["macs_share"] for one in members], 4),
        spread([one["finetuned"]["params_share"] for one in members], 4),
    )


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
    table = Table(title="CIFAR-10", title_justify="left", caption=CAPTION, caption_justify="left")
    for heading in HEADINGS:
        named = heading in HEADINGS[:2]
        table.add_column(heading, justify="left" if named else "right", no_wrap=named)
    for cells in rows(results):
        table.add_row(*(cell.replace(" (", "\n(").replace(", ", "\n") for cell in cells))
    return table


def markdown(results: Sequence[Result], command: str) -> str:
    """The same table for a page, with what it was made by; `command` makes the page again."""
    ruled = [HEADINGS, ("---", "---") + ("---:",) * (len(HEADINGS) - 2), *rows(results)]
    torches = sorted({one["versions"]["torch"] for one in results})
    devices = sorted({one["machine"]["device"] for one in results})
    hours = sum(one["train_seconds"] for one in results) / 3600
    recipes = [
        f"{name}: " + ", ".join(f"{key} {own[0]['config'][key]}" for key in RECIPE) for name, own in groups(results)
    ]
    paragraphs = [
        "# Accuracy on CIFAR-10",
        "\n".join(f"| {' | '.join(cells)} |" for cells in ruled),
        CAPTION,
        f"{len(results)} runs, {hours:.1f} hours of training, torch {', '.join(torches)} on {', '.join(devices)}.",
        "The recipe, for every method of a network, in settings of `train.py`:",
        "\n".join(f"- {recipe}" for recipe in recipes),
        f"Made from the JSON files beside it by `{command}`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The pictures

GREY = "#d0d0d0"
COLOURS = ("#2f6db3", "#e08a3c", "#3c8c5a", "#8a4fa3")


PALETTE = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#ff7f0e", "#7f7f7f")
MARKERS = "osD^vP"


SHOWN = 25.0
"""Points below the best accuracy that a picture shows; a method that fails altogether would squash all the others."""


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Accuracy against the share of MACs, a curve a method; results of one group. Whiskers: lowest and highest seed.

    What is too low to be shown stands in the legend.
    """
    from matplotlib.figure import Figure  # slow to load; and without pyplot no display is needed

    figure = Figure(figsize=(8.0, 5.5), layout="constrained")
    axes = figure.subplots()
    names = sorted({method_of(one) for one in results} - {"control"}, key=lambda name: (name != "hfp", name))
    lowest = max(100 * one["finetuned"]["accuracy"] for one in results) - SHOWN
    for number, name in enumerate(names):
        own = [(target, members) for what, target, members in cases(results) if what == name]
        accuracies = [[100 * one["finetuned"]["accuracy"] for one in members] for _, members in own]
        means = [statistics.fmean(each) for each in accuracies]
        hidden = [f"{mean:.0f} % at {target:g}" for (target, _), mean in zip(own, means, strict=True) if mean < lowest]
        axes.errorbar(
            [statistics.fmean(one["finetuned"]["macs_share"] for one in members) for _, members in own],
            [mean if mean >= lowest else math.nan for mean in means],
            yerr=whiskers(accuracies),
            label=f"{name} ({', '.join(hidden)}: not shown)" if hidden else name,
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="--" if name.startswith("tp-") else "-",
            linewidth=2.5 if name == "hfp" else 1.3,
            capsize=3,
        )
    control = [100 * accuracy for accuracy in controls(results).values()]
    if control:
        axes.axhline(statistics.fmean(control), color="black", linewidth=1, linestyle=":", label="control (unpruned)")
        axes.axhspan(min(control), max(control), color="black", alpha=0.08, linewidth=0)
    axes.set(xlabel="multiply-adds that stay, share of the dense network", ylabel="test accuracy, %")
    axes.set_title(f"{group_of(results[0])}: one baseline, one recipe; whiskers: lowest and highest seed", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def whiskers(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far the lowest, and the highest, of each are from their mean.

    >>> whiskers([[1.0, 2.0, 6.0]])
    [[2.0], [3.0]]
    """
    means = [statistics.fmean(each) for each in values]
    lower = [mean - min(each) for mean, each in zip(means, values, strict=True)]
    return [lower, [max(each) - mean for mean, each in zip(means, values, strict=True)]]


def draw_widths(results: Sequence[Result], path: Path) -> None:
    """Widths by one method, dense and at every target: layer by layer, and the share of each stage that stayed."""
    from matplotlib.figure import Figure  # slow to load; and without pyplot no display is needed

    dense: dict[str, int] = results[0]["widths"]["dense"]
    stages = {stage: list(names) for stage, names in itertools.groupby(dense, lambda name: name.partition(".")[0])}
    figure = Figure(figsize=(max(11.0, 4.5 + 0.21 * len(dense)), 5.0), layout="constrained")
    by_layer, by_stage = figure.subplots(1, 2, width_ratios=(max(1.5, len(dense) / 15), 1))
    figure.suptitle(f"{group_of(results[0])}, {method_of(results[0])}: output channels that stay")
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
        seeds = f", mean of {len(members)} seeds (whiskers: lowest, highest)" if len(members) > 1 else ""
        axes.bar(
            [place + shift for place in places],
            means,
            width=thickness,
            color=COLOURS[number % len(COLOURS)],
            label=f"{target:g} of the MACs{seeds}",
            yerr=whiskers(widths) if len(members) > 1 else None,
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
