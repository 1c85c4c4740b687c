"""Compaction: slice every tensor to its live channels, set the attributes of modules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hfp.attention import MultiheadAttention
from hfp.channels import ChannelTable
from hfp.cutting.chunks import rows_at_hand
from hfp.cutting.computed import Own, compute, computed
from hfp.cutting.places import Places
from hfp.labels import NO_IDS, prunable
from hfp.model.copies import copied, uncollected
from hfp.model.names import Names
from hfp.tracing.attributes import set_size


@dataclass(frozen=True)
class Record:
    """What a compact network remembers of its origin; `hfp.save` writes it, `hfp.load` needs it."""

    keep: Tensor
    """(channels,) bool: which channels of the dense model are left."""
    fingerprint: str
    """Of the channel table of the dense model."""
    inputs: dict[str, Any]
    """Description of the example inputs, see `hfp.model.inputs.describe`."""
    dense_macs: int
    dense_params: int
    macs: int
    params: int
    targets: dict[str, Any]
    places: Places = field(default_factory=dict)
    """The same cut as indices of tensors, for a table with other channel numbers; empty in older files."""


def compact(model: nn.Module, table: ChannelTable, keep: Tensor) -> nn.Module:
    """A copy of `model`, of its own class, with only the channels in `keep` (channels,), a boolean vector.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> from hfp.trace import trace
    >>> table = trace(model, torch.zeros(1, 3, 8, 8))
    >>> compact(model, table, torch.arange(8) < 5)[2]
    Conv2d(5, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    keep = keep.detach().cpu()
    _check(table, keep)
    if (shard := sharded(model)) is not None:
        raise ValueError(
            f"{shard} is spread over processes (fully_shard), and a cut needs it whole; gather the gated network's "
            "state, state = torch.distributed.checkpoint.state_dict.get_model_state_dict(net, "
            "options=StateDictOptions(full_state_dict=True)), and compact a network that is not spread: "
            "net = hfp.wrap(...) of the plain model, net.load_state_dict(state), net.compact()"
        )
    stays = table.extended(keep)
    names = Names.of(model)
    lives = lives_of(table, stays)
    left = {name: sliced(names.tensors[name], axes) for name, axes in lives.items()}
    # The copy is told beforehand what every tensor becomes: so nothing is copied that is then thrown away, tied weights
    # stay tied, and buffers stay persistent or not.
    memo: dict[int, Any] = {id(names.tensors[name]): tensor for name, tensor in left.items()}
    with uncollected():
        small = copied(model, memo)
    resize(small, table, stays, {alias: left[name] for alias, name in names.aliases.items() if name in left})
    for module in small.modules():
        compute(module)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN wants one piece of memory, and warns; elsewhere this does nothing
    return small


def misfit(model: nn.Module, table: ChannelTable) -> str | None:
    """The first tensor of a model that is not as the table has it, in words; buffers may have any shape."""
    names = Names.of(model)
    for name, axes in table.axes.items():
        shape, now = tuple(map(len, axes)), names.tensors.get(name)
        if now is None or (isinstance(now, nn.Parameter) and tuple(now.shape) != shape):
            return f"{name}, which {'is not there' if now is None else f'is {tuple(now.shape)}'}, was {shape}"
    return None


def sharded(model: nn.Module) -> str | None:
    """The name of a parameter of which every process has a part, if there is one."""
    return next((name for name, tensor in model.named_parameters() if hasattr(tensor, "full_tensor")), None)


def lives_of(table: ChannelTable, stays: Tensor) -> dict[str, list[Tensor | None]]:
    """Tensor name -> for each of its dims the indices that stay, or None where all do; `stays`: extended keep."""
    vectors = [vector for axes in table.axes.values() for vector in axes]
    lengths = [len(vector) for vector in vectors]
    flat = stays[torch.cat([NO_IDS, *vectors])]
    axis = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    starts = torch.tensor([0, *itertools.accumulate(lengths)])
    counts = axis[flat].bincount(minlength=len(vectors)).tolist()
    indices = (flat.nonzero().flatten() - starts[axis[flat]]).split(counts)
    found = (left if len(left) < length else None for left, length in zip(indices, lengths, strict=True))
    return {name: list(itertools.islice(found, len(axes))) for name, axes in table.axes.items()}


def resize(model: nn.Module, table: ChannelTable, stays: Tensor, tensors: dict[str, Tensor]) -> None:
    """Set what the modules of a cut network say of their own sizes. `tensors`: its own, by name."""
    for (name, attribute), vector in table.attributes.items():
        set_size(model.get_submodule(name), attribute, len(live(vector, stays)))
    for name, module in reversed([*model.named_modules()]):  # inner ones first
        prefix = f"{name}." if name else ""
        if type(module) is nn.MultiheadAttention and _is_cut(table, prefix):
            module.__class__ = MultiheadAttention
        if isinstance(module, nn.TransformerEncoder) and _is_cut(table, f"{prefix}layers."):
            module.use_nested_tensor = False  # with a padding mask it would hand nested tensors to its layers
        _set_widths(module, lambda key, prefix=prefix: tensors.get(prefix + key))  # type: ignore[misc]


def _is_cut(table: ChannelTable, prefix: str) -> bool:
    """Whether anything can be removed from the tensors whose names begin so."""
    return any(name.startswith(prefix) and any(map(prunable, axes)) for name, axes in table.axes.items())


def sliced(tensor: Tensor, lives: Sequence[Tensor | None]) -> Tensor:
    """A copy of a tensor of a model with only what stays along each dim: these indices, or all of them (None)."""
    cut = {dim: indices.to(tensor.device) for dim, indices in enumerate(lives) if indices is not None}
    new = _selected(tensor.detach(), cut) if cut else tensor.detach().clone()
    if (order := memory_format(tensor)) is not torch.contiguous_format:
        new = new.contiguous(memory_format=order)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _selected(tensor: Tensor, cut: dict[int, Tensor]) -> Tensor:
    """`index_select` along several dims, part by part, since most of the time goes into what is between two dims."""
    (first, indices), *others = cut.items()
    if not others:
        return tensor.index_select(first, indices)
    new = tensor.new_empty([len(cut[dim]) if dim in cut else length for dim, length in enumerate(tensor.shape)])
    rows = rows_at_hand(tensor, first)
    for some, part in zip(indices.split(rows), new.split(rows, first), strict=True):
        left = tensor.index_select(first, some)
        for dim, there in others[:-1]:
            left = left.index_select(dim, there)
        torch.index_select(left, *others[-1], out=part)
    return new


def memory_format(tensor: Tensor) -> torch.memory_format:
    """In which order the numbers of a tensor lie: channels last or not."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return torch.contiguous_format if last is None or not tensor.is_contiguous(memory_format=last) else last


def live(vector: Tensor, stays: Tensor) -> Tensor:
    """The indices of an axis that stay, by its channel numbers. `stays`: an extended keep vector."""
    return stays[vector].nonzero().flatten()  # FIXED, -1, looks up the last entry


def _check(table: ChannelTable, keep: Tensor) -> None:
    if keep.dtype != torch.bool or keep.shape != (table.channels,):
        raise ValueError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}; the table has {table.channels} channels, "
            f"so a bool tensor of shape ({table.channels},) is needed"
        )
    for group in table.groups:
        if int(keep[group.channels].sum()) < group.least:
            name, dim = group.members[0]
            raise ValueError(
                f"keep leaves {int(keep[group.channels].sum())} of the {group.width} channels of {name} (dim {dim}); "
                f"at least {group.least} must stay"
            )


_SIZES: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.Linear, "weight", "out_features in_features"),
    (nn.Bilinear, "weight", "out_features in1_features in2_features"),
    (nn.Embedding, "weight", "num_embeddings embedding_dim"),
    (nn.EmbeddingBag, "weight", "num_embeddings embedding_dim"),
    (_NormBase, "weight", "num_features"),
    (_NormBase, "running_mean", "num_features"),
    (nn.GroupNorm, "weight", "num_channels"),
    (nn.PReLU, "weight", "num_parameters"),
    (nn.RNNBase, "weight_ih_l0", "_ input_size"),
    (nn.RNNCellBase, "weight_ih", "_ input_size"),
    (MultiheadAttention, "k_proj_weight", "_ kdim"),
    (MultiheadAttention, "v_proj_weight", "_ vdim"),
)
"""(class, a tensor that it owns, what it calls the lengths of its dims)."""


def _set_widths(module: nn.Module, own: Own) -> None:
    """What a module says of its own size follows the tensors that it owns, or computes of those that it owns."""

    def of(key: str) -> Tensor | None:
        return computed(module, key, own) if (tensor := own(key)) is None else tensor

    for kind, key, attributes in _SIZES:
        if isinstance(module, kind) and (tensor := of(key)) is not None:
            for attribute, length in zip(attributes.split(), tensor.shape, strict=False):
                if attribute != "_":
                    setattr(module, attribute, length)
    weight = of("weight") if isinstance(module, (_ConvNd, nn.LayerNorm, nn.RMSNorm)) else None
    if isinstance(module, _ConvNd) and weight is not None:
        narrow, wide = weight.shape[1] * module.groups, weight.shape[0]
        module.in_channels, module.out_channels = (wide, narrow) if module.transposed else (narrow, wide)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, MultiheadAttention):
        module.embed_dim = module.out_proj.out_features
        module.head_dim = module.out_proj.in_features // max(1, module.num_heads)
