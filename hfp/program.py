"""A network as a program of PyTorch's operators (`torch.export`): a .pt2 file, which needs no class to run.

    hfp.save(small, "small.pt2")
    small = hfp.load("small.pt2", trusted=True)

A program is code. `torch.export.load` looks up the functions that the file names, whatever they are, and evaluates
expressions that it holds, so it is called only where the caller has said that the file is trusted. Even then nothing is
unpickled: an archive with pickled parts, which ours never have, is refused before it is looked into.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfp.archive import entries
from hfp.model.inputs import Arguments, batched
from hfp.words import first_line

SUFFIX = ".pt2"
HEADER = "hfp.json"
"""What a safetensors file of ours has as metadata, beside the program."""


def exported(small: nn.Module, inputs: Arguments) -> torch.export.ExportedProgram:
    """`small` as a program in evaluation mode, for any number of examples at once, if it can be had; else for `inputs`.

    Raises:
        ValueError: PyTorch cannot export it.
    """
    network = small.eval()
    # Compact networks are exported with two examples: a size of 1 would be taken for a constant.
    several = batched(inputs, 2)
    if several is not None and bool(several[0]) != bool(several[1]):
        args, kwargs = several
        free = tree_map(_first_is_free, args or kwargs)
        try:
            return _plain(torch.export.export(network, args, kwargs, dynamic_shapes=free, strict=False))
        except Exception:  # whatever the network's code makes of an unknown size
            pass
    try:
        return _plain(torch.export.export(network, *inputs, strict=False))
    except Exception as error:  # it runs the network's code
        raise ValueError(
            f"{type(small).__name__} cannot be exported as a program of PyTorch's operators: {first_line(error)}"
        ) from error


def any_batch(program: torch.export.ExportedProgram) -> bool:
    """Whether the program takes any number of examples."""
    return bool(program.range_constraints)


def packed(program: torch.export.ExportedProgram, header: str = "{}") -> bytes:
    """The bytes of a .pt2 file, with a JSON header beside the program.

    Raises:
        ValueError: PyTorch wrote what `unpacked` would refuse.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={HEADER: header})
    data = file.getvalue()
    try:
        _unpickled_parts_of(data)
    except (_Pickled, ValueError) as error:
        raise ValueError(
            f"The file of this program would have pickled parts ({error}), and hfp reads no pickle: PyTorch "
            f"{torch.__version__} pickles example inputs that are not tensors and plain values, and before 2.9 weights "
            'too (pip install -U torch). Weights alone can always be written: hfp.save(small, "small.safetensors").'
        ) from error
    return data


def unpacked(path: str | Path) -> tuple[str, nn.Module]:
    """Header and network of a .pt2 file that is trusted.

    Raises:
        ValueError: there is no such file, it is damaged, or has pickled parts.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        data = Path(path).read_bytes()
        header = _unpickled_parts_of(data)
        return header, torch.export.load(io.BytesIO(data)).module()
    except _Pickled as error:
        raise ValueError(
            f"{path} holds pickled objects ({error}), which may run code when they are read; hfp reads none. "
            "Export the network again with hfp.save."
        ) from error
    except Exception as error:  # PyTorch's reader raises whatever it stumbles over
        raise ValueError(f"{path} is not a whole .pt2 file of this version of PyTorch: {first_line(error)}") from error


class _Pickled(Exception):
    pass


def _unpickled_parts_of(data: bytes) -> str:
    """The header of an archive, once it is known that reading the rest will unpickle nothing."""
    header = "{}"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = [(name.partition("/")[2], entry) for name, entry in entries(archive).items()]  # in a folder of any name
        if "archive_format" not in dict(found):
            raise ValueError("it is of the format of PyTorch 2.7 or older, or no program at all")
        for name, entry in found:
            if name.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
                tensors = json.loads(archive.read(entry))["config"]
                for tensor, told in tensors.items():
                    plain = told["path_name"].startswith(("weight_", "tensor_"))
                    if told["use_pickle"] is not False or not plain:
                        raise _Pickled(tensor)
            elif name.startswith("data/sample_inputs/"):
                _check_tensors(archive.read(entry), name)
            elif name.endswith((".pt", ".pkl")) or name.startswith("data/aotinductor/"):
                raise _Pickled(name)
            elif name == f"extra/{HEADER}":
                header = archive.read(entry).decode()
    return header


def _check_tensors(data: bytes, name: str) -> None:
    """Raise unless PyTorch reads it without a pickle: where this fails, `torch.export.load` would unpickle it."""
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _Pickled(name) from error


def _first_is_free(value: Any) -> dict[int, Any] | None:
    return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) else None


def _plain(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without the lines of source code, and the folders of this machine, that PyTorch notes down."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program
