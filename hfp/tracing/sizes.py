"""Whether a model's code can tell how many channels there are.

Code that never sees a number of channels does the same when some go, and needs no trial (`hfp.trial`). It sees one
where it reads the size of a tensor, where it hands a size to a function (`x.view(b, 512)`), and where it reads what a
module says of its own size. Where there is any doubt, it can tell.
"""

from __future__ import annotations

import dis
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.model.code import codes, functions_in
from hfp.rules.mixers import MIXERS
from hfp.rules.norms import NORMS
from hfp.rules.pointwise import FACTORIES, POINTWISE
from hfp.rules.reducers import REDUCERS

SIZE_FREE = (set(POINTWISE) - set(FACTORIES)) | set(REDUCERS) | set(NORMS) | set(MIXERS) | {"cat", "t", "permute"}
"""Operators that are not given the size of any axis, but that of a kernel."""
SIZE_FREE_FUNCTIONS = {"linear", "flatten"}
"""Functions that are not, though the operators in them are."""
_RANKS = {"dim", "ndim", "ndimension", "get_device", "element_size", "itemsize", "_version"}
_WIDTHS = """in_channels out_channels in_features out_features num_features num_embeddings embedding_dim input_size
normalized_shape num_channels num_parameters embed_dim head_dim in1_features in2_features"""
WIDTHS = frozenset(_WIDTHS.split())
"""Attributes in which modules of PyTorch keep sizes, see `hfp.cutting.surgery.resize`."""


def tells_size(function: str, out: Any) -> bool:
    """Whether a method of a tensor has given a size: `x.shape`, `x.size(1)`, `len(x)`, `x.stride()` ..."""
    numbers = out if isinstance(out, (tuple, list)) else (out,)
    return function not in _RANKS and any(type(number) is int for number in numbers)


def axes_read(frame: FrameType) -> int | slice:
    """The axes of which the size is read: 0 if the code in `frame` is at `x.shape[0]`, all where nothing is written."""
    return _indexed_at_once(frame.f_code).get(frame.f_lasti, slice(None))


@cache
def _indexed_at_once(code: CodeType) -> dict[int, int | slice]:
    """Offset of an instruction -> the number or slice that follows it as an index."""
    steps = list(dis.get_instructions(code))
    found = {step.offset: _index(steps[number : number + 4]) for number, step in enumerate(steps, 1)}
    return {offset: index for offset, index in found.items() if index is not None}


def _index(steps: list[dis.Instruction]) -> int | slice | None:
    """The constant index that these instructions begin with."""
    loads = takewhile(lambda s: s.opname.startswith("LOAD_") and type(s.argval) in (int, slice, type(None)), steps)
    constants = [step.argval for step in loads]
    names = ["[]" if s.opname == "BINARY_SUBSCR" or s.argrepr == "[]" else s.opname for s in steps[len(constants) :]]
    if len(constants) == 1 and constants[0] is not None and names[:1] == ["[]"]:
        index: int | slice = constants[0]
        return index
    sliced = names[:1] == ["BINARY_SLICE"] or names[:2] == ["BUILD_SLICE", "[]"]
    return slice(*constants) if len(constants) == 2 and sliced else None


def reads_widths(model: nn.Module, attributes: Iterable[str]) -> bool:
    """Whether code outside of PyTorch mentions the name of an attribute that changes with the number of channels.

    Looked at is what a forward may call: what goes by a name that is mentioned in it, or in what that calls.
    """
    widths = WIDTHS.union(attributes)
    methods = _methods(model)
    todo = [function for name in methods if name == "forward" or name.startswith("__") for function in methods[name]]
    seen: set[FunctionType] = set()
    while todo:
        function = todo.pop()
        if function in seen or _is_strange(function.__module__ or ""):
            continue
        seen.add(function)
        for code in codes(function.__code__):
            if not widths.isdisjoint(code.co_names):
                return True
            files = [function.__globals__.get(name) for name in code.co_names]
            for name in code.co_names:
                todo += methods.get(name, ()) if name != "__init__" else ()
                todo += functions_in(function.__globals__.get(name))
                for file in files:
                    if isinstance(file, ModuleType) and not _is_strange(file.__name__):
                        todo += functions_in(getattr(file, name, None))
        todo += [inner for cell in function.__closure__ or () for inner in functions_in(_contents(cell))]
    return False


_DATA = {bool, int, float, str, type(None), set, Tensor, nn.Parameter, torch.Size}
_NO_CODE = {"__init__", "_parameters", "_buffers", "_modules"}


def _methods(model: nn.Module) -> dict[str, list[FunctionType]]:
    """Name -> the functions that it stands for in a module of the model, or in its class."""
    modules = list(model.modules())
    owners = {base for kind in set(map(type, modules)) for base in kind.__mro__ if not _is_strange(base.__module__)}
    known: dict[str, list[FunctionType]] = defaultdict(list)
    for entries in (*map(vars, owners), *map(vars, modules)):
        for name, value in entries.items():
            nothing = type(value) in _DATA or name in _NO_CODE or (isinstance(value, dict) and not value)
            if not nothing:
                known[name] += functions_in(value)
    return known


_STANDARD = Path(os.__file__).parent


@cache
def _is_strange(module: str) -> bool:
    """Whether it is PyTorch's, or Python's own: code there knows nothing of a model's attributes."""
    root = module.partition(".")[0]
    if root not in sys.stdlib_module_names:
        return root == "torch"
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or Path(file).is_relative_to(_STANDARD)  # a file of the user's may be called code.py


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None
