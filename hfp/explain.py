"""What `print(hfp.trace(model, x))` shows: the channel table for a person to read."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hfp.channels import ChannelTable

PLAIN_WIDTH = 110  # columns, where there is no terminal
SHOWN_LAYERS = 3


def table_text(table: ChannelTable) -> str:
    """What `print(hfp.trace(model, x))` shows: every channel group, then everything that stays whole, and why."""
    text = io.StringIO()
    out = Console(file=text, width=min(PLAIN_WIDTH, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns))

    def paragraph(words: str) -> None:
        out.print(words, highlight=False, markup=False)

    paragraph(f"{table.channels:,} channels in {len(table.groups)} groups can be pruned")
    if table.groups:
        out.print(_groups(table))
        paragraph("MACs, params: what would go with the whole group; a layer between two groups counts in both.")
    paragraph(f"{table.macs.dense():,} MACs and {table.params.dense():,} parameters in all\n")
    paragraph("Stays whole" if table.pinned else "Nothing has to stay whole.")
    if table.pinned:
        out.print(_whole(table))
    for note in table.notes:
        paragraph(f"note: {note}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _groups(table: ChannelTable) -> Table:
    """A row a channel group: its width, the layers that make its channels and read them, its share of the costs."""
    shown = _table()
    for heading in ("group", "width", "made by", "read by", "MACs", "params"):
        shown.add_column(heading, justify="left" if heading.endswith("by") else "right", overflow="fold")
    places = Counter(member for group in table.groups for member in group.members)
    for number, group in enumerate(table.groups):
        without = torch.ones(table.channels, dtype=torch.float64)
        without[group.channels] = 0
        shares = [1 - cost(without).item() / max(cost.dense(), 1) for cost in (table.macs, table.params)]
        # Vectors (a bias, a batch norm) go with the layer before them; what has two dims or more makes or reads.
        # Groups can share layers (the halves of a width that is padded on both sides): what only this one has leads.
        layers = [(name, dim) for name, dim in group.members if len(table.axes[name]) > 1]
        layers.sort(key=lambda member: places[member])
        made = [name for name, dim in layers if (name, dim) not in table.readers]
        read = [name for name, dim in layers if (name, dim) in table.readers]
        percents = (f"{100 * share:.1f} %" for share in shares)
        shown.add_row(str(number), str(group.width), _few(made), _few(read), *percents)
    return shown


def _whole(table: ChannelTable) -> Table:
    """A row for everything that stays whole, with the reason and the place in the model's code."""
    shown = _table()
    for heading in ("layer", "channels", "why", "where"):
        shown.add_column(heading, justify="right" if heading == "channels" else "left", overflow="fold")
    rows: dict[tuple[str, str, str], int] = {}
    for pinned in table.pinned:  # a weight of several dims may be pinned in all of them: the first tells enough
        rows.setdefault((_layer(pinned.tensor), pinned.reason, str(pinned.place)), pinned.count)
    for (layer, reason, place), count in rows.items():
        shown.add_row(layer, str(count), reason, place)
    return shown


def _table() -> Table:
    """A table without frames, so that long names have room on a narrow terminal."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _few(tensors: Sequence[str]) -> str:
    """`conv1, layer1.0.conv2 and 12 more`: the layers of these tensors."""
    layers = list(dict.fromkeys(map(_layer, tensors)))
    more = len(layers) - SHOWN_LAYERS
    return ", ".join(layers[:SHOWN_LAYERS]) + (f" and {more} more" if more > 0 else "")


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")
