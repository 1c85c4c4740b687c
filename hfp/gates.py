"""Gates: a channel is gated where it is read, so that a gated network computes what the compacted one will.

Every weight that reads channels is multiplied, column by column, by the gates of the channels it reads. That equals
slicing those columns, whatever lies between the layer that makes a channel and the one that reads it (the shift of a
batch norm, a sigmoid, a constant): a gate of 0 at the producer would leave f(0) behind. Functions that work across
channels without a weight get arguments in which removed channels are hidden (`hfp.tracing.operands`). The model itself
is not touched: the gated weights stand in for its own during one forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hfp.channels import ChannelTable
from hfp.labels import NO_IDS, extended
from hfp.model.eager import eagerly
from hfp.model.held import held_in, standing_in
from hfp.model.names import Names, tensor_of
from hfp.model.turns import turn
from hfp.recompute import recomputed, transformed
from hfp.tracing.opened import opened
from hfp.tracing.operands import hide, settled
from hfp.tracing.position import Position, Site
from hfp.tracing.sites import Sites, another_path


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
        self.held = held_in(every)
        self.parameters = frozenset(every.parameters)
        names: dict[str, list[str]] = {}
        for alias, name in every.aliases.items():
            names.setdefault(name, []).append(alias)
        self.places = [(name, dim, tuple(names[name])) for name, dim in table.readers]
        self.operands = table.operands
        self.written = {alias for name in table.written for alias in names.get(name, ())}
        read = [*(table.axes[name][dim] for name, dim in table.readers), *(o.channels for o in self.operands)]
        self.lengths = [len(ids) for ids in read]
        self._ids = {torch.device("cpu"): _Ids(table.products, torch.cat([NO_IDS, *read]))}
        self.sites = {training: Sites(self.operands, training) for training in (True, False)}

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
            with torch.inference_mode(False):  # they are kept for forwards with gradients, too
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


class _Hiding(TorchFunctionMode):
    """Hides removed channels from the functions that work across them. `gates`: of each operand."""

    def __init__(self, sites: Sites, gates: Sequence[Tensor], position: Position) -> None:
        super().__init__()
        self.sites, self.gates, self.position = sites, gates, position
        self.met: Counter[Site] = Counter()
        """Site without number, of those that have to be counted -> calls."""

    def check(self) -> None:
        """RuntimeError where a function was called less often than in the trace: then it was taken for another call."""
        for site, least in self.sites.counted.items():
            if 0 < self.met[site] < least:
                raise another_path(site)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        site = self.position.site(name)
        if (frame := self.sites.frame_at(site, self.position.caller)) and (body := opened(func, args, kwargs)):
            with self.position.within(frame), self:
                return body(*args, **kwargs)
        if (once := site._replace(number=0)) in self.sites.counted:
            self.met[once] += 1
        numbers = self.sites.operands_at(site, self.position.caller)
        if numbers:
            operands = [self.sites.operands[number] for number in numbers]
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
        self.by_name = tensors
        self.tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        # Where nothing may be asked of a tensor, nothing is ever written either: in a program, under a transform.
        plain = not frozen and not torch.is_inference_mode_enabled() and not transformed()
        dense = {name: tensor for name, tensor in made.items() if tensor.layout == torch.strided}
        self.standing = {name: _Standing(tensor) for name, tensor in dense.items()} if plain else {}
        self.done = False

    def write_back(self) -> None:
        """What was written to in the forward is kept: averages, power iterations, queues."""
        now = {name: self.tensors[f"model.{name}"] for name in self.standing}
        always = self.readers.written  # what is written through `.data` no tensor tells
        written = {n: now[n] for n, one in self.standing.items() if n in always or one.written(now[n])}
        if written:
            self.readers.write_back(self.model, self.columns, written)

    def run(self, position: Position, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with standing_in(self.model, self.readers.held, self.by_name):
            arguments = position, function, *args
            return torch.func.functional_call(self, self.tensors, arguments, kwargs, tie_weights=False)

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """`run`, in a backward pass: while the forward still runs it has called that, and waits for it in its turn."""
        with turn(self.model) if self.done else nullcontext():
            return self.run(*args, **kwargs)

    def forward(self, position: Position, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        hiding = None
        with ExitStack() as stack:
            stack.enter_context(eagerly())
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                stack.enter_context(recomputed(lambda part: partial(self.again, position.copy(), part)))
            if self.readers.operands:
                stack.enter_context(position.following())
                hiding = stack.enter_context(_Hiding(self.readers.sites[self.model.training], self.hidden, position))
            out = function(*args, **kwargs)
            if hiding is not None and function is self.model:
                hiding.check()
            return out


def gated_forward(
    model: nn.Module,
    readers: Readers,
    gates: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    frozen: bool = False,
) -> Any:
    """`model(*args, **kwargs)` with every channel multiplied by its gate (channels,) where it is read.

    `frozen`: nothing of the model learns, neither its weights nor the statistics of its norms.
    """
    # The compiler does not tell which module is running, and so not where channels have to be hidden.
    called = _as_written if readers.operands else _called
    return called(model, readers, gates, frozen, args, kwargs)


def _called(
    model: nn.Module, readers: Readers, gates: Tensor, frozen: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with turn(model):
        gated = _Gated(model, readers, gates, frozen)
        try:
            out = gated.run(Position(readers.names_in(model)), model, *args, **kwargs)
        finally:
            gated.done = True
        gated.write_back()
        return out


def _along(gates: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return gates.to(tensor).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


_as_written = torch.compiler.disable(_called)
