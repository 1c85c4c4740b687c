"""Ask ptflops itself, and compare: only where the channel table has the same number can a budget be given in it."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import nn

from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.model.ambient import as_set
from hfp.model.chance import forked
from hfp.model.inputs import Arguments, placed
from hfp.model.turns import one_at_a_time


class _Call(nn.Module):
    """`model(*args, **kwargs)`, with both in one keyword argument: ptflops can pass a single tensor or keywords on, and
    divides what its hooks found by the length of the first positional one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, arguments: Arguments) -> Any:
        args, kwargs = arguments
        return self.model(*args, **kwargs)


def measured(model: nn.Module, inputs: Arguments) -> int:
    """What ptflops (its default backend) counts for `model(*args, **kwargs)` in evaluation mode; for one image, this is
    the number that it prints.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> measured(model, ((torch.zeros(1, 3, 8, 8),), {}))  # 36 positions of 27 * 8, and 36 * 8 for bias, ReLU, F.relu
    8640

    `inputs`: as `hfp.model.inputs.arguments` gives them; they are taken to the device of the model.
    Raises ValueError where ptflops gives no number; ImportError without ptflops.
    """
    from ptflops import get_model_complexity_info

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    arguments = placed(inputs, device)
    said = io.StringIO()
    # A copy, since ptflops leaves attributes behind; gradients, since without them attention takes another path.
    call = _Call(copy.deepcopy(model)).eval()
    with (
        one_at_a_time,  # ptflops, too, stands in for functions of PyTorch
        as_set(),
        torch.enable_grad(),
        forked(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        macs, _ = get_model_complexity_info(
            call,
            (1,),
            as_strings=False,
            print_per_layer_stat=False,
            input_constructor=lambda _: {"arguments": arguments},
            backend="pytorch",
        )
    if macs is None:
        reason = said.getvalue().strip().splitlines()
        raise ValueError(
            f"ptflops gives no number for {type(model).__name__}: {reason[-1] if reason else 'no reason told'}"
        )
    return int(macs)


def agree(table: ChannelTable, model: nn.Module, inputs: Arguments) -> None:
    """Raise ValueError unless `table.ptflops` is what ptflops counts, for `model` and for a copy of half its width.

    >>> from hfp.trace import trace
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> agree(trace(model, torch.zeros(1, 3, 8, 8), ptflops=True), model, ((torch.zeros(1, 3, 8, 8),), {}))
    """
    advice = "use counter='macs', which counts the multiply-adds that PyTorch counts"
    if table.ptflops is None:
        why = next((note for note in table.notes if note.startswith("ptflops")), "")
        raise ValueError(f"counter='ptflops' is not possible for {type(model).__name__} ({why}); {advice}")
    half = torch.ones(table.channels, dtype=torch.bool)
    for group in table.groups:
        half[group.channels[1::2]] = False
    dense = torch.ones_like(half)
    for keep, network in ((dense, model), (half, surgery.compact(model, table, half))):
        theirs, ours = measured(network, inputs), table.ptflops.count(keep)
        if theirs != ours:
            width = "the network" if network is model else "the network at half its width"
            raise ValueError(
                f"counter='ptflops' is not possible for {type(model).__name__}: for {width} ptflops counts {theirs:,}, "
                f"the channel table {ours:,}; {advice}"
            )
