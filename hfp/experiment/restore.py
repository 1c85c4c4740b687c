"""Put a network and its optimizer back where a checkpoint has them, or say what does not match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hfp.checkpoint import fill


def put_back(net: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, source: str) -> None:
    """Fill network and optimizer with the `net` and `optimizer` of a state.

    Of the optimizer only what it has gathered is taken: its settings are those of the run, and have to be the same.

    Raises:
        ValueError: a part is missing, or of another network or optimizer.
    """
    for part in ("net", "optimizer"):
        if not isinstance(state.get(part), dict):
            raise ValueError(f"{source} is damaged: it has no {part}.")
    fill(net, state["net"], source=source)
    groups = optimizer.state_dict()["param_groups"]
    theirs, gathered = state["optimizer"].get("param_groups"), state["optimizer"].get("state")
    if not _same_settings(groups, theirs):
        raise ValueError(f"{source} does not fit this {type(optimizer).__name__}: its groups have other settings.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(gathered, dict) or not all(
        type(index) is int and 0 <= index < len(parameters) and _suits(entries, parameters[index])
        for index, entries in gathered.items()
    ):
        raise ValueError(f"{source} does not fit this {type(optimizer).__name__}: its tensors are of other shapes.")
    rates = [{**own, "lr": their["lr"]} for own, their in zip(groups, theirs, strict=True)]
    optimizer.load_state_dict({"state": gathered, "param_groups": rates})


def _same_settings(groups: list[dict[str, Any]], theirs: Any) -> bool:
    """Whether groups of an optimizer are the same but for the learning rates, which a schedule moves."""
    if not isinstance(theirs, list) or len(theirs) != len(groups):
        return False
    for own, their in zip(groups, theirs, strict=True):
        if not isinstance(their, dict) or not isinstance(their.get("lr"), float) or "params" not in their:
            return False
        if any(their[name] != value for name, value in own.items() if name in their and name != "lr"):
            return False
    return True


def _suits(entries: Any, parameter: torch.Tensor) -> bool:
    """Whether what an optimizer has gathered for a parameter can be for this one."""
    return isinstance(entries, dict) and all(
        not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == parameter.shape
        for value in entries.values()
    )
