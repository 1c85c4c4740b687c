"""Where in the user's own code something happens or fails."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn

_OWN = f"{Path(__file__).parent.parent}{os.sep}"  # the whole of hfp
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"  # with the separator: torchvision is another library

_BEGIN = ("play", "forward")
"""The functions of hfp in which the model is called; who called hfp is none of its code."""


def source_line() -> str:
    """The innermost line of the user's own code, else of a library above torch."""
    frame = _users_frame()
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


Caller = tuple[CodeType | None, int]
NOBODY: Caller = None, 0


def caller(otherwise: Caller = NOBODY) -> Caller:
    """The same place, as exactly as Python knows it; `otherwise` if no code of the user's is between us and PyTorch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _is_library(frame):
            return frame.f_code, frame.f_lasti
        if is_own(frame) and frame.f_code.co_name in _BEGIN:
            break
        frame = frame.f_back
    return otherwise


def line_at(place: Caller) -> str:
    """A place, by what is the same in another process."""
    code, instruction = place
    return "" if code is None else f"{code.co_name}:{code.co_firstlineno}:{instruction}"


def line_of(error: Exception) -> str:
    """Where in the user's own code an error came from."""
    own = [entry for entry in traceback.walk_tb(error.__traceback__) if not _is_library(entry[0])]
    return f"{Path(own[-1][0].f_code.co_filename).name}:{own[-1][1]}" if own else ""


def is_bug(error: Exception) -> bool:
    """Whether it is the code of hfp that is wrong, and not what it runs."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    mine = last.f_code.co_filename.startswith(_OWN)
    return mine and isinstance(error, (AssertionError, AttributeError, NameError, KeyError))


def module_of(error: Exception, names: Mapping[nn.Module, str]) -> str:
    """The module in whose code an error came up."""
    called = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = [names[owner] for owner in called if isinstance(owner, nn.Module) and owner in names]
    return paths[-1] if paths else ""


@cache
def _is_library_file(name: str) -> bool:
    return name.startswith((_OWN, _TORCH, "<"))


def _is_library(frame: FrameType) -> bool:
    return _is_library_file(frame.f_code.co_filename)


def _users_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and _is_library(frame):
        frame = frame.f_back
    return frame


def is_own(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OWN)
