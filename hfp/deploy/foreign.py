"""Anybody's dense weights: a state dict in a file of torch.save or safetensors, however it is wrapped.

    found = read("resnet56-cifar10.th")
    fill(model, found, source="resnet56-cifar10.th")

A file from outside is hostile until it is checked: nothing is unpickled (`weights_only=True`), only dense tensors of
finite numbers are taken, and they have to fit the network by name and shape.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfp import checkpoint, files
from hfp.deploy import pickled
from hfp.words import first_line

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights")
"""Where training scripts keep the state dict in their checkpoint; the first that is there is taken."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "averaged_model", "swa_model")
"""Where they keep averaged weights (timm: the first, torchvision's references: the second)."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""That DataParallel, torch.compile, AveragedModel and Lightning put before every name."""
DEPTH = 3  # wrappers within wrappers
State = dict[str, Tensor]


def read(path: str | Path, *, use_ema: bool = False) -> State:
    """Names and tensors of the state dict in a file, on the CPU; with `use_ema` of the averaged weights in it.

    Raises:
        ValueError: there is no such file, it cannot be read without unpickling, or there is no state dict in it.
    """
    content = _tensors(path) if Path(path).suffix == ".safetensors" else _loaded(path)
    return _averaged(content, path) if use_ema else _state(content, path)


def _tensors(path: str | Path) -> State:
    with files.safetensors_at(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def _loaded(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        pickled.check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose words advise to read it all the same
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain data: reading that may run code, so hfp reads "
            "none of it. Save the state dict alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # readers of pickles raise whatever they stumble over
        raise ValueError(f"{path} cannot be read as a file of torch.save: {first_line(error)}") from error


def has_averages(content: Any) -> bool:
    """Whether averaged weights lie beside the others."""
    return next(_found(content, AVERAGED), None) is not None


def _state(content: Any, path: str | Path) -> State:
    found = content if _is_state(content) else next(_found(content, WRAPPERS), None)
    if found is None:
        advice = "; it has averaged weights, which --use-ema takes" if has_averages(content) else ""
        raise ValueError(
            f"{path} holds no state dict, names with tensors, alone or as {', '.join(WRAPPERS)}; {_keys(content)}"
            + advice
        )
    return found


def _averaged(content: Any, path: str | Path) -> State:
    found = next(_found(content, AVERAGED), None)
    if found is None and _is_state(content) and "n_averaged" in content:
        found = content  # the state dict of an AveragedModel itself
    if found is None:
        raise ValueError(f"{path} holds no averaged weights (as {', '.join(AVERAGED)}); {_keys(content)}")
    return found


def _found(content: Any, names: tuple[str, ...], depth: int = DEPTH) -> Iterator[State]:
    """The state dicts under one of `names`, or, below that, under any wrapper."""
    if isinstance(content, dict) and depth:
        for name in names:
            if _is_state(content.get(name)):
                yield content[name]
            else:
                yield from _found(content.get(name), WRAPPERS, depth - 1)


def _is_state(value: Any) -> bool:
    """Names with tensors; PyTorch keeps versions in an attribute; counters are let through if they are tensors."""
    return isinstance(value, dict) and bool(value) and all(_is_entry(*item) for item in value.items())


def _is_entry(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _keys(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    keys = [key[:40] if isinstance(key, str) else f"a {type(key).__name__}" for key in content]
    return f"it holds {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# Into a network


def fill(model: nn.Module, found: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict into `model`, in the precision of the model; on a mismatch nothing is loaded.

    Batch counters that old files lack keep their value. Prefixes that all names share are taken off.

    Raises:
        ValueError: naming what is missing, left over, of another shape, not finite, or no dense tensor.
    """
    own = model.state_dict()
    state = _unprefixed(found, own)
    for name, value in state.items():
        wanted = own.get(name)
        if wanted is None or wanted.shape != value.shape:
            continue  # refused below; it is not touched, since a few bytes can claim to be a tensor of any size
        _check(name, value, source)
        if wanted.is_floating_point() and value.is_floating_point():
            state[name] = value.to(wanted.dtype)
    counters = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
    checkpoint.fill(model, {**{name: counters[name] for name in counters if name not in state}, **state}, source=source)


def without_heads(found: Mapping[str, Tensor], model: nn.Module, others: nn.Module) -> tuple[State, list[str]]:
    """Weights for another number of classes, with `model`'s own where these matter; and the names of those.

    `others` is the same network for yet another number: where its shapes are not those of `model`, classes matter.
    Weights for as many classes as `model` has stay as they are, and so do those that differ from it elsewhere.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, other = _unprefixed(found, own), others.state_dict()
    heads = [name for name, value in own.items() if value.shape != other[name].shape]
    if not all(name in state and _differs_as(state[name], other[name], own[name]) for name in heads):
        return state, []
    return state | {name: own[name] for name in heads}, heads


def _differs_as(given: Tensor, other: Tensor, own: Tensor) -> bool:
    """Whether the lengths in which two tensors differ from `own` are the same."""
    apart = [[a != b for a, b in zip(tensor.shape, own.shape, strict=False)] for tensor in (given, other)]
    return given.dim() == own.dim() and apart[0] == apart[1]


def _unprefixed(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    state = {name: value for name, value in found.items() if name != "n_averaged"}
    while state and not state.keys() & own.keys():
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check(name: str, value: Tensor, source: str) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise ValueError(f"{source}: {name} is {value.layout}, quantised or without data; dense tensors are wanted")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{source}: {name} holds numbers that are not finite; the network has diverged")
