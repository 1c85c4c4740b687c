"""Put a network, its optimizer and chance back where a checkpoint has them, or say what does not match."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hfp.checkpoint import fill
from hfp.experiment.loop import Running


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


def amid(running: Running, device: torch.device) -> dict[str, Any]:
    """What an epoch has come to: its sums, and where the random numbers of its dropouts are."""
    chance = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        chance["device"] = torch.get_device_module(device).get_rng_state(device)
    return {**dataclasses.asdict(running), "chance": chance}


def put_back_amid(state: Mapping[str, Any], device: torch.device, *, source: str) -> Running:
    """The sums of the epoch amid which `state` was saved, after chance is put back there; for any other, empty ones.

    Raises:
        ValueError: that part of the state is damaged, or was saved on another kind of device.
    """
    if "amid" not in state:
        return Running()
    try:
        fields = dict(state["amid"])
        chance = fields.pop("chance")
        running = Running(**fields)
        whole = type(running.images) is type(running.steps) is int and running.images >= running.steps >= 0
        if not whole or not all(sums.dim() == 0 for sums in running.sums.values()):
            raise ValueError(f"{running.steps} steps over {running.images} images")
        running.sums = {name: sums.to(device) for name, sums in running.sums.items()}
        torch.set_rng_state(chance["cpu"])
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(chance["device"], device)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} was saved amid an epoch, and does not say how far it was in a way that fits a run on {device}: "
            f"{error!r}."
        ) from error
    return running


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
