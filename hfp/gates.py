"""Gates: a channel is gated where it is read, so that a gated network computes what the compacted one will.

Every weight that reads channels is multiplied, column by column, by the gates of the channels it reads. That equals
slicing those columns, whatever lies between the layer that makes a channel and the one that reads it (the shift of a
batch norm, a sigmoid, a constant): a gate of 0 at the producer would leave f(0) behind. Functions that work across
channels without a weight get arguments in which removed channels are hidden (`hfp.tracing.operands`). The model itself
is not touched: the gated weights stand in for its own during one forward.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hfp.channels import ChannelTable
from hfp.eager import eagerly
from hfp.labels import extended
from hfp.names import Names, tensor_of
from hfp.recompute import recomputed
from hfp.source import caller, line_at
from hfp.tracing.opened import opened
from hfp.tracing.operands import Operand, hide, settled
from hfp.tracing.position import Position, Site


@dataclass(frozen=True)
class _Ids:
    """Channels by their numbers: those that make up products, and those that all weights and operands read, in turn."""

    products: Tensor
    read: Tensor


class Readers:
    """What reads prunable channels in a model, and the channels it reads: weights, and operands of functions."""

    def __init__(self, model: nn.Module, table: ChannelTable) -> None:
        every = Names.of(model)
        self.names = every.modules
        self.aliases = every.aliases
        self.parameters = frozenset(every.parameters)
        names: dict[str, list[str]] = {}
        for alias, name in every.aliases.items():
            names.setdefault(name, []).append(alias)
        self.places = [(name, dim, tuple(names[name])) for name, dim in table.readers]
        self.operands = table.operands
        read = [*(table.axes[name][dim] for name, dim in table.readers), *(o.channels for o in self.operands)]
        self.lengths = [len(ids) for ids in read]
        self._ids = {torch.device("cpu"): _Ids(table.products, torch.cat([torch.empty(0, dtype=torch.long), *read]))}
        self.at = {training: _by_site(self.operands, training) for training in (True, False)}
        self.opened = {training: _opened(self.operands, training) for training in (True, False)}
        self.by_line = {training: _by_line(self.operands, training) for training in (True, False)}
        self.counted = {training: self._counted(training) for training in (True, False)}

    def names_in(self, model: nn.Module) -> dict[nn.Module, str]:
        """Module -> name, in the model, or in a replica of it (`nn.DataParallel` makes some for every step)."""
        return self.names if model in self.names else {module: name for name, module in model.named_modules()}

    def still(self, model: nn.Module) -> dict[str, Tensor]:
        """Every name of a tensor -> what stands in for it: parameters without gradient, copied buffers.

        A batch norm in training mode works with the statistics of its batch, and keeps those of its life in a buffer.
        """
        tensors = {name: tensor_of(model, name) for name in set(self.aliases.values())}
        still = {name: x.detach() if name in self.parameters else x.clone() for name, x in tensors.items()}
        return {alias: still[name] for alias, name in self.aliases.items()}

    def ids(self, device: torch.device) -> _Ids:
        """Those on this device. They are no buffers: an average of a network would average its buffers."""
        if device not in self._ids:
            own = self._ids[torch.device("cpu")]
            self._ids[device] = _Ids(own.products.to(device), own.read.to(device))
        return self._ids[device]

    def spread(self, gates: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The gates (channels,) that each weight reads, and those of each operand.

        All are gathered at once: on a GPU every gather is a launch, and its way back a sort.
        """
        ids = self.ids(gates.device)
        parts = extended(gates, ids.products)[ids.read].split(self.lengths)
        return parts[: len(self.places)], parts[len(self.places) :]

    def gated(self, model: nn.Module, gates: Sequence[Tensor], frozen: bool = False) -> dict[str, Tensor]:
        """Name -> weight times the gates of what it reads, see `spread`, under every name that the weight has."""
        found: dict[str, Tensor] = {}
        for (name, dim, names), own in zip(self.places, gates, strict=True):
            weight = found.get(name)
            if weight is None:
                weight = tensor_of(model, name)
                if frozen:
                    weight = weight.detach()
                elif name not in self.parameters:
                    weight = weight.clone()  # which a forward may write to, while its backward asks for what it was
            found.update(dict.fromkeys(names, weight * _along(own, weight, dim)))
        return found

    @torch.no_grad()
    def write_back(self, model: nn.Module, gates: Sequence[Tensor], stood_in: Mapping[str, Tensor]) -> None:
        """What a forward has written to what `stood_in` for tensors (`_Standing`) goes to the tensors themselves.

        Columns of closed gates stay as they are: nothing of what is written there comes from the tensor.
        """
        live: dict[str, Tensor] = {}
        for (name, dim, names), own in zip(self.places, gates, strict=True):
            changed = next((stood_in[alias] for alias in names if alias in stood_in), None)
            if changed is not None and changed.shape == (tensor := tensor_of(model, name)).shape:
                live[name] = live.get(name, torch.ones_like(tensor)) * _along(own, tensor, dim)
                value = torch.where(live[name] == 0, tensor, changed.detach() / live[name])
                tensor.data.copy_(value)  # backward does not mind: it asks for what stood in

    def operands_at(self, site: Site, training: bool) -> list[int]:
        """The numbers of the operands of the function that is called there."""
        exact = self.at[training].get(site) or self.at[training].get(site._replace(call=0))
        lines = {self.operands[exact[0]].line} if exact else set()
        return _at_line(site, exact, lines, self.by_line[training].get((site.inside, site.function))) or []

    def _counted(self, training: bool) -> dict[Site, int]:
        """Site without number -> calls there, at least, where nothing but the number tells one from the other."""
        found: dict[Site, int] = {}
        for operand in self.operands:
            lines = self.by_line[training].get((operand.site.inside, operand.site.function), {})
            if operand.training == training and operand.line is not None and lines[operand.line] is None:
                site = operand.site._replace(number=0)
                found[site] = max(found.get(site, 0), operand.site.number)
        return found

    def frame_at(self, site: Site, training: bool) -> str | None:
        """What runs inside of the function that is called there, if that is taken apart, and has operands."""
        frames, by_line = self.opened[training]
        exact = site.frame if site.frame in frames else None
        return _at_line(site, exact, frames.get(site.frame, set()), by_line.get((site.inside, site.function)))


T = TypeVar("T")


def _at_line(site: Site, exact: T | None, own: Set[str | None], lines: Mapping[str, T | None] | None) -> T | None:
    """`exact`, found in the trace at lines of its `own`; unless a loop takes another number of turns than there.

    `lines`: what stands at lines of code by which this function is called; None where that is not always the same.
    """
    if lines is None or (exact is not None and None in own):
        return exact
    here = line_at(caller())
    if exact is not None and here in own:
        return exact
    if here in lines and lines[here] is None:
        raise _another_path(site)
    return lines.get(here)


def _another_path(site: Site) -> RuntimeError:
    return RuntimeError(
        f"the forward takes another path than on the example inputs: {site.function} in {site.inside or 'the network'} "
        "is called another number of times, on other channels each time; wrap the model with inputs like these, or let "
        "it take the same path always, with no layers that are dropped at random"
    )


def _what(operand: Operand) -> tuple[Any, ...]:
    """What is hidden, and how, wherever that is."""
    return operand.argument, operand.axis, operand.how, operand.power, operand.channels.numpy().tobytes()


def _by_line(operands: tuple[Operand, ...], training: bool) -> dict[tuple[str, str], dict[str, list[int] | None]]:
    """(inside, function) -> line -> the operands there."""
    found: dict[tuple[str, str], dict[str, list[int] | None]] = defaultdict(dict)
    sites: dict[Site, list[int]] = defaultdict(list)
    for number, operand in enumerate(operands):
        if operand.training == training and operand.line is not None:
            sites[operand.site].append(number)
    for site, numbers in sites.items():
        lines, line = found[site.inside, site.function], str(operands[numbers[0]].line)
        known = lines.setdefault(line, numbers)
        here, there = ([_what(operands[number]) for number in some] for some in (numbers, known or ()))
        lines[line] = known if here == there else None
    return dict(found)


def _opened(
    operands: tuple[Operand, ...], training: bool
) -> tuple[dict[str, set[str | None]], dict[tuple[str, str], dict[str, str | None]]]:
    """Of functions that are taken apart: frame -> lines; (inside, function) -> line -> a frame that runs there."""
    parts: dict[str, list[Any]] = defaultdict(list)
    frames: dict[str, set[str | None]] = defaultdict(set)
    for operand in operands:
        inside = operand.site.inside
        if operand.training == training and "|" in inside:
            parts[inside].append((operand.site.function, operand.site.number, *_what(operand)))
            frames[inside].add(operand.line)
    found: dict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
    for frame, every in frames.items():
        owner, _, call = frame.rpartition("|")
        lines = found[owner, call.partition("#")[0]]
        for line in every - {None}:
            known = lines.setdefault(str(line), frame)
            lines[str(line)] = known if known is not None and parts[known] == parts[frame] else None
    return dict(frames), dict(found)


def _by_site(operands: tuple[Operand, ...], training: bool) -> dict[Site, list[int]]:
    """Site -> operands. Under call 0 those of a function whose module was called any number of times, always alike."""
    exact: dict[Site, list[int]] = defaultdict(list)
    for number, operand in enumerate(operands):
        if operand.training == training:
            exact[operand.site].append(number)
    alike: dict[Site, list[tuple[Any, list[int]]]] = defaultdict(list)
    for site, numbers in exact.items():
        every = [operands[n] for n in numbers]
        what = tuple(map(_what, every))
        alike[site._replace(call=0)].append((what, numbers))
    for site, ways in alike.items():
        (what, numbers), *others = ways
        if len(ways) == operands[numbers[0]].calls and all(other == what for other, _ in others):
            exact[site] = numbers
    return exact


class _Hiding(TorchFunctionMode):
    """Hides removed channels from the functions that work across them. `gates`: of each operand."""

    def __init__(self, readers: Readers, gates: Sequence[Tensor], position: Position, training: bool) -> None:
        super().__init__()
        self.readers, self.gates, self.position, self.training = readers, gates, position, training
        self.met: Counter[Site] = Counter()
        """Site without number, of those that have to be counted -> calls."""

    def check(self) -> None:
        """RuntimeError where a function was called less often than in the trace: then it was taken for another call."""
        for site, least in self.readers.counted[self.training].items():
            if 0 < self.met[site] < least:
                raise _another_path(site)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        site = self.position.site(name)
        if (frame := self.readers.frame_at(site, self.training)) and (body := opened(func, args, kwargs)):
            with self.position.within(frame), self:
                return body(*args, **kwargs)
        if (once := site._replace(number=0)) in self.readers.counted[self.training]:
            self.met[once] += 1
        numbers = self.readers.operands_at(site, self.training)
        if numbers:
            operands = [self.readers.operands[number] for number in numbers]
            gates = [self.gates[number] for number in numbers]
            args, kwargs = hide(operands, gates, args, kwargs)
            return settled(operands, gates, func(*args, **kwargs))
        return func(*args, **kwargs)


class _Standing:
    """A tensor that stands in for a model's own while a forward runs, and whether the forward has written to it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.before = self._state()

    def _state(self) -> tuple[int, int]:
        return self.tensor._version, self.tensor.data_ptr()  # in place; by giving it other `data`

    def written(self, now: Tensor) -> bool:
        """`now`: what is there in its place after the forward."""
        return now is not self.tensor or self._state() != self.before


class _Gated(nn.Module):
    """Calls a function, of the model's or a part of its forward, while what it computes is gated."""

    def __init__(self, model: nn.Module, readers: Readers, gates: Tensor, frozen: bool) -> None:
        super().__init__()
        self.model, self.readers = model, readers
        tensors = readers.still(model) if frozen else {}
        self.columns, self.hidden = readers.spread(gates)
        made = readers.gated(model, self.columns, frozen)
        tensors.update(made)
        self.tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        # Where nothing may be asked of a tensor, nothing is ever written either: in a program, under a transform.
        plain = not frozen and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
        plain = plain and torch._C._functorch.peek_interpreter_stack() is None
        dense = {name: tensor for name, tensor in made.items() if tensor.layout == torch.strided}
        self.standing = {name: _Standing(tensor) for name, tensor in dense.items()} if plain else {}

    def write_back(self) -> None:
        """What was written to in the forward is kept: averages, power iterations, queues."""
        now = {name: self.tensors[f"model.{name}"] for name in self.standing}
        written = {name: now[name] for name, one in self.standing.items() if one.written(now[name])}
        if written:
            self.readers.write_back(self.model, self.columns, written)

    def run(self, position: Position, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self, self.tensors, (position, function, *args), kwargs, tie_weights=False)

    def forward(self, position: Position, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        hiding = None
        with ExitStack() as stack:
            stack.enter_context(eagerly())
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                stack.enter_context(recomputed(lambda part: partial(self.run, position.copy(), part)))
            if self.readers.operands:
                stack.enter_context(position.following())
                hiding = stack.enter_context(_Hiding(self.readers, self.hidden, position, self.model.training))
            out = function(*args, **kwargs)
            if hiding is not None and function is self.model:
                hiding.check()
            return out


def gated_forward(model: nn.Module, readers: Readers, gates: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """`model(*args, **kwargs)` with every channel multiplied by its gate where it is read."""
    return run(model, readers, gates, args, kwargs)


def run(
    model: nn.Module,
    readers: Readers,
    gates: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frozen: bool = False,
) -> Any:
    """`gated_forward`; `frozen`: nothing of the model learns, neither its weights nor the statistics of its norms."""
    # The compiler does not tell which module is running, and so not where channels have to be hidden.
    called = _as_written if readers.operands else _called
    return called(_Gated(model, readers, gates, frozen), Position(readers.names_in(model)), args, kwargs)


def _called(gated: _Gated, position: Position, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    out = gated.run(position, gated.model, *args, **kwargs)
    gated.write_back()
    return out


def _along(gates: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return gates.to(tensor).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


_as_written = torch.compiler.disable(_called)
