"""The promises that every network must keep, each as one check. Tests and benchmarks call the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from hfp import gates
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact
from hfp.model.inputs import Arguments


class Gated(nn.Module):
    """`model` with the channels outside `keep` gated off, by the engine's own gates."""

    def __init__(self, model: nn.Module, table: ChannelTable, keep: Tensor) -> None:
        super().__init__()
        self.model, self.keep = model, keep
        self.readers = gates.Readers(model, table)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        dtype = next(self.model.parameters()).dtype
        return gates.gated_forward(self.model, self.readers, self.keep.to(dtype), args, kwargs)


def random_keep(table: ChannelTable, density: float, generator: torch.Generator) -> Tensor:
    """About `density` of the channels, the least of every group at least: density 0 leaves exactly those."""
    scores = torch.rand(table.channels, generator=generator)
    keep = scores < density
    for group in table.groups:
        keep[group.channels[scores[group.channels].argsort()[: group.least]]] = True
    return keep


def relative_difference(a: Any, b: Any) -> float:
    """The largest difference of two outputs, over the largest value of the tensor it is in; infinite for a NaN."""
    worst = 0.0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.shape == y.shape, f"shape {tuple(x.shape)} became {tuple(y.shape)}"
        if x.numel():
            apart = ((x - y).abs().max() / x.abs().max().clamp_min(1e-30)).detach()
            worst = max(worst, float(apart.nan_to_num(math.inf, posinf=math.inf)))  # max(worst, nan) would be worst
    return worst


def leaves(out: Any) -> list[Tensor]:
    """The tensors of an output, also of one that is an object with attributes."""
    opened = tree_map(lambda leaf: leaf if isinstance(leaf, Tensor) else getattr(leaf, "__dict__", leaf), out)
    found = [leaf for leaf in tree_leaves(opened) if isinstance(leaf, Tensor)]
    assert found, f"no tensor in an output of type {type(out).__name__}"
    return found


def call(model: Callable[..., Any], arguments: Arguments, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*arguments[0], **arguments[1])


def grouped_flop(a: tuple[int, ...], b: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    """Each of the numbers that come out is a sum over the last axis of a."""
    return 2 * math.prod(out_shape) * a[-1]


UNKNOWN_TO_PYTORCH = {torch.ops.aten._grouped_mm: grouped_flop} if hasattr(torch.ops.aten, "_grouped_mm") else {}


def measured(model: nn.Module, arguments: Arguments) -> tuple[int, int]:
    """(multiply-adds, parameters) by PyTorch's own counter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # the counter hooks into gradients, and fails on views that are to have one
    try:
        with only_plain_operators(), FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_PYTORCH) as counter:
            call(model, arguments)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@contextmanager
def only_plain_operators() -> Iterator[None]:
    """PyTorch's counter does not see into fused attention and fused recurrent layers: leave these off."""
    before = torch.backends.mha.get_fastpath_enabled()
    fused = torch.backends.mkldnn.set_flags(_enabled=False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        torch.backends.mkldnn.set_flags(_enabled=fused[0])


def predicted(table: ChannelTable, keep: Tensor) -> tuple[int, int]:
    return table.macs.count(keep), table.params.count(keep)


def check_cut(
    model: nn.Module,
    table: ChannelTable,
    keep: Tensor,
    arguments: Arguments,
    tolerance: float,
    training: bool = True,
    chaos: bool = False,
) -> float:
    """Promises 2 and 3 for one keep vector: the compacted network computes what the gated one does, and costs what was
    predicted. Returns the error, with `training` the larger one of both modes (batch statistics).

    With `chaos`, an error is let off where the compacted network's own rounding makes as much of a difference.
    """
    errors = []
    for mode in (True, False) if training else (False,):
        small = compact(model.eval(), table, keep)
        gated = Gated(model, table, keep)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        gated.train(mode), small.train(mode)
        error = relative_difference(call(gated, arguments), call(small, arguments))
        if not error < tolerance:
            rounded = rounding(compact(model.eval(), table, keep).train(mode), arguments)
            where = "training" if mode else "evaluation"
            assert chaos and error < 10 * rounded, (
                f"gated and compacted differ by {error:.1e} in {where}, rounding {rounded:.1e}"
            )
        errors.append(error)
        model.load_state_dict(state)
    costs, counted = predicted(table, keep), measured(small, arguments)
    assert costs == counted, f"predicted (MACs, parameters) are {costs}, counted {counted}"
    return max(errors)


def rounding(model: nn.Module, arguments: Arguments) -> float:
    """How far the outputs move with the last digits of all weights and inputs: what no check can tell from an error."""
    draws = torch.Generator().manual_seed(0)

    def nudged(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        noise = torch.randn(value.shape, generator=draws, dtype=value.dtype)
        return value * (1 + 10 * torch.finfo(value.dtype).eps * noise)

    state = {name: value.clone() for name, value in model.state_dict().items()}
    exact = call(model, arguments)
    model.load_state_dict({name: nudged(value) for name, value in state.items()})
    moved = call(model, tree_map(nudged, arguments))
    model.load_state_dict(state)
    return relative_difference(exact, moved)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must be the same after a network was only looked at; compare with ==."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    modules = list(model.named_modules(remove_duplicate=False))
    return {
        "tensors": {
            name: (id(t), t.device.type, t.requires_grad, t.detach().to_dense().tolist()) for name, t in tensors.items()
        },
        "training": {name: module.training for name, module in modules},
        "attributes": {name: {k: id(v) for k, v in vars(m).items() if k[0] != "_"} for name, m in modules},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules},
        "random": torch.get_rng_state().tolist(),
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
    }
