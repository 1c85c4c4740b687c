"""Whether a model's code can tell how many channels there are.

Code that never sees a number of channels does the same when some go, and needs no trial (`hfp.trial`). It sees one
where it reads the size of a tensor, where it hands a size to a function (`x.view(b, 512)`), and where it reads what a
module says of its own size. Where there is any doubt, it can tell.
"""

from __future__ import annotations

import dis
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

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
normalized_shape num_channels num_parameters embed_dim head_dim"""
WIDTHS = frozenset(_WIDTHS.split())
"""Attributes in which modules of PyTorch keep sizes, see `hfp.surgery.resize`."""


def tells_size(function: str, out: Any) -> bool:
    """Whether a method of a tensor has given a size: `x.shape`, `x.size(1)`, `len(x)`, `x.stride()` ..."""
    numbers = out if isinstance(out, (tuple, list)) else (out,)
    return function not in _RANKS and any(type(number) is int for number in numbers)


def axis_read(frame: FrameType) -> int | None:
    """The axis of which the size is read, where that is written down: 0 if the code in `frame` is at `x.shape[0]`."""
    return _indexed_at_once(frame.f_code).get(frame.f_lasti)


@cache
def _indexed_at_once(code: CodeType) -> dict[int, int]:
    """Offset of an instruction -> the number that follows it as an index."""
    steps = list(dis.get_instructions(code))
    return {
        first.offset: index.argval
        for first, index, last in zip(steps, steps[1:], steps[2:], strict=False)
        if index.opname.startswith("LOAD_") and type(index.argval) is int
        if last.opname == "BINARY_SUBSCR" or last.argrepr == "[]"
    }


def reads_widths(model: nn.Module, attributes: Iterable[str]) -> bool:
    """Whether code outside of PyTorch mentions the name of an attribute that changes with the number of channels.

    Looked at is what a forward may call: what goes by a name that is mentioned in it, or in what that calls.
    """
    widths = WIDTHS.union(attributes)
    known = _functions(model)
    todo = [name for name in known if name == "forward" or (name.startswith("__") and name != "__init__")]
    met = set(todo)
    while todo:
        for code in known[todo.pop()]:
            if not widths.isdisjoint(code.co_names):
                return True
            new = set(code.co_names).intersection(known) - met
            met |= new
            todo += new
    return False


def _functions(model: nn.Module) -> dict[str, list[CodeType]]:
    """Name -> code of all that goes by it: in the classes of modules, beside them in their files, in the modules."""
    owners = {base for module in model.modules() for base in type(module).__mro__ if not _is_torch(base.__module__)}
    files = {file: sys.modules.get(file) for file in {owner.__module__ for owner in owners}}
    beside = [(file, vars(module)) for file, module in files.items() if module is not None]
    known: dict[str, list[CodeType]] = defaultdict(list)
    for entries in (*map(vars, owners), *map(vars, model.modules())):
        for name, value in entries.items():
            known[name] += _codes(value)
    for file, entries in beside:
        for name, value in entries.items():
            if getattr(value, "__module__", "") == file:
                known[name] += _codes(value)
    return known


def _is_torch(name: str) -> bool:
    return name == "builtins" or name.partition(".")[0] == "torch"


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function, of a method or property, and of what is defined in it."""
    for part in ("__func__", "fget", "__wrapped__"):
        function = getattr(function, part, None) or function
    todo = [function.__code__] if isinstance(function, FunctionType) else []
    while todo:
        code = todo.pop()
        yield code
        todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
