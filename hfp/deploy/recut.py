"""Cut a compact network further, so that what comes out is still a cut of the dense one.

    net, smaller = recut(dense, small, target_macs=0.3, round_to=8)      # shares are those of the dense network

What is pruned twice would have to be loaded twice. So the channels that are left are found in the channel table of the
dense network again, by their places in its tensors: one record, one file, one constructor.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hfp import checkpoint
from hfp.budget import Target, absolute
from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.cutting.places import places_of
from hfp.gated import GatedModel
from hfp.labels import FIXED
from hfp.model import inputs
from hfp.threshold import smallest, threshold
from hfp.trace import trace
from hfp.wrap import wrap


def recut(
    dense: nn.Module,
    small: nn.Module,
    *,
    target_macs: Target | None = None,
    target_params: Target | None = None,
    round_to: int = 1,
    method: str = "magnitude",
) -> tuple[GatedModel, nn.Module]:
    """`small`, a cut of `dense`, cut further: the gated network that says so, and the compact one.

    Targets are for the dense network; what has none may be as large as it is, but no larger. Widths are multiples of
    `round_to`, but for groups of which fewer channels were left: those stay as they are.

    Raises:
        ValueError: a target that is out of reach.
    """
    record = checkpoint.record_of(small)
    args, kwargs = inputs.example_for(record.inputs, small)
    given = args or kwargs
    ignore, counter = tuple(record.targets.get("ignore") or ()), record.targets.get("counter") or "macs"
    table = trace(dense, given, ignore=ignore, ptflops=counter == "ptflops")
    net = wrap(
        small, given, target_macs=1.0, target_params=1.0, steps=1, ignore=ignore, round_to=round_to, counter=counter,
        method=method,
    ).eval()  # fmt: skip
    targets = {"macs": target_macs, "params": target_params}
    limits = []
    for name, cost in net.table.costs(counter).items():
        dense_count, target = table.costs(counter)[name].dense(), targets[name]
        least = smallest(net.table, cost, round_to)
        asked = dense_count if target is None else absolute(target, f"target_{name}", dense_count, least)
        limits.append((cost, min(cost.dense(), asked)))
    keep = threshold(net.method.scores(net), net.table, limits, round_to=round_to, whole_blocks=True)
    net.keep = keep
    net.stop()
    smaller = net.compact()
    composed = compose(table, record.keep, net.table, keep)
    out = surgery.compact(dense, table, composed)
    checkpoint.fill(out, smaller.state_dict(), source="the network that was cut again")
    told: dict[str, Any] = {"method": method, "round_to": round_to}
    told |= {name: target for name, target in targets.items() if target is not None}
    out.hfp_record = dataclasses.replace(  # type: ignore[assignment]
        record,
        keep=composed,
        places=places_of(table, composed),
        targets=record.targets | told,
        macs=table.costs(counter)["macs"].count(composed),
        params=table.params.count(composed),
    )
    return net, out.train(smaller.training)


def compose(dense: ChannelTable, kept: Tensor, small: ChannelTable, keep: Tensor) -> Tensor:
    """(dense.channels,) bool: the channels of the dense network that are left after both cuts.

    `kept` (dense.channels,) made the small network, `keep` (small.channels,) is a cut of it.

    Raises:
        ValueError: a channel of the small network is none of the dense one's.
    """
    origin = torch.full((small.channels,), FIXED)
    stays = dense.extended(kept)
    for name, axes in dense.axes.items():
        for before, after in zip(axes, small.axes.get(name, ()), strict=name in small.axes):  # constants may be idle
            before = before[stays[before]]
            if before.shape != after.shape:
                raise ValueError(f"{name} is not cut as the record says; write the file again with hfp.save")
            _note(origin, before, after, dense, small)
    if bool((origin == FIXED).any()):
        raise ValueError(
            "some channels of the compact network are not found in the dense one; prune the dense one instead"
        )
    both = kept.clone()
    both[origin] = keep
    return both


def _note(origin: Tensor, before: Tensor, after: Tensor, dense: ChannelTable, small: ChannelTable) -> None:
    """Enter where the channels along an axis come from: numbers `before` in the dense table, `after` in the small."""
    channel = (after != FIXED) & (after < small.channels) & (before != FIXED) & (before < dense.channels)
    both = (after >= small.channels) & (before >= dense.channels)
    rows = small.products[after[both] - small.channels], dense.products[before[both] - dense.channels]
    pairs = [(after[channel], before[channel])]
    if rows[0].shape == rows[1].shape:
        pairs.append((rows[0].flatten(), rows[1].flatten()))
    for own, theirs in pairs:
        known = (own != FIXED) & (theirs != FIXED)
        own, theirs = own[known], theirs[known]
        if bool(((origin[own] != FIXED) & (origin[own] != theirs)).any()):
            raise ValueError(
                "a channel of the compact network is several of the dense one; prune the dense one instead"
            )
        origin[own] = theirs
