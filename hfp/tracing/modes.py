"""Whether a model does the same to channels in training mode as in evaluation mode.

A forward can do something else in training only if some code asks in which mode it is: up to there both are the same.
So it is enough to watch who reads `module.training` in an evaluation run. Batch norm and dropout do the same to
channels in both modes. Other modules without layers and tensors of their own (stochastic depth) are run once more, in
training mode, on what they were given. Where anything else asks, or in any doubt, the modes may differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from hfp.labels import Labels
from hfp.model.chance import forked
from hfp.tracing.functions import Functions
from hfp.tracing.preserved import preserved
from hfp.tracing.watcher import Watcher

_ALIKE = {
    kind.forward.__code__
    for kind in (
        nn.modules.batchnorm._BatchNorm,
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    )
}
"""Code that asks for the mode, and does the same to channels in both."""


class Modes:
    """Follows an evaluation run that `watcher` watches."""

    def __init__(self, model: nn.Module, watcher: Watcher) -> None:
        self._watcher = watcher
        # A module that overrides `train()` may store what it needs there, and never read `training`.
        self._differ = any(type(m).train is not nn.Module.train or "train" in vars(m) for m in model.modules())
        self._own, self._thread = set(model.modules()), get_ident()
        self._asked: set[nn.Module] = set()
        self._calls: list[tuple[nn.Module, Any, Any, Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Whoever reads `training` of a module in here is noted down."""
        handle = hooks.register_module_forward_hook(self._left, with_kwargs=True)
        nn.Module.training = property(self._read, lambda module, mode: vars(module).update(training=mode))  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.training
            handle.remove()
            # PyTorch forgets this entry of its own, and then warns of a hook whenever a module is compiled.
            getattr(hooks, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)

    def _read(self, module: nn.Module) -> Any:
        ours = module in self._own or get_ident() == self._thread  # others may run models of theirs meanwhile
        if ours and sys._getframe(1).f_code not in _ALIKE:
            simple = not (module._modules or module._parameters or module._buffers)
            if simple and module is self._watcher.position.module:
                self._asked.add(module)
            else:
                self._differ = True
        try:
            return vars(module)["training"]
        except KeyError:
            raise AttributeError(f"'{type(module).__name__}' object has no attribute 'training'") from None

    def _left(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if module in self._asked:
            self._asked.remove(module)
            self._calls.append((module, args, kwargs, out))

    def alike(self) -> bool:
        """Whether a training run would say nothing new; to be asked when the evaluation run is over."""
        return not self._differ and not self._asked and all(self._gives_the_same(*call) for call in self._calls)

    def _gives_the_same(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> bool:
        """Whether a module gives the same channels when it is called in training mode."""
        watcher, ledger = self._watcher, self._watcher.ledger
        told = watcher.sizes, len(ledger.pins), len(ledger.macs), len(ledger.products), len(ledger.attributes)
        functions = Functions(watcher, training=True, around=lambda site, args, kwargs, call: call())
        before, watcher.on_step = watcher.on_step, lambda step: None
        mode, module.training = module.training, True
        try:
            with preserved(module), torch.no_grad(), forked(), watcher, functions:
                again = module.forward(*args, **kwargs)
        except Exception:  # of the model's own code: the whole run will tell
            return False
        finally:
            module.training = mode
            watcher.on_step = before
        now = watcher.sizes, len(ledger.pins), len(ledger.macs), len(ledger.products), len(ledger.attributes)
        same = isinstance(out, Tensor) and isinstance(again, Tensor) and out.shape == again.shape
        return same and now == told and not functions.operands and _equal(watcher.labels(out), watcher.labels(again))


def _equal(labels: Labels, others: Labels) -> bool:
    """Whether two tensors have the same labels, axis by axis."""
    return len(labels) == len(others) and all(
        a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(labels, others, strict=True)
    )
