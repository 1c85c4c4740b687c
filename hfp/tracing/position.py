"""Where in a forward pass a function of PyTorch is called: the same call has the same site in every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from hfp.model.source import NOBODY, Caller, caller


class Site(NamedTuple):
    """The `number`-th call of `function` in the `call`-th call of what is running, in one forward pass."""

    inside: str
    """The name of a module, followed by the functions that are taken apart in it."""
    call: int
    function: str
    number: int

    @property
    def frame(self) -> str:
        """What runs inside this call."""
        return f"{self.inside}|{self.function}#{self.number}"


@dataclass
class _Frame:
    name: str
    call: int
    module: nn.Module | None
    counts: Counter[str] = field(default_factory=Counter)


class Position:
    """Follows a forward pass from module to module; `names`: of the modules."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self._names = names
        self.calls: Counter[str] = Counter()
        """How often what functions are called inside of (`Site.inside`) was entered."""
        self._frames = [_Frame("", 0, None)]
        self.followed: Any = None
        """The function that is about to be called because the model's code did."""
        self.caller: Caller = NOBODY
        """Where the model's code has called what runs, if it is not to be seen any more: in backward."""

    def copy(self) -> Position:
        """To go on from here a second time."""
        other = Position(self._names)
        other.calls, other.caller = self.calls.copy(), caller(self.caller)
        other._frames = [replace(frame, counts=frame.counts.copy()) for frame in self._frames]
        return other

    @property
    def path(self) -> str:
        """The name of the module whose forward is running."""
        return self._frames[-1].name.partition("|")[0]

    @property
    def module(self) -> nn.Module | None:
        return self._frames[-1].module

    @property
    def opened(self) -> bool:
        """Whether parts of a function are running that only one taken apart has (see `hfp.tracing.opened`)."""
        _, *functions = self._frames[-1].name.split("|")
        return any(not function.startswith("multi_head_attention_forward#") for function in functions)

    def site(self, function: str) -> Site:
        """The site of a call that is about to be made: every call asks once."""
        frame = self._frames[-1]
        frame.counts[function] += 1
        return Site(frame.name, frame.call, function, frame.counts[function])

    def inside(self, site: Site) -> AbstractContextManager[None]:
        """Functions called in here are counted by themselves."""
        return self.within(site.frame)

    @contextmanager
    def within(self, frame: str) -> Iterator[None]:
        """The same, by the name of what runs."""
        self._enter(frame, self.module)
        try:
            yield
        finally:
            self._frames.pop()

    def _enter(self, name: str, module: nn.Module | None) -> None:
        self.calls[name] += 1
        self._frames.append(_Frame(name, self.calls[name], module))

    @contextmanager
    def following(self) -> Iterator[None]:
        """While this lasts, modules that are called in this thread are entered and left."""
        thread = get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if get_ident() == thread:
                self._enter(self._names.get(module, self.path), module)

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if get_ident() == thread:
                self._frames.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
