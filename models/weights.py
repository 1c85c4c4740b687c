"""Load a state dict from a file into a network, without ever running code that the file might carry."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model")  # where common training scripts keep the state dict inside their checkpoint
SHOWN = 3  # so many names per kind of mismatch in an error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the tensors of `path` into `model`, strictly, and return the model.

    Takes ``.safetensors`` files and those of ``torch.save`` (read with ``weights_only=True``), bare or wrapped in a
    dict under ``state_dict`` or ``model``, with or without the ``module.`` prefix of DataParallel.

    Raises ValueError if the file is missing, is not a checkpoint, or belongs to another network.
    """
    state = read_state_dict(path)
    differences = compare(model.state_dict(), state)
    if differences:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {'; '.join(differences)}")
    model.load_state_dict(state)
    return model


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, on the CPU, without wrapper and prefix."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path.absolute()}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{path} cannot be read as plain tensors (torch.save or safetensors): {reason}") from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict: expected names with tensors, alone or under {WRAPPERS}")
    prefixed = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if prefixed else name: tensor for name, tensor in content.items()}


def compare(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """What keeps `found` from being loaded for `wanted`, in words; empty if nothing does."""
    # Checkpoints from before torch 0.4.1 have no batch counters; load_state_dict starts those at zero by itself.
    missing = [name for name in wanted if name not in found and not name.endswith(".num_batches_tracked")]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing in the file", missing), ("unknown to the network", unknown), ("other shapes", shapes))
    return [f"{len(items)} {kind} ({first_few(items)})" for kind, items in kinds if items]


def first_few(items: list[str]) -> str:
    """The first few of many names, for an error message."""
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")
