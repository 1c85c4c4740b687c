"""Optimizer, schedulers and averaged weights go on with the compact network: pruning and fine-tuning are one run.

    small = net.compact(optimizer=optimizer, scheduler=scheduler, ema=ema)
    for x, y in batches:                                   # the same three objects, as if nothing had happened
        F.cross_entropy(small(x), y).backward()
        optimizer.step(), scheduler.step(), optimizer.zero_grad(), ema.update_parameters(small)

What an optimizer remembers of a weight (momentum, moments, a sum of squares) has the shape of the weight, so it is cut
as the weight was. They are changed in place, since others hold them: a scheduler its optimizer, a gradient scaler too.
Everything is worked out before anything is changed: what cannot be carried over leaves all of them as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.model.names import Names

PER_GROUP = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "base_values",
)
"""Attributes of PyTorch's schedulers, and of timm's, that are lists with an entry for each group of their optimizer."""

Lives = dict[str, list[Tensor | None]]
Change = Callable[[], None]


def carry(
    model: nn.Module,
    table: ChannelTable,
    small: nn.Module,
    gates: nn.Parameter,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    scheduler: Any = None,
    ema: nn.Module | Sequence[nn.Module] | None = None,
) -> None:
    """Make them go on with `small`, what `model` became by `small.hfp_record.keep`; `gates` are left behind.

    Raises:
        ValueError: the optimizer does not train the model, or remembers something that cannot be cut; the scheduler
            belongs to another optimizer; `ema` averages another network. Nothing is changed then.
    """
    keep: Tensor = small.hfp_record.keep  # type: ignore[union-attr, assignment]
    changes: list[Change] = []
    optimizers, schedulers, averages = _several(optimizer), _several(scheduler), _several(ema)
    for each in optimizers:
        if not hasattr(each, "param_groups"):
            raise ValueError(f"optimizer={each!r:.200}: expected a torch.optim.Optimizer, or a list of them")
    lives = surgery.lives_of(table, table.extended(keep)) if optimizers else {}
    owners = [_owner(each, optimizers) for each in schedulers]
    for each in optimizers:
        left = [index for index, group in enumerate(each.param_groups) if not _only_gates(group, gates)]
        own = [one for one, owner in zip(schedulers, owners, strict=True) if owner is each]
        if left or len(optimizers) == 1:  # else the gates have one of their own, which is done
            changes.append(_moved(each, model, small, gates, lives, left))
        changes += [_shortened(one, left) for one in _schedulers(own, each)]
    changes += [_averaged(each, model, table, small) for each in averages]
    for change in changes:
        change()


def _several(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _owner(scheduler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer whose rate this scheduler sets."""
    if not optimizers:
        raise ValueError("a scheduler goes with its optimizer: net.compact(optimizer=optimizer, scheduler=scheduler)")
    own = getattr(scheduler, "optimizer", None) or getattr(getattr(scheduler, "scheduler", None), "optimizer", None)
    found = [each for each in optimizers if own is not None and each.param_groups is own.param_groups]
    return found[0] if found else optimizers[0]  # an unknown one is refused by `_schedulers`


def _only_gates(group: dict[str, Any], gates: nn.Parameter) -> bool:
    return len(group["params"]) == 1 and group["params"][0] is gates


def _moved(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    small: nn.Module,
    gates: nn.Parameter,
    lives: Lives,
    left: Sequence[int],
) -> Change:
    """What points the optimizer to the parameters of `small`, with the groups `left`, their options, and its memory."""
    names = {parameter: name for name, parameter in Names.of(model).tensors.items()}
    new = Names.of(small).tensors
    _check_whole(optimizer, {id(parameter) for parameter in (*names, gates)})
    within = [one for one in vars(optimizer).values() if isinstance(one, torch.optim.Optimizer)]  # a Lookahead's
    groups, grads = [], {}
    states: dict[torch.optim.Optimizer, dict[Tensor, Any]] = {one: {} for one in (optimizer, *within)}
    for index in left:
        old = optimizer.param_groups[index]
        kept = [parameter for parameter in old["params"] if parameter is not gates]
        now = [new[names[parameter]] if parameter in names else parameter for parameter in kept]
        groups.append({**old, "params": now})
        if "param_names" in old:
            pairs = zip(old["params"], old["param_names"], strict=True)
            groups[-1]["param_names"] = [names.get(p, name) for p, name in pairs if p is not gates]
        for parameter, successor in zip(kept, now, strict=True):
            name = names.get(parameter)
            if name is not None and parameter.grad is not None:  # the sum of some of the batches that make up a step
                grads[successor] = surgery.sliced(parameter.grad, lives[name]) if name in lives else parameter.grad
            for one in (optimizer, *within):
                if parameter in one.state:
                    memory = one.state[parameter]
                    cut = memory if name is None else _cut(memory, name, parameter, lives[name], type(one).__name__)
                    states[one][successor] = cut
    if not any(parameter in names for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"this {type(optimizer).__name__} trains no parameter of the network that was wrapped; give the optimizer "
            "that was made of net.param_groups(...) or net.parameters(), and has not gone on with a compact network yet"
        )

    def change() -> None:
        optimizer.param_groups[:] = groups
        for one, state in states.items():
            one.state.clear()
            one.state.update(state)
        for successor, grad in grads.items():
            successor.grad = grad

    return change


def _check_whole(optimizer: torch.optim.Optimizer, own: set[int]) -> None:
    """ValueError for an optimizer that holds parameters elsewhere than in its groups, where they would go on unseen."""
    for key, value in vars(optimizer).items():
        if key in ("param_groups", "state"):
            continue
        apart = isinstance(value, torch.optim.Optimizer) and value.param_groups is not optimizer.param_groups
        if apart or any(id(leaf) in own for leaf in tree_leaves(value)):
            raise ValueError(
                f"this {type(optimizer).__name__} cannot go on with a compact network: it holds parameters in its "
                f"{key!r} as well. Compact without it, and make a new one for small.parameters()"
            )


def _cut(
    memory: dict[str, Any], name: str, parameter: Tensor, lives: list[Tensor | None], whose: str
) -> dict[str, Any]:
    """What an optimizer remembers of a parameter, cut as the parameter was.

    A dim may be 1 where the parameter's is longer: a factor of a matrix of moments, as Adafactor keeps them.
    """
    found = {}
    for key, value in memory.items():
        if isinstance(value, Tensor) and value.dim() == 0:
            found[key] = value.clone()
        elif not isinstance(value, (Tensor, list, dict, tuple)):
            found[key] = value
        elif isinstance(value, Tensor) and _fits(value, parameter):
            along = [index if length > 1 else None for index, length in zip(lives, value.shape, strict=True)]
            found[key] = surgery.sliced(value, along)
        else:
            form = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"this {whose} cannot go on with a compact network: its {key!r} of {name} is {form}, where the "
                f"parameter is {tuple(parameter.shape)}. Compact without it, and make a new one for small.parameters()"
            )
    return found


def _fits(value: Tensor, parameter: Tensor) -> bool:
    pairs = zip(value.shape, parameter.shape, strict=False)
    return value.dim() == parameter.dim() and all(one in (1, other) for one, other in pairs)


def _schedulers(scheduler: Any, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Every scheduler that was given, those within them, and those that wrappers hold (Accelerate's, Lightning's)."""
    if scheduler is None:
        return []
    if isinstance(scheduler, (list, tuple)):
        return [each for one in scheduler for each in _schedulers(one, optimizer)]
    own = getattr(scheduler, "optimizer", optimizer)  # a chain of schedulers may have none of its own
    if own.param_groups is not optimizer.param_groups:  # an optimizer may be in a wrapper, too
        raise ValueError(f"this {type(scheduler).__name__} belongs to another optimizer than the one that is given")
    within = [*getattr(scheduler, "_schedulers", ()), getattr(scheduler, "scheduler", None)]
    return [scheduler, *_schedulers(within, optimizer)]


def _shortened(scheduler: Any, left: Sequence[int]) -> Change:
    """What takes the entries of the groups that are gone out of a scheduler."""
    lists = {name: getattr(scheduler, name) for name in PER_GROUP if isinstance(getattr(scheduler, name, None), list)}

    def change() -> None:
        for name, entries in lists.items():
            setattr(scheduler, name, [entries[index] for index in left if index < len(entries)])

    return change


def _averaged(ema: nn.Module, model: nn.Module, table: ChannelTable, small: nn.Module) -> Change:
    """What puts a compact network into `ema`, of the averaged weights."""
    held = getattr(ema, "module", None)
    wanted = _shapes(model)
    for network in (held, getattr(held, "model", None)):  # it may average the gated network, or the model in it
        if isinstance(network, nn.Module) and _shapes(network) == wanted:
            compact = surgery.compact(network, table, small.hfp_record.keep)  # type: ignore[union-attr, arg-type]
            compact.hfp_record = small.hfp_record
            return lambda: setattr(ema, "module", compact)
    raise ValueError(
        f"ema is a {type(ema).__name__} that does not average this network: expected one that holds a copy of it as "
        "its `module`, such as torch.optim.swa_utils.AveragedModel(net)"
    )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in Names.of(network).tensors.items()}
