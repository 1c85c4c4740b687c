"""What is kept on disk: compact networks, training states, dense weights. Nothing is ever unpickled.

    hfp.save(small, "small.safetensors")                           # a compact network: tensors + how it was cut
    small = hfp.load("small.safetensors", resnet56())              # from the model's own constructor
    hfp.save(small, "small.pt2")                                   # a program, which needs no constructor

    save_training("checkpoint.safetensors", {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    state = load_training("checkpoint.safetensors")                # the same nested dict

A network is returned complete or not at all, and a file names no code: it can only fill a network that the caller
constructed. How a file is written and read is in `hfp.files`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfp import files, program
from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.cutting.places import Shapes, are_places, keep_at, places_of
from hfp.model import inputs
from hfp.model.ambient import plainly
from hfp.model.copies import copied
from hfp.trace import trace
from hfp.words import first_few


@plainly
def save(small: nn.Module, path: str | Path, **notes: Any) -> None:
    """Write a compact network (what `net.compact()` or `hfp.load` returned), fine-tuned or not, to one file.

        small = net.compact()
        hfp.save(small, "small.safetensors")    # its tensors, under their own names, for hfp.load(path, model)
        hfp.save(small, "small.pt2", seed=0)    # a program that needs no class, of the network in evaluation mode

    `notes`, any JSON, come back in `hfp.checkpoint.header(path)["notes"]`.

    Raises:
        ValueError: `small` carries no record of how it was cut, PyTorch cannot export it, or `path` ends in .onnx,
            .pt or the like.
        OSError: the disk is full or the folder cannot be written; a file that was there before stays whole.
    """
    if Path(path).suffix in (*files.FOREIGN, ".onnx", ".torchscript"):
        raise ValueError(
            f"{path}: hfp.save writes .safetensors and {program.SUFFIX}; for ONNX, save small.safetensors, then "
            "python -m hfp.compact small.safetensors --model ... --output small.onnx"
        )
    (save_program if Path(path).suffix == program.SUFFIX else save_tensors)(small, path, **notes)


def save_tensors(small: nn.Module, path: str | Path, **notes: Any) -> None:
    """What `save` does for a .safetensors file, under any name."""
    small, entries = _described(small, notes)
    if others := [name for name, value in small.state_dict().items() if not isinstance(value, Tensor)]:
        warnings.warn(
            f"{first_few(others)} of this {type(small).__name__}'s state_dict are no tensors, and in no file: "
            "hfp.load leaves what the model that it is given has",
            stacklevel=4,
        )
    files.write(path, files.COMPACT, entries, _tensors_of(small))


def save_program(small: nn.Module, path: str | Path, **notes: Any) -> None:
    """What `save` does for a .pt2 file, under any name."""
    small, entries = _described(small, notes)
    exported = program.exported(copied(small, {}), inputs.example_for(record_of(small).inputs, small))
    files.atomic_write(path, program.packed(exported, files.header_text(files.COMPACT, entries)))


def _described(small: nn.Module, notes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network itself, and what the header of its file says of it."""
    small = getattr(small, "_orig_mod", small)  # torch.compile's shell prefixes every name; the network in it does not
    return small, {
        "model": {"class": f"{type(small).__module__}.{type(small).__qualname__}"},
        "record": record_to_json(record_of(small)),
        "widths": widths(small),
        "notes": dict(notes),
    }


@plainly
def load(path: str | Path, model: nn.Module | None = None, *, trusted: bool = False) -> nn.Module:
    """The compact network in `path`, built from `model`, the dense network as its own constructor makes it.

        small = hfp.load("small.safetensors", resnet56())
        small = hfp.load("small.pt2", trusted=True)  # without its class

    `model` itself is not changed; its values do not matter, its architecture does: the channel table of `model` is
    computed again, and has to have what was cut. A head or another part may be another, if that in the file is (not
    an `nn.Identity()` as head: what comes out of a network is not cut; put it on afterwards). Device and train/eval
    mode are those of `model`, its dtype must be that of the file. What was pruned twice is loaded twice:
    `hfp.load(second, hfp.load(first, model))`. What is no tensor of a state dict (a plain attribute, an extra state)
    is in no file: it is `model`'s.

    A .safetensors file can come from anywhere: it holds numbers, and is checked. A .pt2 file is a program, which can do
    what any program can; it is run only if you say that it is `trusted`. It computes what the network does in
    evaluation mode, has its state dict, and can be saved no further.

    Raises:
        ValueError: the file is truncated, not ours, of a newer format, of another network, or misses a tensor.
    """
    if Path(path).suffix == program.SUFFIX:
        return _load_program(path, model, trusted)
    if model is None:
        raise ValueError(
            f"{path} holds tensors and no code; give the dense network that it was cut from: hfp.load(path, model). "
            'A file that needs no class is written by hfp.save(small, "small.pt2")'
        )
    model = getattr(model, "_orig_mod", model)
    header, tensors = files.read(path, files.COMPACT)
    _check_precision(model, tensors, str(path))
    record = record_from_json(header.get("record"), source=str(path))
    small = rebuild(model, record, source=str(path), shapes={name: value.shape for name, value in tensors.items()})
    fill(small, tensors, source=str(path))
    return small


def _check_precision(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Before anything is run: a network of another precision does not take inputs such as are noted in the file."""
    own = {name: value.dtype for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    pairs = {(tensors[name].dtype, dtype) for name, dtype in own.items() if name in tensors and dtype.is_floating_point}
    if pairs and all(theirs != ours for theirs, ours in pairs):
        theirs, ours = map(_dtype, pairs.pop())
        raise ValueError(
            f"{source} is of {theirs}, and this {type(model).__name__} of {ours}: load it into "
            f"model.to(torch.{theirs}), and cast what comes of it"
        )


def _load_program(path: str | Path, model: nn.Module | None, trusted: bool) -> nn.Module:
    if model is not None:
        raise ValueError(f"{path} is a program, which needs no model: hfp.load(path, trusted=True)")
    if not trusted:
        raise ValueError(
            f"{path} is a program, and PyTorch's reader of programs may run whatever a file tells it to. If you know "
            "where it comes from: hfp.load(path, trusted=True). A .safetensors file is read without any trust."
        )
    text, network = program.unpacked(path)
    header = files.check_header(text, path, files.COMPACT)
    network.hfp_record = record_from_json(header.get("record"), source=str(path))  # type: ignore[assignment]
    return network


def header(path: str | Path) -> dict[str, Any]:
    """What a compact network's .safetensors file says beside its tensors: class, widths, record, notes, provenance.

    Raises:
        ValueError: as for `load`, and for a program: what one says is read with it.
    """
    if Path(path).suffix == program.SUFFIX:
        raise ValueError(f"{path} is a program; hfp.load(path, trusted=True).hfp_record tells what was cut.")
    return files.header_of(path, files.COMPACT)


def widths(net: nn.Module) -> dict[str, int]:
    """Output width of every convolution and linear layer, by name, in the order of the network.

    >>> widths(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)))
    {'0': 16, '2': 8}
    """
    found = {}
    for name, module in net.named_modules():
        width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
        if isinstance(width, int) and isinstance(getattr(module, "weight", None), torch.Tensor):
            found[name] = width
    return found


def rebuild(model: nn.Module, record: surgery.Record, *, source: str, shapes: Shapes | None = None) -> nn.Module:
    """`model` cut as `record` says: the compact architecture, with the values that `model` happens to have.

    `shapes`: of the tensors that it is to hold, if parts of it may have been replaced since it was cut.

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
        try:
            record = _moved(record, table, shapes)
        except ValueError as error:
            raise ValueError(
                f"{source} was cut from another network than this {type(model).__name__}: {error}. Construct the dense "
                "model with the same arguments as when it was wrapped (depth, width), and with the same rules of your "
                "own, if it needs any (hfp.rule)."
            ) from error
    try:
        small = surgery.compact(model, table, record.keep)
    except ValueError as error:
        raise ValueError(f"{source} has a record that does not make sense: {error}") from error
    small.hfp_record = record  # type: ignore[assignment]  # a plain attribute, neither parameter nor module
    return small


def _moved(record: surgery.Record, table: ChannelTable, shapes: Shapes | None) -> surgery.Record:
    """The same cut, told in the numbers of another table: that of another version of hfp, or another head."""
    fingerprint = table.fingerprint()
    if not record.places:
        raise ValueError(
            f"its channel table has the fingerprint {record.fingerprint}, that of the model given is {fingerprint}"
        )
    keep = keep_at(table, record.places, shapes)
    return dataclasses.replace(record, keep=keep, places=places_of(table, keep), fingerprint=fingerprint)


def fill(net: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load `tensors` into `net` after checking every name, shape and dtype; on a mismatch nothing is loaded.

    Raises:
        ValueError: naming the tensors that are missing, left over, or of another shape or dtype.
    """
    own = _tensors_of(net)
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            f"this {type(net).__name__} is on the meta device, where {source} cannot be loaded to; give its tensors "
            'memory first: model.to_empty(device="cpu")'
        )
    problems = [f"{name} is missing" for name in own if name not in tensors]
    rest = {name: value for name, value in net.state_dict().items() if name not in own}
    problems += [f"{name} is not in the network" for name in tensors if name not in own and name not in rest]
    for name, value in own.items():
        given = tensors.get(name)
        if given is not None and not isinstance(given, Tensor):  # a checkpoint can hold anything under any name
            problems.append(f"{name} is a {type(given).__name__}")
        elif given is not None and (given.shape, given.dtype) != (value.shape, value.dtype):
            problems.append(f"{name} is {_form(given)}, the network has {_form(value)}")
    if problems:
        told = first_few(problems, between="; ")
        raise ValueError(f"{source} does not fit this {type(net).__name__}: {told}.{_advice(own, tensors)}")
    net.load_state_dict({**tensors, **rest})


def _advice(own: Mapping[str, Tensor], tensors: Mapping[str, Any]) -> str:
    """What to do where a head, or several, is for another number of classes, and nothing else differs."""
    if own.keys() != tensors.keys() or not all(isinstance(value, Tensor) for value in tensors.values()):
        return ""
    pairs = [(tensors[name].shape, value.shape) for name, value in own.items()]
    match list({(*given[:1], *here[:1], given[1:] == here[1:]) for given, here in pairs if given != here}):
        case [(number, _, True)]:
            return (
                f" If these are classes, construct the network for {number} of them (python -m hfp.compact: "
                f"--num-classes {number}, or a module:function that does)."
            )
    return ""


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
        "places": record.places,
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
    wrong = [name for name, kind in kinds.items() if type(data.get(name)) is not kind]
    if "targets" not in wrong and not _are_names(data["targets"].get("ignore", [])):
        wrong.append("targets")
    if not are_places(places := data.get("places", {})):
        wrong.append("places")
    if wrong or not set(data["keep"]) <= {"0", "1"}:
        raise ValueError(
            f"{source} has a record that does not make sense (wrong: {', '.join(wrong) or 'keep'}). "
            "Write it again with hfp.save."
        )
    keep = torch.tensor([letter == "1" for letter in data["keep"]], dtype=torch.bool)
    told = {name: data[name] for name in kinds if name != "keep"}
    return surgery.Record(keep=keep, inputs=data["inputs"], places=places, **told)


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value))


def _tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Of its state; what else there is (`get_extra_state`) stays with the model."""
    return {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {_dtype(tensor.dtype)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------------------
# Training states and dense weights


def save_training(path: str | Path, state: Mapping[str, Any], *, before: Path | None = None) -> None:
    """Write a nested state, such as `{"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}`.

    Dicts (keys str or int), lists, tuples, tensors, numbers, strings and None come back from `load_training` exactly,
    integer keys and tuples included; tensors bit by bit, on the CPU. `before`: a name in the same folder that the file
    gets which was under `path` until now.

    Raises:
        ValueError: something else is in there, named by its place.
        OSError: as for `save`.
    """
    tensors: dict[str, Tensor] = {}
    files.write(path, files.TRAINING, {"state": files.flatten(state, "", tensors)}, tensors, before=before)


def load_training(path: str | Path) -> dict[str, Any]:
    """The state that `save_training` wrote to `path`.

    Raises:
        ValueError: the file is damaged (`hfp.files.Damaged`), not ours, or of a newer format.
    """
    header, tensors = files.read(path, files.TRAINING)
    try:
        state = files.unflatten(header.get("state"), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise files.Damaged(f"{path} is damaged: its header does not match its tensors ({error!r}).") from error
    if not isinstance(state, dict):
        raise files.Damaged(f"{path} is damaged: it holds no training state.")
    return state


def save_weights(model: nn.Module, path: str | Path, **notes: Any) -> None:
    """Write a dense network's tensors under their own names, so that any safetensors reader can take them.

    Raises:
        OSError: as for `save`.
    """
    files.write(path, files.WEIGHTS, {"notes": notes}, _tensors_of(model))


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Fill `model` with what `save_weights` wrote; on a mismatch it is left as it was.

    Raises:
        ValueError: the file is truncated, not ours, of a newer format, or of another network.
    """
    fill(model, files.read(path, files.WEIGHTS)[1], source=str(path))


def weights_notes(path: str | Path) -> dict[str, Any]:
    """The notes given to `save_weights`; none for weights that come from elsewhere, in whatever format.

    Raises:
        ValueError: a file of ours that is damaged, of a newer format, or of another kind.
    """
    notes = None if files.kind_of(path) is None else files.read(path, files.WEIGHTS)[0].get("notes")
    return notes if isinstance(notes, dict) else {}
