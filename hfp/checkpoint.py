"""Files: compact networks and training states, as safetensors with a JSON header. Nothing is ever unpickled.

Every file is one safetensors file: the tensors, and one metadata entry, `hfp`, a JSON object that says the rest.

    hfp.save(small, "small.safetensors")                           # a compact network: tensors + how it was cut
    small = hfp.load("small.safetensors", resnet56())              # from the model's own constructor

    save_training("checkpoint.safetensors", {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    state = load_training("checkpoint.safetensors")                # the same nested dict

Three invariants:

1. A name holds the whole new file or the whole old one: written beside it, flushed to the disk, then renamed over it.
2. What a file says is checked before any of it is used; a network is returned complete or not at all.
3. A file names no code. It can only fill a network that the caller constructed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from hfp import inputs, surgery
from hfp.trace import trace

FORMAT = 1
"""Version of the header. A reader takes this and anything older, and refuses anything newer."""

COMPACT, TRAINING, WEIGHTS = "compact network", "training checkpoint", "dense weights"
_ADVICE = {
    COMPACT: "hfp.load(path, model) reads it",
    TRAINING: "`python -m hfp.compact CHECKPOINT --output SMALL` makes a compact network of it",
    WEIGHTS: "`train.py --weights FILE` starts from it",
}


# ---------------------------------------------------------------------------------------------------------------------
# Compact networks


def save(small: nn.Module, path: str | Path) -> None:
    """Write a compact network (what `net.compact()` or `hfp.load` returned), fine-tuned or not, to one file.

        small = net.compact()
        hfp.save(small, "small.safetensors")

    Raises:
        ValueError: `small` carries no record of how it was cut.
        OSError: the disk is full or the folder cannot be written; a file that was there before stays whole.
    """
    small = getattr(small, "_orig_mod", small)  # torch.compile's shell prefixes every name; the network in it does not
    record = record_of(small)
    header = {"model": type(small).__qualname__, "record": record_to_json(record), "provenance": _provenance()}
    _write(path, COMPACT, header, _tensors_of(small))


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """The compact network in `path`, built from `model`, the dense network as its own constructor makes it.

        small = hfp.load("small.safetensors", resnet56())

    `model` itself is not changed; its values do not matter, its architecture does: the channel table of `model` is
    computed again and must be the one that the file was cut by. Device, dtype and train/eval mode are those of `model`.

    Raises:
        ValueError: the file is truncated, not ours, of a newer format, of another network, or misses a tensor.
    """
    header, tensors = _read(path, COMPACT)
    record = record_from_json(header.get("record"), source=str(path))
    small = rebuild(model, record, source=str(path))
    fill(small, tensors, source=str(path))
    return small


def rebuild(model: nn.Module, record: surgery.Record, *, source: str) -> nn.Module:
    """`model` cut as `record` says: the compact architecture, with the values that `model` happens to have.

    Raises:
        ValueError: `model` is not the network that the record was made from.
    """
    try:
        positional, named = inputs.rebuild(record.inputs)
        # What was ignored is no channel: it belongs to the table, and so to the fingerprint.
        table = trace(model, positional or named, ignore=tuple(record.targets.get("ignore") or ()))
    except ValueError as error:
        raise ValueError(f"{source} does not fit this {type(model).__name__}: {error}") from error
    if table.fingerprint() != record.fingerprint:
        raise ValueError(
            f"{source} was cut from another network than this {type(model).__name__}: its channel table has the "
            f"fingerprint {record.fingerprint}, that of the model given is {table.fingerprint()}. Construct the dense "
            "model with the same arguments as when it was wrapped (depth, width, number of classes)."
        )
    try:
        small = surgery.compact(model, table, record.keep)
    except ValueError as error:
        raise ValueError(f"{source} has a record that does not make sense: {error}") from error
    small.hfp_record = record  # type: ignore[assignment]  # a plain attribute, neither parameter nor module
    return small


def fill(net: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load `tensors` into `net` after checking every name, shape and dtype; on a mismatch nothing is loaded.

    Raises:
        ValueError: naming the tensors that are missing, left over, or of another shape or dtype.
    """
    own = _tensors_of(net)
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not in the network" for name in tensors if name not in own]
    for name, value in own.items():
        given = tensors.get(name)
        if given is not None and (given.shape, given.dtype) != (value.shape, value.dtype):
            problems.append(f"{name} is {_form(given)}, the network has {_form(value)}")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit this {type(net).__name__}: {'; '.join(problems[:5])}{more}.")
    net.load_state_dict(dict(tensors))


def record_of(small: nn.Module) -> surgery.Record:
    """How a compact network was cut.

    Raises:
        ValueError: it is no compact network.
    """
    record = getattr(small, "hfp_record", None)
    if not isinstance(record, surgery.Record):
        raise ValueError(
            f"{type(small).__name__} is not a compact network: it has no `hfp_record`. "
            "Compact it first: hfp.save(net.compact(), path), where net = hfp.wrap(model, ...)."
        )
    return record


def record_to_json(record: surgery.Record) -> dict[str, Any]:
    """The record as JSON-able data; the keep vector is a string of `1` (kept) and `0` (removed), one a channel."""
    return {
        "keep": "".join("1" if kept else "0" for kept in record.keep.tolist()),
        "fingerprint": record.fingerprint,
        "inputs": record.inputs,
        "targets": record.targets,
        **{name: getattr(record, name) for name in ("dense_macs", "dense_params", "macs", "params")},
    }


def record_from_json(data: Any, *, source: str) -> surgery.Record:
    """The inverse of `record_to_json`, checked.

    Raises:
        ValueError: an entry is missing or of another kind.
    """
    kinds = {"keep": str, "fingerprint": str, "targets": dict} | dict.fromkeys(
        ("dense_macs", "dense_params", "macs", "params"), int
    )
    if not isinstance(data, dict) or "inputs" not in data:
        raise ValueError(f"{source} has no record of how its network was cut. Write it again with hfp.save.")
    wrong = [name for name, kind in kinds.items() if not isinstance(data.get(name), kind)]
    if wrong or not set(data["keep"]) <= {"0", "1"}:
        raise ValueError(
            f"{source} has a record that does not make sense (wrong: {', '.join(wrong) or 'keep'}). "
            "Write it again with hfp.save."
        )
    keep = torch.tensor([letter == "1" for letter in data["keep"]], dtype=torch.bool)
    return surgery.Record(keep=keep, inputs=data["inputs"], **{name: data[name] for name in kinds if name != "keep"})


# ---------------------------------------------------------------------------------------------------------------------
# Training states and dense weights


def save_training(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a nested state, such as `{"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}`.

    Dicts (keys str or int), lists, tuples, tensors, numbers, strings and None come back from `load_training` exactly,
    integer keys and tuples included; tensors bit by bit, on the CPU.

    Raises:
        ValueError: something else is in there, named by its place.
        OSError: as for `save`.
    """
    tensors: dict[str, Tensor] = {}
    _write(path, TRAINING, {"state": _flatten(state, "", tensors), "provenance": _provenance()}, tensors)


def load_training(path: str | Path) -> dict[str, Any]:
    """The state that `save_training` wrote to `path`.

    Raises:
        ValueError: the file is truncated, not ours, or of a newer format.
    """
    header, tensors = _read(path, TRAINING)
    try:
        state = _unflatten(header.get("state"), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header does not match its tensors ({error!r}).") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: it holds no training state.")
    return state


def save_weights(model: nn.Module, path: str | Path, **notes: Any) -> None:
    """Write a dense network's tensors under their own names, so that any safetensors reader can take them.

    Raises:
        OSError: as for `save`.
    """
    _write(path, WEIGHTS, {"notes": notes, "provenance": _provenance()}, _tensors_of(model))


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Fill `model` with what `save_weights` wrote; on a mismatch it is left as it was.

    Raises:
        ValueError: the file is truncated, not ours, of a newer format, or of another network.
    """
    fill(model, _read(path, WEIGHTS)[1], source=str(path))


def weights_notes(path: str | Path) -> dict[str, Any]:
    """The notes given to `save_weights`; none for weights that come from elsewhere, in whatever format."""
    try:
        notes = _read(path, WEIGHTS)[0].get("notes")
    except ValueError:
        return {}
    return notes if isinstance(notes, dict) else {}


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under their place (`net/conv1.weight`). Inverse: `_unflatten`."""
    if isinstance(value, Tensor):
        while place in tensors:  # {"a/b": x, "a": {"b": y}} gives the same place twice
            place += "~"
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, Mapping):
        if not all(type(key) in (str, int) for key in value):
            raise ValueError(
                f"The training state has a key at {place or 'the top'} that is neither a string nor an integer."
            )
        return {"dict": [[key, _flatten(item, f"{place}/{key}".lstrip("/"), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"A training state cannot hold the {type(value).__name__} at {place}: only tensors, numbers, strings, None, "
        "and dicts, lists and tuples of these."
    )


def _unflatten(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(data, list):
        return [_unflatten(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_unflatten(item, tensors) for item in content)
    raise ValueError(f"unknown mark {kind!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The file itself


def atomic_write(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was: there is no moment with half a file under that name.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C included: whatever stopped the writing, the half-written file goes
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system lets a folder be opened (Windows does not)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    stored, aliases = _deduplicate(tensors)
    text = json.dumps({"format": FORMAT, "kind": kind, "aliases": aliases, **header})
    atomic_write(path, safetensors_torch.save(stored, metadata={"hfp": text, "format": "pt"}))


def _read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours, of the kind wanted."""
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = _check_header((file.metadata() or {}).get("hfp"), path, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It was cut short while being copied or written, or is "
            "something else. Copy it again, or take an earlier one."
        ) from error
    try:
        return header, tensors | {alias: tensors[name] for alias, name in header["aliases"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its header names tensors that it does not hold ({error}).") from error


def _check_header(text: str | None, path: str | Path, kind: str) -> dict[str, Any]:
    try:
        header = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header is not JSON ({error}).") from error
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise ValueError(f"{path} was not written by hfp: it has no hfp header. A {kind} is wanted here.")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer hfp: it has format {header['format']}, this hfp ({_version('hfp')}) reads "
            f"up to format {FORMAT}. Upgrade hfp to read it."
        )
    if header.get("kind") != kind:
        advice = _ADVICE.get(str(header.get("kind")), "no known command reads it")
        raise ValueError(f"{path} is a {header.get('kind')}, and a {kind} is wanted here; {advice}.")
    return header


def _deduplicate(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors wants them (contiguous, no shared memory), and {name of a tied tensor: name stored}."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        memory = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = seen.setdefault(memory, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            # A copy of its own: safetensors refuses tensors that overlap in memory, as views of one buffer do.
            stored[name] = tensor.to("cpu", copy=True).contiguous()
    return stored, aliases


def _tensors_of(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(net).__name__} keeps a {type(value).__name__} in its state_dict ({name}); only tensors can be "
                "written."
            )
    return state


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _provenance() -> dict[str, str]:
    return {
        "hfp": _version("hfp"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
