"""The formats that a compact network is written in; each is read back, and has to compute the same.

>>> from pathlib import Path
>>> paths(Path("runs/small.pt2"), ["pt2", "onnx"])["onnx"].as_posix()
'runs/small.onnx'
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfp import checkpoint, program
from hfp.deploy.origin import Outcome
from hfp.files import FOREIGN, atomic_write
from hfp.words import first_line

CLOSE = 1e-4
"""How far another runtime's outputs may be from PyTorch's, relative to the largest: it adds up in another order."""


@dataclass(frozen=True)
class Format:
    suffix: str
    write: Callable[[Outcome, Path], None]
    read: Callable[[Outcome, Path], Callable[..., Any]]
    """What computes the outputs, from the file."""
    apart: float
    """How far they may be from the network's, relative."""
    needs: tuple[str, ...] = ()
    """Packages."""


def paths(output: Path, formats: Sequence[str]) -> dict[str, Path]:
    """A file for each format: `output` itself for a single one, else its name with their suffixes."""
    if len(formats) == 1:
        return {formats[0]: output}
    known = {each.suffix for each in FORMATS.values()}
    stem = output.with_suffix("") if output.suffix in known else output
    return {name: stem.with_name(stem.name + FORMATS[name].suffix) for name in formats}


def of_suffix(output: Path) -> str:
    """The format that a file name asks for; safetensors where it says nothing.

    >>> of_suffix(Path("small.pt2")), of_suffix(Path("small"))
    ('pt2', 'safetensors')

    Raises:
        ValueError: it promises what is not written here.
    """
    if output.suffix in FOREIGN:
        known = ", ".join(f"{output.stem}{form.suffix}" for form in FORMATS.values())
        raise ValueError(f"--output {output}: expected one of {known}; or say what it is to hold: --format safetensors")
    return next((name for name, form in FORMATS.items() if form.suffix == output.suffix), "safetensors")


def check(formats: Sequence[str], output: Path) -> None:
    """Raise ValueError for a format that there is none of, that lacks its packages, or that `output` contradicts."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--format {name}: expected some of {','.join(FORMATS)}")
        missing = [package for package in FORMATS[name].needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(f"--format {name} needs {', '.join(missing)}: pip install {' '.join(FORMATS[name].needs)}")
    told = [name for name, form in FORMATS.items() if form.suffix == output.suffix]
    if len(formats) == 1 and told and told != list(formats):
        raise ValueError(
            f"--output {output} is named as {told[0]}, and --format says {formats[0]}; "
            f"give --output {output.with_suffix(FORMATS[formats[0]].suffix)}, or both: --format {told[0]},{formats[0]}"
        )


def write(outcome: Outcome, name: str, path: Path) -> float:
    """Write the compact network in a format, and read it back: how far its outputs are apart, relative.

    Raises:
        ValueError: it cannot be exported, or what was read back computes something else; nothing is left at `path`.
        OSError: the disk is full, or the folder cannot be written.
    """
    form = FORMATS[name]
    with _quiet():
        form.write(outcome, path)
        try:
            error = outcome.apart(outcome.small, form.read(outcome, path))
        except Exception as failure:  # of another runtime, whatever it raises
            path.unlink()
            raise ValueError(f"what was written as {name} cannot be run: {first_line(failure)}") from failure
    if not error <= form.apart:
        path.unlink()
        raise ValueError(f"{path} does not hold what was written to it: outputs differ by {error:.1e} (relative).")
    return error


def runs(outcome: Outcome, names: Sequence[str]) -> Callable[..., Any]:
    """What users of files in these formats will run: onnxruntime's session if all they get is ONNX, else the network.

    It matters to latency: onnxruntime loses far more to widths that are no multiples of a vector.
    """
    if list(names) != ["onnx"]:
        return outcome.small
    with tempfile.TemporaryDirectory() as folder, _quiet():
        _write_onnx(outcome, Path(folder) / "small.onnx")
        return session(Path(folder) / "small.onnx")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------------------------------------------------------------
# safetensors, pt2


def _write_tensors(outcome: Outcome, path: Path) -> None:
    checkpoint.save_tensors(outcome.small, path, **outcome.notes)


def _read_tensors(outcome: Outcome, path: Path) -> nn.Module:
    return checkpoint.load(path, outcome.dense).eval()


def _write_program(outcome: Outcome, path: Path) -> None:
    checkpoint.save_program(outcome.small, path, **outcome.notes)


def _read_program(outcome: Outcome, path: Path) -> nn.Module:
    return program.unpacked(path)[1]  # trusted: it was written just now


# ---------------------------------------------------------------------------------------------------------------------
# ONNX, TorchScript


def _write_onnx(outcome: Outcome, path: Path) -> None:
    write_onnx(program.exported(copy.deepcopy(outcome.small), outcome.inputs), path)


def write_onnx(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as an ONNX file.

    Raises:
        ValueError: it holds what ONNX has no operator for.
    """
    try:
        made = torch.onnx.export(exported, dynamo=True, verbose=False, optimize=True)
    except Exception as error:  # of the exporter, whatever it stumbles over
        raise ValueError(f"it cannot be exported to ONNX: {first_line(error)}") from error
    assert made is not None
    atomic_write(path, made.model_proto.SerializeToString())


def _read_onnx(outcome: Outcome, path: Path) -> Callable[..., Any]:
    return session(path)


def session(path: Path) -> Callable[..., list[Tensor]]:
    """What an ONNX file computes, run by onnxruntime in as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        tensors = [leaf.numpy() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return [torch.from_numpy(out) for out in session.run(None, dict(zip(names, tensors, strict=True)))]

    return run


def _write_torchscript(outcome: Outcome, path: Path) -> None:
    args, kwargs = outcome.inputs
    given: dict[str, Any] = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
    if args and kwargs:
        raise ValueError("TorchScript takes positional or keyword arguments, not both")
    data = io.BytesIO()
    try:
        traced = torch.jit.trace(copy.deepcopy(outcome.small).eval(), check_trace=False, **given)
        torch.jit.save(traced, data)
    except Exception as error:  # it runs the network's code
        raise ValueError(
            f"{type(outcome.small).__name__} cannot be exported to TorchScript: {first_line(error)}"
        ) from error
    atomic_write(path, data.getvalue())


def _read_torchscript(outcome: Outcome, path: Path) -> Callable[..., Any]:
    return torch.jit.load(io.BytesIO(path.read_bytes()))


FORMATS = {
    "safetensors": Format(".safetensors", _write_tensors, _read_tensors, 0.0),
    "pt2": Format(".pt2", _write_program, _read_program, 1e-5),
    "onnx": Format(".onnx", _write_onnx, _read_onnx, CLOSE, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(".torchscript", _write_torchscript, _read_torchscript, 1e-5),
}
