"""Follows the functions of PyTorch that a model's code calls, above the operators (`hfp.tracing.watcher`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hfp.attention import scaled_scores
from hfp.labels import Ask
from hfp.model.source import is_own, source_line
from hfp.rules.call import values_in
from hfp.rules.own import Whole
from hfp.tracing.numbers import MAKERS
from hfp.tracing.opened import attention, opened, unscaled_scores
from hfp.tracing.operands import Operand, find, writes_in_place
from hfp.tracing.position import Site
from hfp.tracing.sizes import SIZE_FREE_FUNCTIONS, axes_read, tells_size
from hfp.tracing.told import SLICING, bounds_reckoned
from hfp.tracing.watcher import Watcher

Around = Callable[[Site, Any, Any, Callable[[], Any]], Any]
"""`around(site, args, kwargs, call)` gives the output of the function called there, which is that of `call()`."""

_SCALED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    scaled_scores: unscaled_scores,
}
"""Functions that may scale by the width of their first argument, and what they are followed as."""


def _plain_linear(x: Any, weight: Any, bias: Any = None) -> bool:
    """Whether a linear layer is given nothing unusual."""
    return bool(x.dim() > 1 and weight.dim() == 2 and (bias is None or bias.dim() == 1)) and not mapped()


def _plain_matmul(a: Any, b: Any) -> bool:
    """Whether both operands are batches of matrices: of others, PyTorch makes these first."""
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() > 2 and b.dim() > 2 and not mapped()


def mapped() -> bool:
    """Whether this runs inside of `torch.vmap` or another transform: tensors hide axes there, operators show them."""
    return torch._C._functorch.peek_interpreter_stack() is not None


AT_ONCE: dict[Callable[..., Any], Callable[..., bool]] = {
    F.linear: _plain_linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _plain_matmul),
}
"""Functions that are followed as one operator, and for which of their arguments: most of a transformer is made of them,
and each is half a dozen operators."""
_LEAVING = {"numpy", "__array__", "__dlpack__", "tolist"}
"""Functions that hand values to code which cannot be followed."""


_DEVICE = torch.Tensor.device.__get__


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """On numbers, a fused operator would hide what recurrent layers are made of."""
    before = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


class Functions(TorchFunctionMode):
    """Takes functions apart, and notes where removed channels have to be hidden from one."""

    def __init__(self, watcher: Watcher, training: bool, around: Around, pretended: torch.device | None = None) -> None:
        """`pretended`: the device that the model's code is told it runs on, where that is not the meta device."""
        super().__init__()
        self.watcher = watcher
        self.training = training
        self.around = around
        self.pretended = pretended
        self.operands: list[Operand] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        sizes = self.watcher.sizes
        if name == "__get__":
            out = self.pretended if self.pretended and func == _DEVICE else func(*args, **kwargs)
            if tells_size(func.__self__.__name__, out) and not is_own(frame := sys._getframe(1)):
                self.watcher.tell_size(args[0], axes_read(frame))
            return out
        if self.pretended and any(isinstance(value, torch.device) for value in values_in((args, kwargs))):
            args, kwargs = tree_map(self._actual, (args, kwargs))
        writes = name == "__setitem__" or writes_in_place(name)
        args, kwargs = self.watcher.to_meta((args, kwargs), numbers=name == "einsum", writes=writes)
        if self.watcher.is_paused:  # inside a module that has a rule
            return func.forward(*args, **kwargs) if isinstance(func, Whole) else func(*args, **kwargs)
        ledger = self.watcher.ledger
        if name in _LEAVING:
            self.watcher.pin(args[0], f"leaves PyTorch by {name}(): hfp.rule can give the module a rule", name)
        site, before = self.watcher.position.site(name), len(ledger.asks)
        out = self.around(site, args, kwargs, partial(self._call, func, site, args, kwargs))
        if name in SIZE_FREE_FUNCTIONS:
            self.watcher.sizes = sizes
        elif name == "sum_to_size":  # which no operator in it is given
            self.watcher.sizes += 1
        elif not isinstance(out, Tensor) and tells_size(name, out):
            axes = args[1] if name == "size" and len(args) == 2 else slice(None)
            self.watcher.tell_size(args[0] if args else None, axes)
        asks, ledger.asks[before:] = ledger.asks[before:], []
        if site.function == "einsum":  # which multiplies element by element where it has nothing to sum
            for tensor in tree_leaves(args):
                ledger.wide += [ids for ids in self.watcher.labels(tensor) if ids is not None]
        # The statistics of a single channel say nothing: its distance from the mean is rounding, blown up by a norm.
        ledger.wide += [ask.ids for ask in asks if ask.how == "mean"]
        if asks:
            with self.watcher.paused():
                for ask in asks:
                    if func in _SCALED and ask.how == "zero" and kwargs.get("scale") is None:
                        ask = replace(ask, how="root")
                    self._grant(ask, site, args, kwargs, isinstance(func, Whole))
        return out

    def _actual(self, argument: Any) -> Any:
        pretended = isinstance(argument, torch.device) and argument == self.pretended
        return torch.device("meta") if pretended else argument

    def _call(self, func: Any, site: Site, args: Any, kwargs: Any) -> Any:
        body = opened(func, args, kwargs)
        if body is not None:
            self.watcher.sizes += 1  # the sizes that it is given are lost on the parts of it
            with self.watcher.position.inside(site), self:
                return body(*args, **kwargs)
        if func in _SCALED:
            with self.watcher.position.inside(site):
                return _SCALED[func](*args, **kwargs)
        if func in AT_ONCE and not kwargs and not torch.is_grad_enabled() and AT_ONCE[func](*args):
            return self.watcher.follow_function(func, args)
        if isinstance(func, Whole):
            with self.watcher.paused(), self:
                out = func.forward(*args, **kwargs)
            self.watcher.follow_module(func.module, args, kwargs, out)
            return out
        self.watcher.position.followed = func
        if site.function in SLICING and args:
            self.watcher.follows = bounds_reckoned(site.function, args, kwargs, self.watcher.labels(args[0]))
        try:
            with _without_mkldnn() if site.function == "lstm" else nullcontext():
                out = func(*args, **kwargs)
            if site.function in MAKERS:
                self.watcher.tell_number(out, (*args, *kwargs.values()))
            return out
        finally:
            self.watcher.position.followed, self.watcher.follows = None, {}

    def _grant(self, ask: Ask, site: Site, args: Any, kwargs: Any, whole: bool) -> None:
        # The arguments of a module cannot be changed: the gated forward calls functions, but leaves modules alone.
        ledger, labels_of = self.watcher.ledger, self.watcher.labels
        found = [] if whole else find(ask, site.function, args, kwargs, labels_of, ledger.factors_of)
        if not found:
            ledger.pin(ask.ids, ask.reason, ask.place._replace(line=source_line()))
        for number, (argument, axis, ids) in enumerate(found):
            here = takewhile(lambda o: o.site == site, reversed(self.operands))
            known = any((o.argument, o.axis) == (argument, axis) for o in here)
            second = ask.how in ("root", "zero") and any(torch.equal(ids, other) for *_, other in found[:number])
            if not known:
                self.operands.append(Operand(site, self.training, argument, axis, ids, "again" if second else ask.how))
