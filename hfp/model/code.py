"""The Python code that an attribute stands for, to be read and not run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial, partialmethod
from types import CodeType, FunctionType, MethodType
from typing import Any

_HOLDERS = (MethodType, property, cached_property, partial, partialmethod, staticmethod, classmethod)


def functions_in(value: Any) -> list[FunctionType]:
    """A function; that of a method, a property, a decorator or a partial call; those in a list or dict.

    >>> [function.__name__ for function in functions_in([functions_in, property(codes)])]
    ['functions_in', 'codes']
    """
    if isinstance(value, (list, tuple)):
        return [function for entry in value for function in functions_in(entry)]
    if isinstance(value, dict):
        return functions_in(list(value.values()))
    own = [value] if isinstance(value, FunctionType) else []
    parts = [getattr(value, "__dict__", {}).get("__wrapped__")]  # of any object: `functools.lru_cache` makes its own
    if isinstance(value, _HOLDERS):
        parts += [getattr(value, name, None) for name in ("__func__", "fget", "fset", "func")]
    return own + [function for part in parts if part is not None for function in functions_in(part)]


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of what is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)
