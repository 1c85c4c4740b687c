"""What Python code an attribute stands for."""

from __future__ import annotations

import functools
from typing import Any

from hfp.model.code import codes, functions_in


def plain() -> int:
    def inside() -> int:
        return 1

    return inside()


@functools.lru_cache
def cached() -> None: ...


@functools.wraps(plain)
def wrapping() -> None: ...


class Holder:
    @property
    def both(self) -> int:
        return 0

    @both.setter
    def both(self, value: int) -> None: ...

    @functools.cached_property
    def once(self) -> int:
        return 0

    @staticmethod
    def static() -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    def method(self) -> None: ...

    part = functools.partialmethod(method)


def names(*values: Any) -> list[str]:
    return [function.__name__ for function in functions_in(values)]


def test_functions_are_found_wherever_they_are_kept() -> None:
    assert names(plain, functools.partial(plain), {"a": [plain]}) == ["plain"] * 3
    assert names(cached) == ["cached"], "what lru_cache gives is no function"
    assert functions_in(wrapping) == [wrapping, plain]
    assert names(*vars(Holder).values()) == ["both", "both", "once", "static", "of_class", "method", "method"]
    assert names(Holder().method) == ["method"]
    assert names(None, 3, "text", Holder, functools) == []


def test_code_within_code() -> None:
    assert [code.co_name for code in codes(plain.__code__)] == ["plain", "inside"]
