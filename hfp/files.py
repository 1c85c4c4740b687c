"""What a file of ours is made of: tensors as safetensors, everything else as a JSON header. Nothing is ever unpickled.

Every file is one safetensors file: the tensors, and one metadata entry, `hfp`, a JSON object that says the rest. A name
holds the whole new file or the whole old one: written beside it, flushed to the disk, then renamed over it. What a file
says is checked before any of it is used: by its seal, a hash of all that it holds, since a disk that flips a bit of a
weight tells nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

FORMAT = 3
"""Version of the header. A reader takes this and anything older, and refuses anything newer.

2: a compact network says its class with its module, the width of every layer, and notes; provenance has more packages
and the seed.
3: there is a seal.
"""
SEALED = 3
"""Files from this format on have a seal; what it is a hash of is the same for all formats to come."""
HEADER, SEAL = "hfp", "hfp.sha256"
"""Entries of a safetensors file's metadata."""
PACKAGES = ("hfp", "torch", "torchvision", "safetensors")

COMPACT, TRAINING, WEIGHTS = "compact network", "training checkpoint", "dense weights"
"""What a file can be; written into it."""

_WORDS = {COMPACT: "a compact network", TRAINING: "a training checkpoint", WEIGHTS: "a file of dense weights"}
_ADVICE = {
    COMPACT: "hfp.load(path, model) reads it",
    TRAINING: "`python -m hfp.compact CHECKPOINT --output SMALL` makes a compact network of it",
    WEIGHTS: "`train.py --weights FILE` starts from it",
}


class Damaged(ValueError):
    """A file that is not as it was written: cut short, overwritten, with a bit that flipped."""


FOREIGN = (".bin", ".ckpt", ".pt", ".pth", ".ts")
"""Names that promise what is not written here."""


def atomic_write(path: str | Path, data: bytes, *, before: Path | None = None) -> None:
    """Replace `path` by `data`, or leave it as it was: there is no moment with half a file under that name.

    `before`: a name in the same folder for the file that is replaced. At every moment there are two whole files then,
    under names of which neither stands for the other's.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = _temporary(path), None if before is None else _temporary(before)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replaced is not None and path.exists():
            _name_too(path, replaced)
        os.replace(temporary, path)
        if before is not None and replaced is not None and replaced.exists():
            os.replace(replaced, before)  # not earlier: it would stand for `path` too, and what it stood for be lost
    except BaseException:  # Ctrl-C included: whatever stopped the writing, the half-written file goes
        for left in filter(None, (temporary, replaced)):
            left.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")


def _name_too(path: Path, name: Path) -> None:
    """Give a file a second name; a copy, where the file system knows no second names (FAT, some network folders)."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system lets a folder be opened (Windows does not)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write(
    path: str | Path,
    kind: str,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    before: Path | None = None,
) -> None:
    """Write one file of ours: `tensors`, and what `header` says beside them, as JSON. `before` as in `atomic_write`.

    Raises:
        OSError: as for `atomic_write`.
    """
    stored, aliases = _deduplicate(tensors)
    text = header_text(kind, {"aliases": aliases, **header})
    metadata = {HEADER: text, SEAL: seal(text, stored), "format": "pt"}
    atomic_write(path, safetensors_torch.save(stored, metadata=metadata), before=before)


def header_text(kind: str, entries: Mapping[str, Any]) -> str:
    """A header: format, kind and provenance, and `entries`."""
    try:
        return json.dumps({"format": FORMAT, "kind": kind, "provenance": _provenance(), **entries})
    except TypeError as error:
        raise ValueError(f"what is to be noted in the file is no JSON ({error}); numbers: float(x), int(x)") from None


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours, of the kind wanted.

    Raises:
        ValueError: the file is missing, truncated, not ours, of a newer format, or of another kind.
    """
    with safetensors_at(path) as file:
        said = file.metadata() or {}
        # Copies, since they would be views of the file, which may be replaced, or cut short, while they are in use.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
    text, found = said.get(HEADER), said.get(SEAL)
    if found is not None and found != seal(text or "", tensors):
        raise Damaged(
            f"{path} is damaged: it does not hold what was written to it, a bit of it has changed. Copy it again, or "
            "take an earlier one."
        )
    header = check_header(text, path, kind)
    if found is None and header["format"] >= SEALED:
        raise Damaged(f"{path} is damaged: it has no seal, which files of format {header['format']} have.")
    try:
        return header, tensors | {alias: tensors[name] for alias, name in header["aliases"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: its header names tensors that it does not hold ({error}).") from error


def seal(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file says: its header, and name, dtype, shape and bytes of every tensor.

    >>> seal("{}", {"weight": torch.zeros(2)})[:6], seal("{}", {"weight": torch.tensor([0.0, -0.0])})[:6]
    ('06533a', '522093')
    """
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def kind_of(path: str | Path) -> str | None:
    """What a file says that it is: COMPACT, TRAINING, WEIGHTS, or None for one that is not ours. Nothing is checked."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER) or "null")
        return str(header["kind"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def header_of(path: str | Path, kind: str) -> dict[str, Any]:
    """The header of a file of ours, without its tensors, and so without a look at its seal.

    Raises:
        ValueError: as for `read`.
    """
    with safetensors_at(path) as file:
        return check_header((file.metadata() or {}).get(HEADER), path, kind)


@contextlib.contextmanager
def safetensors_at(path: str | Path) -> Iterator[Any]:
    """A safetensors file, ours or not, whose damage is told in words: as ValueError."""
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise Damaged(
            f"{path} is not a whole safetensors file ({error}). It was cut short while being copied or written, or is "
            "something else. Copy it again, or take an earlier one."
        ) from error


def check_header(text: str | None, path: str | Path, kind: str) -> dict[str, Any]:
    """The header that `text` is.

    Raises:
        ValueError: it is none of ours, of a newer format, or of another kind of file.
    """
    try:
        header = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: its header is not JSON ({error}).") from error
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise ValueError(f"{path} was not written by hfp: it has no hfp header. {_WORDS[kind].capitalize()} is wanted.")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer hfp: it has format {header['format']}, this hfp ({_version('hfp')}) reads "
            f"up to format {FORMAT}. Upgrade hfp to read it."
        )
    if header.get("kind") != kind:
        found = str(header.get("kind"))
        words, advice = _WORDS.get(found, "something unknown"), _ADVICE.get(found, "no known command reads it")
        raise ValueError(f"{path} is {words}, and {_WORDS[kind]} is wanted here; {advice}.")
    return header


def _deduplicate(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors wants them (contiguous, no shared memory), and {name of a tied tensor: name stored}."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    # As they are: what is conjugated by a mark alone has the memory of another tensor.
    tensors = {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in tensors.items()}
    here = [x for x in tensors.values() if x.layout == torch.strided and x.device.type == "cpu"]  # others are copied
    memories = Counter(x.untyped_storage().data_ptr() for x in here)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(
                f"{name} is a sparse tensor, which a file of safetensors cannot hold. Keep it out of the state dict: "
                f"register_buffer({name.rpartition('.')[2]!r}, ..., persistent=False)"
            )
        memory = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = seen.setdefault(memory, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            # Those that share memory get copies: safetensors refuses tensors that overlap, as views of one buffer do.
            shares = tensor.device.type == "cpu" and memories[tensor.untyped_storage().data_ptr()] > 1
            stored[name] = tensor.to("cpu", copy=shares).contiguous()
    return stored, aliases


def _provenance() -> dict[str, Any]:
    return {
        **{package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "seed": torch.initial_seed(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:  # it may run from a checkout; and PyTorch's own says which build it is
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value`, nested as deep as it may be, as JSON; its tensors go to `tensors` under their place in it.

    >>> tensors = {}
    >>> flatten({"epoch": 3, "net": {"weight": torch.zeros(2)}}, "", tensors)
    {'dict': [['epoch', 3], ['net', {'dict': [['weight', {'tensor': 'net/weight'}]]}]]}
    >>> tensors
    {'net/weight': tensor([0., 0.])}
    """
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
        return {"dict": [[key, flatten(item, f"{place}/{key}".lstrip("/"), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [flatten(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"A training state cannot hold the {type(value).__name__} at {place}: only tensors, numbers, strings, None, "
        "and dicts, lists and tuples of these."
    )


def unflatten(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`. KeyError, TypeError or ValueError for what `flatten` cannot have written."""
    if isinstance(data, list):
        return [unflatten(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in content)
    raise ValueError(f"unknown mark {kind!r}")
