"""A command line out of a dataclass: every field is a flag, its help and its checks stand beside its default.

@dataclass(frozen=True)
class Config:
    lr: float = option(0.05, "learning rate", "recipe", type=nonnegative)
    ...

parser = parser_for(Config, description="...", epilog="...")
given = vars(parser.parse_args())      # only what the user typed, so that it can be told from a default
config = Config(**given)
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


def option(default: Any, help: str, group: str, **details: Any) -> Any:
    """A field of a settings dataclass: its default, what the command line says of it, and argparse's own details."""
    metadata = {"help": help, "group": group, **details}
    return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)


def parser_for(settings: type, *, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with a flag for every field of the dataclass `settings`, `--target-macs` for `target_macs`.

    What is not typed is not in the parsed namespace.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    for setting in dataclasses.fields(settings):
        details = dict(setting.metadata)
        title, default = details.pop("group"), setting.default_factory()  # type: ignore[operator]
        if default is not None and default != [] and not isinstance(default, bool):
            details["help"] += f" (default: {default})"
        if "type" in details:
            details.setdefault("metavar", "N")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(flag(setting.name), dest=setting.name, **details)
    return parser


def flag(name: str) -> str:
    """
    >>> flag("target_macs")
    '--target-macs'
    """
    return f"--{name.replace('_', '-')}"


def amount(text: str) -> float | int:
    """A target: a share of the dense network, or a count.

    >>> amount("0.4"), amount("2000000"), amount("500k"), amount("1.5M")
    (0.4, 2000000, 500000, 1500000)
    """
    match = re.fullmatch(r"(?P<count>\d+)|(?P<number>\d+\.?\d*)(?P<unit>[kMG])|(?P<share>\d*\.\d+|\d+\.)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share such as 0.4 nor a count such as 500k or 2000000")
    if match["unit"]:
        return round(float(match["number"]) * UNITS[match["unit"]])
    return int(match["count"]) if match["count"] else float(match["share"])


def whole(least: int) -> Callable[[str], int]:
    """A parser of integers from `least` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of {least} or more, in 18 digits")
        return int(text)

    return parse


def nonnegative(text: str) -> float:
    """A finite number that is zero or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of zero or more")
    return number


def weight(text: str) -> float:
    """A number in [0, 1]."""
    number = nonnegative(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return number


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    number = nonnegative(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return number
