"""A device called far, for what a GPU would refuse or wait for: it computes on the CPU, but will not mix with it.

`PYTHONPATH=. python tests/far.py train.py --device far ...` runs a script where there is one. What it knows is what
PyTorch tells a backend that is written in Python: tensors of `Far` hold a tensor of the CPU, and every operator is run
on those. `waits` counts what a GPU would have to be waited for: numbers and tensors that come back, lengths that hang
on values.
"""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils import backend_registration
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves, tree_map

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # from PyTorch 2.10 on
_BETWEEN = {"copy_", "_copy_from", "_to_copy"}
waits: Counter[str] = Counter()


class Far(Tensor):
    """A tensor on the far device. `near`: what it holds."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made: Far = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device("far:0"),
        )
        made.near = near.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            twin = Far(self.near.clone())
            parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(twin, self.requires_grad) if parameter else twin
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near})"

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def tolist(self) -> Any:
        waits["tolist"] += 1
        return self.near.tolist()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    near = [x for x in tensors if not isinstance(x, Far) and x.dim()]
    near = [x for x in near if name not in ("index", "index_put_") or x is args[0]]  # indices may be on the CPU
    if far and near and name not in _BETWEEN:
        raise RuntimeError(f"{name}: expected all tensors to be on one device, but found far and {near[0].device}")
    target = kwargs.get("device")
    stays = bool(far) if target is None else torch.device(target).type == "far"
    elsewhere = {} if "device" not in kwargs else {"device": torch.device("cpu") if stays else target}
    own_args, own_kwargs = tree_map(lambda x: x.near if isinstance(x, Far) else x, (args, kwargs | elsewhere))
    if name == "copy_" and isinstance(args[0], Far) != isinstance(args[1], Far):
        waits["copy_"] += isinstance(args[1], Far)
        own_args[0].copy_(own_args[1])
        return args[0]
    if name in ("_local_scalar_dense", "nonzero", "masked_select") or (far and not stays):
        waits[name] += 1
    elif name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1]):
        waits["index by a mask"] += 1
    twins = {id(x.near): x for x in far}  # what is written to is given back as it is
    out = func(*own_args, **own_kwargs)
    if not stays or name == "_local_scalar_dense":
        return out
    if any(isinstance(x, Tensor) and x.dtype in (torch.float64, torch.complex128) for x in tree_leaves(out)):
        raise TypeError(f"{name}: there is no float64 on this device, as there is none on Apple's")
    return tree_map(lambda x: x if not isinstance(x, Tensor) else twins[id(x)] if id(x) in twins else Far(x), out)


class _Module(getattr(backend_registration, "_DummyBackendModule", object)):  # type: ignore[misc]
    """What PyTorch asks of `torch.far`."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)


def install() -> None:
    """From here on there is a device "far" in this process, for good."""
    backend_registration._setup_privateuseone_for_python_backend("far", backend_module=_Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # or model.to("far") could not give other tensors
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    _kept.append(fallback)
    for name in ("tensor", "as_tensor"):  # PyTorch copies those past the fallback
        setattr(torch, name, _moved(getattr(torch, name)))


_kept: list[Any] = []  # a library takes back what it has registered when it goes


def _moved(make: Any) -> Any:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        modes = _get_current_function_mode_stack() if device is None else []
        device = next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), device)
        return make(data, *args, **kwargs).to(device)

    return made


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
