"""Before and after: what a dense network and its compact one cost, as figures and as tables."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hfp import checkpoint
from hfp.deploy.origin import Outcome
from hfp.experiment import loop
from hfp.explain import PLAIN_WIDTH
from hfp.model.copies import copied
from hfp.model.inputs import Arguments, batched
from hfp.proof.ptflops_check import measured
from hfp.rules.mixers import GROUPED

Pair = list[float | None]
"""Of the dense and of the compact network."""


def figures(outcome: Outcome, sizes: Mapping[str, int], batch: int) -> dict[str, Any]:
    """As JSON. `sizes`: bytes of the files that were written, by format; `batch`: how many examples, besides one."""
    nets = (outcome.dense.eval(), outcome.small.eval())
    given = outcome.inputs
    before, after = (checkpoint.widths(net) for net in nets)
    return {
        "parameters": [count_params(net) for net in nets],
        "macs": [count_macs(net, given) for net in nets],
        "macs_ptflops": [_as_ptflops(net, given) for net in nets],
        "file_bytes": [weights_size(net) for net in nets],
        "files": dict(sizes),
        "latency_ms": {str(size): latency(nets, given, size) for size in dict.fromkeys((1, batch))},
        "widths": {name: [before[name], after[name]] for name in before if name in after},
    }


def count_params(net: nn.Module) -> int:
    """Parameters of `net`, shared ones once."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, given: Arguments) -> int:
    """Half of what `FlopCounterMode` counts for one pass, told of grouped products: convolutions and matrix products.

    With gradients, and attention as matrix products: what is fused, the counter sees in some versions of PyTorch only.
    """
    net = copied(net, {}).eval()
    with (
        FlopCounterMode(display=False, custom_mapping=GROUPED) as counter,
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        net(*given[0], **given[1])
    return int(counter.get_total_flops()) // 2


def _as_ptflops(net: nn.Module, given: Arguments) -> int | None:
    try:
        return measured(net, given)
    except ValueError:  # it has no number for networks that it cannot run
        return None


def weights_size(net: nn.Module) -> int:
    """Bytes of a file of all tensors of `net`."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_weights(net, Path(folder) / "weights")
        return (Path(folder) / "weights").stat().st_size


def latency(nets: tuple[nn.Module, ...], given: Arguments, batch: int) -> Pair | None:
    """Median milliseconds of a pass on the CPU, side by side; None where the inputs are not for one example each."""
    inputs = batched(given, batch)
    if inputs is None:
        return None
    try:
        speed = loop.latency({str(number): net for number, net in enumerate(nets)}, inputs)
    except Exception:  # whatever a network says that is made for one example at a time
        return None
    return [speed[str(number)] for number in range(len(nets))]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def table(found: Mapping[str, Any]) -> Table:
    """A line a figure, of `figures`."""
    rows = {
        "parameters": found["parameters"],
        "MACs": found["macs"],
        "MACs, as ptflops counts": found["macs_ptflops"],
        "tensors in a file, bytes": found["file_bytes"],
        **{f"CPU latency, batch {size}, ms": pair for size, pair in found["latency_ms"].items()},
    }
    made = Table()
    for heading in ("", "dense", "compact", "share"):
        made.add_column(heading, justify="right" if heading else "left")
    for name, pair in rows.items():
        if pair is None or None in pair:
            made.add_row(name, "-", "-", "-")
        else:
            form = "{:.3f}" if isinstance(pair[0], float) else "{:,}"
            made.add_row(name, *map(form.format, pair), f"{pair[1] / pair[0]:.4f}" if pair[0] else "-")
    return made


def width_lines(widths: Mapping[str, Pair], columns: int = PLAIN_WIDTH) -> list[str]:
    """Widths of the layers that changed, `name 64 -> 40`, as many a line as there is room for.

    >>> width_lines({"conv1": [16, 9], "conv2": [32, 20], "fc": [10, 10]})
    ['widths: conv1 16 -> 9, conv2 32 -> 20; 1 layer stays as it is']
    """
    changed = [f"{name} {before} -> {after}" for name, (before, after) in widths.items() if before != after]
    same = len(widths) - len(changed)
    lines, line = [], "widths:"
    for number, each in enumerate(changed):
        end = "," if number + 1 < len(changed) else ";"
        if len(line) + len(each) + 2 > columns:
            lines.append(line)
            line = "   "
        line += f" {each}{end}"
    return [*lines, f"{line} {same} layer{' stays as it is' if same == 1 else 's stay as they are'}"]
