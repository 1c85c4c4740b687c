"""What ptflops counts, as sums of products of live lengths: the second cost of a channel table.

ptflops (0.7.5, its default backend) adds a forward hook to every module of a known type, and for the time of one run
replaces some functions of PyTorch by counting ones. Bias, normalisation, activations and pools are in its number, and
what a module does through a replaced function is in it twice: `nn.ReLU` counts, and so does the `F.relu` that it calls.
People read that number, so a budget may be given in it. It is rebuilt here from the same two sources, `MODULES` and
`FUNCTIONS`, one row for each kind of call; ptflops itself is not needed. The names that ptflops replaces are replaced
for the length of one run, as it does, since nothing else sees exactly the same calls: a function that was imported by
value escapes both, `torch.add(x, y)` is seen by both, and `x + y` by neither.
"""

from __future__ import annotations

import functools
from collections import Counter as Multiset
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hfp.labels import Labels, Term
from hfp.tracing.position import Position


class Labelled(NamedTuple):
    """The extent of a tensor along an axis on which channels lie."""

    ids: Tensor


Extent = int | Labelled
Sum = list[list[Any]]
"""A sum of products: [[a, b], [c]] is a * b + c. The entries are extents, or fixed numbers."""
Extents = Callable[[Any], list[Extent]]
"""The extents of a tensor, axis by axis."""


class NotPolynomial(Exception):
    """A count that is no sum of products of live lengths."""


def length(extent: Extent) -> int:
    return extent if isinstance(extent, int) else len(extent.ids)


# ---------------------------------------------------------------------------------------------------------------------
# Modules: functions of (extents, module, positional inputs, output). `inputs[0]` is what ptflops looks at, even if the
# module was called by keyword: both fail there.


def output_size(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    return [extents(output)]


def input_size(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    return [extents(inputs[0])]


def first_image(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    """Upsampling counts the output of the first image of the batch."""
    return [extents(output)[1:]]


def norm(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    """Twice the input if affine; a layer norm calls that otherwise (`elementwise_affine`) and so counts once."""
    return [[*extents(inputs[0]), 2 if getattr(module, "affine", False) else 1]]


def linear(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    *rows, read = extents(inputs[0])
    made = extents(output)[-1]
    return [[*rows, read, made]] + ([[*rows, made]] if module.bias is not None else [])


def conv(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    """in_channels * (out_channels // groups) is the product of the first two dims of the weight, for any groups."""
    batch = extents(inputs[0])[0]
    grid = extents(inputs[0])[2:] if module.transposed else extents(output)[2:]
    kernel = prod(module.kernel_size)
    weights = [batch, *grid, kernel, *extents(module.weight)[:2]]
    return [weights] + ([[batch, *extents(output)[1:]]] if module.bias is not None else [])


def attention(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    """ptflops knows `nn.MultiheadAttention` only, not the class of one that was cut, so its number means nothing."""
    raise NotPolynomial("it does not count attention of which heads were cut")


def recurrent_step(extents: Extents, module: Any, suffix: str = "") -> Sum:
    """One step of one layer: both products, the additions and the gates, both biases."""
    gates = {nn.RNN: 1, nn.RNNCell: 1, nn.GRU: 7, nn.GRUCell: 7, nn.LSTM: 10, nn.LSTMCell: 10}[type(module)]
    products: Sum = [extents(getattr(module, f"weight_{kind}{suffix}")) for kind in ("ih", "hh")]
    if getattr(module, "proj_size", 0):
        raise NotPolynomial("the hidden size of an LSTM with a projection")
    products.append([gates, products[1][-1]])
    if module.bias:
        products += [extents(getattr(module, f"bias_{kind}{suffix}")) for kind in ("ih", "hh")]
    return products


def recurrent(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    steps = [*extents(inputs[0])[:2], 2 if module.bidirectional else 1]
    layers = [recurrent_step(extents, module, f"_l{layer}") for layer in range(module.num_layers)]
    return [[*steps, *product] for layer in layers for product in layer]


def recurrent_cell(extents: Extents, module: Any, inputs: Sequence[Any], output: Any) -> Sum:
    return [[extents(inputs[0])[0], *product] for product in recurrent_step(extents, module)]


_MODULES: dict[Callable[..., Sum], str] = {
    conv: "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    linear: "Linear",
    norm: "BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d GroupNorm LayerNorm",
    output_size: "ReLU PReLU ELU LeakyReLU ReLU6 GELU",
    input_size: """MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d""",
    first_image: "Upsample",
    attention: "MultiheadAttention",
    recurrent: "RNN GRU LSTM",
    recurrent_cell: "RNNCell GRUCell LSTMCell",
}
MODULES: dict[type, Callable[..., Sum]] = {
    getattr(nn, name): count for count, names in _MODULES.items() for name in names.split()
}
"""By exact type: what is derived from `nn.Conv2d`, say, ptflops does not know."""


# ---------------------------------------------------------------------------------------------------------------------
# Functions: the arguments are those of the call, with the names that ptflops gives them.


def size(extents: Extents, input: Tensor, *_: Any, **__: Any) -> Sum:
    return [extents(input)]


def resized(extents: Extents, input: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any) -> Sum:
    batch, channels, *grid = extents(input)
    if size is not None:
        return [[batch, channels, *size]] if isinstance(size, (tuple, list)) else [[batch, channels, size ** len(grid)]]
    if isinstance(scale_factor, tuple) and len(scale_factor) == len(grid):
        return [[batch, channels, *grid, *map(int, scale_factor)]]  # ptflops multiplies in whole numbers here
    return [[batch, channels, *grid, scale_factor ** len(grid)]]


def matmul(extents: Extents, input: Tensor, other: Tensor, *_: Any, **__: Any) -> Sum:
    return [[*extents(input), extents(other)[-1]]]


def addmm(extents: Extents, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, **_: Any) -> Sum:
    return matmul(extents, mat1, mat2) + ([extents(input)] if beta != 0 else [])


def elementwise(extents: Extents, input: Any, other: Any, *_: Any, **__: Any) -> Sum:
    """The size of the broadcast operands, except that ptflops lines their shapes up at the first axis, not the last."""
    a, b = (extents(operand) if isinstance(operand, Tensor) else [] for operand in (input, other))
    return [[_longer(x, y, len(a) == len(b)) for x, y in zip_longest(a, b, fillvalue=1)]]


def _longer(x: Extent, y: Extent, same: bool) -> Extent:
    """The larger of two extents; `same` tells that they belong to one axis of the result, so that both shrink alike."""
    short, long = sorted((x, y), key=lambda extent: (length(extent), not isinstance(extent, int)))
    if length(short) == 1 or same or (isinstance(short, int) and isinstance(long, int)):
        return long
    raise NotPolynomial("it compares the lengths of different axes of two operands, channels among them")


_FUNCTIONS: dict[tuple[Any, Callable[..., Sum]], str] = {
    (F, size): """relu prelu elu relu6 gelu silu softmax avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
    max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d""",
    (F, resized): "upsample interpolate",
    (torch, matmul): "matmul mm bmm",
    (torch, addmm): "addmm baddbmm",
    (torch, elementwise): "mul add",
    (Tensor, matmul): "matmul mm bmm",
    (Tensor, addmm): "addmm",
    (Tensor, elementwise): "mul add",
}
FUNCTIONS: dict[tuple[Any, str], Callable[..., Sum]] = {
    (owner, name): count for (owner, count), names in _FUNCTIONS.items() for name in names.split()
}
"""(where it is, its name) -> its count."""


# ---------------------------------------------------------------------------------------------------------------------
# The run


class PtflopsCounter:
    """Notes down what ptflops would count in a labelled run that happens inside `watching`."""

    def __init__(self, model: nn.Module, labels: Callable[[Any], Labels], position: Position) -> None:
        self.failure = ""
        """Why there is no such count; empty if there is one."""
        self._occurrences = _occurrences(model)
        self._labels = labels
        self._position = position
        self._products: list[tuple[list[Any], str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the calls of modules through a hook, and those of functions by standing in for them."""
        handle = register_module_forward_hook(self._module)
        replaced = [(owner, name, vars(owner).get(name)) for owner, name in FUNCTIONS]
        try:
            for (owner, name), count in FUNCTIONS.items():
                setattr(owner, name, self._counted(getattr(owner, name), count))
            yield
        finally:
            handle.remove()
            for owner, name, original in replaced:
                if original is not None:
                    setattr(owner, name, original)
                elif name in vars(owner):  # it was inherited, as the methods of Tensor are
                    delattr(owner, name)

    def terms(self) -> list[Term]:
        """What was counted, term by term; to be called when the run is over."""
        return [
            Term(
                int(prod(entry for entry in product if not isinstance(entry, Labelled))),
                tuple(entry.ids for entry in product if isinstance(entry, Labelled)),
                module,
            )
            for product, module in self._products
        ]

    def _module(self, module: Any, inputs: Any, output: Any) -> None:
        times = self._occurrences[module]
        if times:
            self._add(MODULES[type(module)], times, module, inputs, output)

    def _counted(self, function: Callable[..., Any], count: Callable[..., Sum]) -> Callable[..., Any]:
        @functools.wraps(function)
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            # No mode is on in other threads, nor below the watched operators, whose kernels may be Python as well. A
            # function that is followed is called once more, by its name, which is that of the stand-in.
            if _get_current_dispatch_mode() is not None:
                followed = getattr(self._position.followed, "__wrapped__", None) is function
                self._position.followed = None
                if not followed:
                    self._add(count, 1, *args, **kwargs)
            return function(*args, **kwargs)

        return stand_in

    def _add(self, count: Callable[..., Sum], times: int, *args: Any, **kwargs: Any) -> None:
        """Where a count fails so does ptflops: it gives no number then, and the labelled run goes on."""
        if self._position.opened:  # ptflops sees the function, not what it is made of
            return
        module = self._position.path
        try:
            self._products += [([times, *product], module) for product in count(self._extents, *args, **kwargs)]
        except Exception as error:
            reason = f"{count.__name__} in {module or 'the network'}: {type(error).__name__}: {error}"
            self.failure = self.failure or reason

    def _extents(self, tensor: Tensor) -> list[Extent]:
        extents: list[Extent] = list(tensor.shape)
        for axis, ids in enumerate(self._labels(tensor)):
            if ids is not None:
                extents[axis] = Labelled(ids)
        return extents


def _occurrences(model: nn.Module) -> Multiset[nn.Module]:
    """How often each module of a known type is met on the way down: ptflops adds it up once for each module that holds
    it, and does not look below it."""
    found: Multiset[nn.Module] = Multiset()

    def visit(module: nn.Module) -> None:
        if type(module) in MODULES:
            found[module] += 1
        else:
            for child in module.children():
                visit(child)

    visit(model)
    return found
