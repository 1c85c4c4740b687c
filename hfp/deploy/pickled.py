"""What a file of torch.save would make of our memory and time, told before it is read.

    check("resnet56.th")  # ValueError for one that is small and would fill the memory, or never end

PyTorch reads such files without running code (`weights_only=True`), but it unpacks whatever a compressed entry expands
to, and builds what the pickle in it asks for: a byte array of ten gigabytes, a key that takes forever to be hashed. The
pickle is taken apart here into its opcodes, which builds nothing.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hfp.archive import entries

ARCHIVE = b"PK\x03\x04"
SIZED = ("bytearray", "Tensor", "Storage")
"""Ends of the names of what can be called with a number, and makes as much of it."""
STORAGE = ("torch", "torch.storage")
"""Their storages may be named, as the type of one that is in the file."""
LEGACY = 5
"""Pickles at the beginning of a file of the old format, before the numbers."""
NESTED = 16
"""Tuples in tuples, at most: hashing one takes time that doubles with each level."""


def check(path: str | Path) -> None:
    """
    Raises:
        ValueError: an entry is compressed, or a pickle asks for what no weights are made of.
        pickle.UnpicklingError: there is no pickle where one should be.
        zipfile.BadZipFile: an archive that is damaged.
    """
    with open(path, "rb") as file:
        archived = file.read(len(ARCHIVE)) == ARCHIVE  # as PyTorch tells it: there are files that are both
    if archived:
        with zipfile.ZipFile(path) as archive:
            for name, entry in entries(archive).items():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"its entry {name[:80]!r} is compressed, which those of torch.save are not")
                if name.endswith(".pkl"):
                    with archive.open(entry) as file:
                        _check_pickle(file)
        return
    with open(path, "rb") as file:
        for _ in range(LEGACY):
            _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    """Follow how deep the tuples on the stack are nested; what else lies there is of no interest."""
    stack: list[int | None] = []  # None: a mark
    memo: dict[Any, int] = {}
    for name, argument in _opcodes(file):
        if name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _harmless(argument):
            raise ValueError(f"it asks for a {argument!r}, of which no weights are made")
        if name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = _top(stack)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo.get(int(argument), 0))
        elif name == "DUP":
            stack.append(_top(stack))
        else:
            _step(stack, name)


def _step(stack: list[int | None], name: str) -> None:
    """What any other opcode does to the stack, as Python's own table of opcodes has it."""
    code = OPCODES[name]
    taken: list[int | None] = []
    for kind in reversed(code.stack_before):
        if kind is pickletools.stackslice:
            while stack and stack[-1] is not None:
                taken.append(stack.pop())
        elif stack:
            taken.append(stack.pop())
    depth = 1 + max((each or 0 for each in taken), default=0) if name.startswith("TUPLE") else 0
    if depth > NESTED:
        raise ValueError(f"it nests tuples more than {NESTED} deep")
    stack.extend(None if kind is pickletools.markobject else depth for kind in code.stack_after)


OPCODES = {code.name: code for code in pickletools.opcodes}


def _top(stack: list[int | None]) -> int:
    return (stack[-1] if stack else 0) or 0


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        for code, argument, _ in pickletools.genops(file):
            yield code.name, argument
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from error


def _harmless(name: str | None) -> bool:
    """Whether what a pickle names, `module name`, is built of what is in the file."""
    module, _, kind = (name or " bytearray").rpartition(" ")
    return not kind.endswith(SIZED) or (module in STORAGE and kind.endswith("Storage"))
