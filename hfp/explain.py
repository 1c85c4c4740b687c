"""What a channel table says before any training: for a person to read, and for programs as plain data."""

from __future__ import annotations

import io
import itertools
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from hfp.labels import Place
from hfp.model.ambient import plainly
from hfp.threshold import smallest
from hfp.words import first_few

if TYPE_CHECKING:
    from hfp.channels import ChannelTable
    from hfp.cost import Cost

PLAIN_WIDTH = 110  # columns, where there is no terminal
SHOWN_LAYERS = 3
SHOWN_ROWS = 30  # where there are more, those that are alike but for numbers in their names share a row
_BLANK = "    \n"
RULED = box.Box(2 * _BLANK + " -- \n" + 5 * _BLANK, ascii=True)
"""A line below the head of a table. Not every output takes more than ASCII."""
COSTS = {"macs": "MACs", "params": "parameters"}
_DIGITS = re.compile(r"\d+")


# ---------------------------------------------------------------------------------------------------------------------
# As plain data


@plainly
def table_data(table: ChannelTable) -> dict[str, Any]:
    """Everything that the printed table tells, and what it leaves out, as JSON-able data.

    "macs" and "params": {"dense", "smallest", "share"}, the ends of the reachable range and their ratio. "groups": of
    each its width, the least of it that stays, its places, the layers that make and read its channels, and how many
    multiply-adds and parameters would go with the whole group. "pinned": of all that stays whole where, how many,
    why, and the operator, module and source line that say so.
    """
    costs = {"macs": table.macs, "params": table.params}
    dense = {name: cost.dense() for name, cost in costs.items()}
    layers = layers_of(table)
    groups = []
    for number, group in enumerate(table.groups):
        without = torch.ones(table.channels, dtype=torch.bool)
        without[group.channels] = False
        groups.append(
            {
                "number": number,
                "width": group.width,
                "least": group.least,
                "made_by": layers[number][0],
                "read_by": layers[number][1],
                **{name: dense[name] - cost.count(without) for name, cost in costs.items()},
                "places": [
                    {"tensor": tensor, "dim": dim, "indices": size}
                    for (tensor, dim), size in zip(group.members, group.sizes, strict=True)
                ],
            }
        )
    return {
        "channels": table.channels,
        **{name: _reach(table, cost) for name, cost in costs.items()},
        "groups": groups,
        "pinned": [
            {
                "tensor": pinned.tensor,
                "dim": pinned.dim,
                "channels": pinned.count,
                "reason": pinned.reason,
                "operator": pinned.place.operator,
                "module": pinned.place.module,
                "line": pinned.place.line,
            }
            for pinned in table.pinned
        ],
        "notes": list(table.notes),
        "inputs": table.inputs,
        "fingerprint": table.fingerprint(),
    }


def _reach(table: ChannelTable, cost: Cost) -> dict[str, Any]:
    dense = cost.dense()
    least = smallest(table, cost) if table.groups else dense
    return {"dense": dense, "smallest": least, "share": least / max(dense, 1)}


def layers_of(table: ChannelTable) -> list[tuple[list[str], list[str]]]:
    """For each group the layers that make its channels, and those that read them; those that it has alone come first.

    Vectors (a bias, a batch norm) go with the layer before them; what has two dims or more makes or reads.
    """
    places = Counter(member for group in table.groups for member in group.members)
    readers = set(table.readers)
    found = []
    for group in table.groups:
        # Groups can share layers (the halves of a width that is padded on both sides).
        layers = [member for member in group.members if len(table.axes[member[0]]) > 1]
        layers.sort(key=lambda member: places[member])
        made = dict.fromkeys(_layer(member[0]) for member in layers if member not in readers)
        read = dict.fromkeys(_layer(member[0]) for member in layers if member in readers)
        found.append((list(made), list(read)))
    return found


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")


# ---------------------------------------------------------------------------------------------------------------------
# For a person


def table_text(table: ChannelTable) -> str:
    """What `print(hfp.trace(model, x))` shows: the groups, how far the costs can go down, what stays whole, and why."""
    data = table_data(table)
    text = io.StringIO()
    width = min(PLAIN_WIDTH, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)
    # Text and nothing else, wherever this runs: a console in a notebook would show it instead.
    out = Console(file=text, width=width, force_terminal=False, force_jupyter=False, color_system=None)

    def paragraph(words: str) -> None:
        out.print(words, highlight=False, markup=False)

    paragraph(f"{table.channels:,} channels in {len(table.groups)} groups can be pruned")
    if table.groups:
        out.print(_groups(data))
        paragraph("MACs, params: what would go with the whole group; a layer between two groups counts in both.\n")
    paragraph("Within reach, of one pass of the example inputs")
    out.print(_range(data))
    if table.pinned:
        paragraph("Stays whole")
        out.print(_whole(table))
    elif table.groups:
        paragraph("Nothing has to stay whole.")
    elif table.params.dense():
        paragraph(
            "No operator was given a parameter that a module has. What the forward takes from elsewhere, a list or a "
            "closure, cannot be cut: read it off the module (self.weight), or keep such a list in an nn.ParameterList."
        )
    else:
        paragraph("No layer has channels.")
    for note in table.notes:
        paragraph(f"note: {note}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _groups(data: dict[str, Any]) -> Table:
    """A row a channel group: its width, the layers that make its channels and read them, its share of the costs."""
    shown = _table()
    for heading in ("group", "width", "made by", "read by", "MACs", "params"):
        shown.add_column(heading, justify="left" if heading.endswith("by") else "right", overflow="fold")
    alike: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for group in data["groups"]:
        own = group["number"] if len(data["groups"]) <= SHOWN_ROWS else None
        kinds = [frozenset(_DIGITS.sub("", name) for name in group[by]) for by in ("made_by", "read_by")]
        alike[(own, group["width"], *kinds)].append(group)
    for (_, width, *_), groups in alike.items():
        layers = ([name for group in groups for name in group[by]] for by in ("made_by", "read_by"))
        shown.add_row(
            _span([group["number"] for group in groups]),
            str(width),
            *map(_few, layers),
            *(_percents([group[cost] / max(data[cost]["dense"], 1) for group in groups]) for cost in COSTS),
        )
    return shown


def _range(data: dict[str, Any]) -> Table:
    """A row a cost: the smallest that every group at its least comes to, and the dense network."""
    shown = _table()
    for heading in ("", "smallest", "dense", "share"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, words in COSTS.items():
        cost = data[name]
        share = 100 * cost["share"]
        shown.add_row(
            words, f"{cost['smallest']:,}", f"{cost['dense']:,}", f"{share:.1f} %" if share >= 1 else f"{share:.1g} %"
        )
    return shown


def _whole(table: ChannelTable) -> Table:
    """A row for every reason, and place in the model's code, for which something stays whole."""
    shown = _table()
    for heading in ("layers", "channels", "why", "where"):
        shown.add_column(heading, justify="right" if heading == "channels" else "left", overflow="fold")
    counts: dict[tuple[str, Place], dict[str, int]] = defaultdict(dict)
    for pinned in table.pinned:  # a weight of several dims may be pinned in all of them: the first tells enough
        counts[pinned.reason, pinned.place].setdefault(_layer(pinned.tensor), pinned.count)
    rows: dict[Any, list[tuple[str, Place]]] = defaultdict(list)
    for reason, place in counts:
        own = place.module if len(counts) <= SHOWN_ROWS else None
        rows[reason, place.operator, place.line, own].append((reason, place))
    for (reason, operator, line, _), causes in rows.items():
        layers = [layer for cause in causes for layer in counts[cause]]
        modules = ", ".join(folded(place.module for _, place in causes if place.module))
        count = sum(sum(counts[cause].values()) for cause in causes)
        shown.add_row(", ".join(folded(layers)), f"{count:,}", reason, str(Place(operator, modules, line)))
    return shown


def _table() -> Table:
    """A table without frames, so that long names have room on a narrow terminal."""
    return Table(box=RULED, padding=(0, 1, 0, 0), pad_edge=False)


def phrase(table: ChannelTable, number: int) -> str:
    """A group in a sentence: `group 3 (64 channels made by conv1, read by conv2)`."""
    made, read = layers_of(table)[number]
    by = [f"{verb} by {_few(layers)}" for verb, layers in (("made", made), ("read", read)) if layers]
    return f"group {number} ({table.groups[number].width} channels {', '.join(by)})"


def _few(layers: Iterable[str]) -> str:
    """`conv1, layer1.0.conv2 and 12 more`."""
    names = list(dict.fromkeys(layers))
    if len(names) > SHOWN_LAYERS:
        names = folded(names)
    return first_few(names, SHOWN_LAYERS)


def _span(numbers: Sequence[int]) -> str:
    """`7`, `1-12`, or, with gaps, `12 of 13-35`."""
    runs = _runs(numbers)
    return f"{len(numbers)} of {min(numbers)}-{max(numbers)}" if "," in runs else runs


def _percents(shares: Sequence[float]) -> str:
    """`2.4 %`, or from the least to the most, `2.4-3.1 %`."""
    ends = dict.fromkeys(f"{100 * share:.1f}" for share in (min(shares), max(shares)))
    return "-".join(ends) + " %"


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers alone as one, with nothing lost.

    >>> folded(["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "blocks.7.mlp", "head"])
    ['blocks.{0-2,7}.mlp', 'head']
    """
    kinds: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for name in dict.fromkeys(names):
        kinds[tuple(_DIGITS.split(name))].append(tuple(_DIGITS.findall(name)))
    found = []
    for parts, alike in kinds.items():
        rows = alike
        for column in reversed(range(len(parts) - 1)):
            rows = _joined(rows, column)
        found += ["".join(itertools.chain(*itertools.zip_longest(parts, row, fillvalue=""))) for row in rows]
    return found


def _joined(rows: Iterable[tuple[str, ...]], column: int) -> list[tuple[str, ...]]:
    """Rows that are equal but for one column as one row, with all that it holds there in braces."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        alike[row[:column] + row[column + 1 :]].append(row[column])
    joined = (values[0] if len(values) == 1 else f"{{{_runs(map(int, values))}}}" for values in alike.values())
    return [rest[:column] + (value,) + rest[column:] for rest, value in zip(alike, joined, strict=True)]


def _runs(numbers: Iterable[int]) -> str:
    """`0-3,7`."""
    ordered = sorted(numbers)
    runs = [[number for _, number in run] for _, run in itertools.groupby(enumerate(ordered), lambda x: x[1] - x[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
