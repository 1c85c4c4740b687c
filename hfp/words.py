"""How errors and tables put things: the first line of an error, the first few of many names."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 1000  # characters of what an error says


def first_line(error: Exception) -> str:
    """
    >>> first_line(KeyError("a"))
    "KeyError: 'a'"
    """
    told = str(error)[:MOST].strip()
    return f"{type(error).__name__}: {told.splitlines()[0].rstrip('.') if told else 'no message'}"


def first_few(items: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """
    >>> first_few(["conv1", "conv2", "fc"]), first_few(["conv1", "conv2", "fc"], most=2)
    ('conv1, conv2, fc', 'conv1, conv2 and 1 more')
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more
