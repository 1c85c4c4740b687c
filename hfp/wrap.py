"""`wrap`: from a model and a budget to the gated network, with everything checked before any training."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

from torch import nn

from hfp import methods
from hfp.budget import Budget, Target, absolute
from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.gated import GatedModel
from hfp.methods.method import Method
from hfp.model import inputs
from hfp.model.ambient import plainly
from hfp.proof import ptflops_check
from hfp.proof.verify import random_keeps
from hfp.threshold import smallest
from hfp.trace import Ignored, check_plain, ignored_modules, trace

CUTS, MANY_CUTS = 2, 5  # random cuts that `wrap` tries by default, and where it is told to verify
VERIFIED_BY_DEFAULT = 50_000_000  # parameters up to which `wrap` proves on real numbers that gating equals removing


@plainly
def wrap(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    target_macs: Target | None = None,
    target_params: Target | None = None,
    steps: int = 1000,
    ignore: Ignored = (),
    round_to: int = 1,
    counter: str = "macs",
    method: str | Method = "hfp",
    verify: bool | None = None,
) -> GatedModel:
    """Give every prunable channel of `model` a gate, and the network a budget.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> net = wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.5)
    >>> small = net.compact()
    >>> [type(layer).__name__ for layer in small], small[0].out_channels
    (['Conv2d', 'ReLU', 'Conv2d'], 4)

    `example_inputs`: a tensor, a tuple of tensors or a dict of keyword tensors, a batch of one is enough (proofs
        compute on all of it); may be left out for a model that tells its own `input_size` (channels, height, width).
    `target_macs`, `target_params`: a float in (0, 1] is a share of the dense model, an int a count (multiply-adds are
        those of one pass of the example inputs); either or both.
    `steps`: training steps (calls of `complexity_loss`) in which the budget comes down to the target.
    `ignore`: modules, or glob patterns of module names, whose output channels stay whole.
    `round_to`: widths become multiples of it (those that are smaller, or no multiple, to begin with may stay as they
    are).
    `counter`: "macs" counts multiply-adds of convolutions, linear layers and matrix products, half of what
        `torch.utils.flop_counter.FlopCounterMode` shows, and of grouped products (experts), which it does not know;
        "ptflops" what ptflops' default backend prints.
    `method`: how channels are judged, and when they are cut: a name of `hfp.methods.METHODS`, or an `hfp.Method`.
    `verify`: whether to compare the gated with the compacted network on random numbers, before any training; by
        default, with fewer random cuts, networks of up to 50 million parameters are.

    ValueError for a target that is out of reach (with the smallest that is not) and for a model that cannot be wrapped.
    `hfp.Disagreement`, with the channel groups to blame, if gating channels of this model is not the same as removing
    them.
    """
    _check_model(model, target_macs, target_params)
    steps, round_to, target_macs, target_params = map(_number, (steps, round_to, target_macs, target_params))
    _check_options(steps, round_to, counter, verify)
    method = methods.find(method)
    arguments = inputs.arguments(model, example_inputs)
    ignored = ignored_modules(model, ignore)
    table = trace(model, example_inputs, ignore=ignored, ptflops=counter == "ptflops")
    if not table.groups:
        raise ValueError(f"{type(model).__name__} has no channel that could be removed:\n{table}")
    if counter == "ptflops":
        ptflops_check.agree(table, model, arguments)
    targets = {"macs": target_macs, "params": target_params}
    net = GatedModel(
        model,
        table,
        arguments,
        _budgets(table, targets, counter, round_to),
        method=method,
        counter=counter,
        steps=steps,
        round_to=round_to,
        targets=targets | {"counter": counter, "round_to": round_to, "ignore": ignored, "method": method.name},
    )
    if verify or (verify is None and net.dense_params <= VERIFIED_BY_DEFAULT):
        proof = net.proof()
        for number, keep in enumerate(random_keeps(table, MANY_CUTS if verify else CUTS)):
            proof.check(keep)
            if verify or number == 0:
                proof.check_gradients(keep)
    return net


def _budgets(table: ChannelTable, targets: dict[str, Target | None], counter: str, round_to: int) -> Iterator[Budget]:
    """One for each target; ValueError for a target that is out of reach."""
    for name, cost in table.costs(counter).items():
        target = targets[name]
        if target is not None:
            most = absolute(target, f"target_{name}", cost.dense(), smallest(table, cost, round_to))
            yield Budget(name, cost, cost.dense(), most)


def _check_model(model: nn.Module, target_macs: Any, target_params: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"hfp.wrap needs an nn.Module, not a {name}")
    if any(isinstance(module, GatedModel) for module in model.modules()):
        raise ValueError(
            "the model is wrapped already; wrap the plain model, net.model, or go on with the net that you have"
        )
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "the model is compiled; wrap the plain one, then compile: torch.compile(hfp.wrap(model._orig_mod, ...))"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"the model is in {name}; wrap the plain one first: {name}(hfp.wrap(model.module, ...))")
    if surgery.sharded(model) is not None:
        raise ValueError(
            f"{name} is spread over processes; wrap the plain one first: fully_shard(hfp.wrap(model, ...))"
        )
    check_plain(model)
    if target_macs is None and target_params is None:
        raise ValueError(
            "no target given; for 40 % of the multiply-adds: hfp.wrap(model, example_inputs, target_macs=0.4)"
        )
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"{name} has no parameters, so there is nothing to prune")
    if any(parameter.is_meta for parameter in parameters):
        raise ValueError(
            f'{name} is on the meta device and has no values to train; load them first: model.to_empty(device="cpu")'
        )
    if any(parameter.is_inference() for parameter in parameters):
        raise ValueError(f"{name} was made in torch.inference_mode(), where nothing can be trained; make it outside")
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"all parameters of {name} are frozen, so it cannot recover; call model.requires_grad_(True) first"
        )


def _number(value: Any) -> Any:
    """Python's own number for one of NumPy's, which files do not know."""
    if isinstance(value, (bool, int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _check_options(steps: Any, round_to: Any, counter: Any, verify: Any) -> None:
    for name, value in (("steps", steps), ("round_to", round_to)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
    if counter not in ("macs", "ptflops"):
        raise ValueError(f"counter={counter!r}: expected 'macs' or 'ptflops'")
    if verify is not None and not isinstance(verify, bool):
        raise ValueError(f"verify={verify!r}: expected True or False")
