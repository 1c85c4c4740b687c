"""Torch-Pruning (1.6) as a peer in the accuracy benchmark: train.py, with its pruners in the place of ours.

    python benchmarks/peers.py --method tp-group-norm --target-macs 0.4 ...      # the other flags are train.py's

What is Torch-Pruning's: the choice of channels, sparse training before it, and the way to the target, which is that of
its own scripts for CIFAR (reproduce/main.py): global pruning in 400 small steps, until the count meets the target.
What is train.py's: data, recipe, epochs, and the slicing; a cut of Torch-Pruning is taken over as a vector of channels
that stay, and has to be the same, number by number, as what Torch-Pruning's own slicing gives.

Strengths of sparse training are those of its scripts, which train for 100 epochs. A shorter phase gets the same dose:
they are scaled so that strength times learning rate, added up over the steps, is what it is there. The weight decay of
the recipe stays on beside them, as for every method (the scripts switch it off).
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hfp
import train
from hfp import methods
from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.experiment import loop
from hfp.experiment.lab import Lab, fit, snapshot

REG, DELTA_REG, UPDATES = 5e-4, 1e-4, 100
"""Of its scripts: strength, by how much a growing one grows at a time, and how many times."""
DOSE = 60 * 0.01 + 20 * 0.001 + 20 * 0.0001
"""Of its scripts: the learning rate, added up over epochs of sparse training."""
STEPS = 400
"""Of its scripts: in so many steps all channels would be gone."""


@dataclass(frozen=True)
class Peer:
    """One of Torch-Pruning's pruners."""

    pruner: str
    """Its name in `torch_pruning.pruner`."""
    importance: str
    """The same in `torch_pruning.importance`."""
    normalizer: str = "mean"
    sparse: bool = False
    """Whether it trains towards sparsity before it cuts; otherwise it cuts at once."""
    growing: bool = False

    def build(self, model: nn.Module, example: Tensor, *, scale: float = 1.0, **options: Any) -> Any:
        """The pruner for `model`, left in evaluation mode; its last layer stays whole."""
        import torch_pruning as tp  # an extra: pip install -e ".[bench]"

        strengths = {"reg": REG * scale} if self.sparse else {}
        if self.growing:
            strengths["delta_reg"] = DELTA_REG * scale
        importance = getattr(tp.importance, self.importance)(normalizer=self.normalizer)
        *_, last = (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(tp.pruner, self.pruner)(
                model.eval(),
                example,
                importance=importance,
                global_pruning=True,
                ignored_layers=[last],
                **strengths,
                **options,
            )


PEERS = {
    "tp-group-norm": Peer("MagnitudePruner", "GroupMagnitudeImportance"),
    "tp-bn-scale": Peer("BNScalePruner", "BNScaleImportance", sparse=True),
    "tp-group-sparse": Peer("GroupNormPruner", "GroupMagnitudeImportance", normalizer="max", sparse=True),
    "tp-growing-reg": Peer("GrowingRegPruner", "GroupMagnitudeImportance", sparse=True, growing=True),
}
"""By the names that the benchmark gives them: magnitude of groups in one shot; network slimming; DepGraph's sparse
training; growing regularisation."""

# ---------------------------------------------------------------------------------------------------------------------
# The cut


def cut(peer: Peer, model: nn.Module, table: ChannelTable, limit: int) -> Tensor:
    """(channels,) bool: the channels of `table` that stay when the peer prunes a copy of `model` to `limit` MACs.

    Raises:
        ValueError: it cannot get there.
        RuntimeError: what it cut is not what these channels stand for.
    """
    trial = copy.deepcopy(model).cpu().float()
    pruner = peer.build(trial, torch.zeros(1, *trial.input_size), pruning_ratio=1.0, iterative_steps=STEPS)
    keep, known = torch.ones(table.channels, dtype=torch.bool), 0
    while table.macs.count(keep) > limit:
        if pruner.current_step == STEPS:
            raise ValueError(f"{peer.pruner} stops at {table.macs.count(keep):,} MACs, above {limit:,}")
        pruner.step()
        history = pruner.pruning_history()
        keep, known = replay(history[known:], table, keep), len(history)
    check_same(trial, surgery.compact(model, table, keep))
    return keep


def replay(history: list[Any], table: ChannelTable, keep: Tensor) -> Tensor:
    """What cuts of Torch-Pruning leave of the channels `keep`: (layer, whether its outputs, which of those it had)."""
    left = keep.clone()
    for layer, outputs, places in history:
        axis = table.axes[f"{layer}.weight"][0 if outputs else 1]
        left[axis[table.extended(left)[axis]][list(places)]] = False
    return left


def check_same(theirs: nn.Module, ours: nn.Module) -> None:
    """
    Raises:
        RuntimeError: two tensors differ.
    """
    own = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not torch.equal(tensor, own[name].cpu()):
            shapes = f"{tuple(tensor.shape)} by Torch-Pruning, {tuple(own[name].shape)} by hfp"
            raise RuntimeError(f"{name} is not cut alike: {shapes}")


def frozen(net: hfp.GatedModel, keep: Tensor) -> hfp.GatedModel:
    """`net` with these channels, to the end."""
    net.keep = keep
    net.stop()
    return net


# ---------------------------------------------------------------------------------------------------------------------
# Sparse training


class Sparse(nn.Module):
    """A network in sparse training. Strengths that grow are buffers, so that a checkpoint holds them."""

    def __init__(self, model: nn.Module, peer: Peer, *, scale: float, update_every: int) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.pruner = peer.build(model, torch.zeros(1, *model.input_size, device=device), scale=scale)
        self.update_every = update_every
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.strengths: list[str] = []
        for number, strength in enumerate(self.pruner.group_reg.values() if peer.growing else ()):
            self.strengths.append(f"strength{number}")
            self.register_buffer(self.strengths[-1], strength.to(device))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    @torch.no_grad()
    def pull(self, *_: Any) -> None:
        """Add the pull towards sparsity to the gradients; a hook before the optimizer's step."""
        if not self.strengths:
            self.pruner.regularize(self.model)
            return
        groups = list(self.pruner.group_reg)
        self.pruner.group_reg = {group: getattr(self, name) for group, name in zip(groups, self.strengths, strict=True)}
        self.pruner.regularize(self.model)
        self.step += 1
        if int(self.step) % self.update_every == 0:
            self.pruner.update_reg()
            for group, name in zip(groups, self.strengths, strict=True):
                getattr(self, name).copy_(self.pruner.group_reg[group])


def strength_scale(lr: float, epochs: int, total: int) -> float:
    """What makes the dose of `epochs` at the start of a cosine over `total` epochs equal to that of the scripts.

    >>> round(strength_scale(0.01, 1000, 10**9), 4)  # ten times as long, at a constant rate of theirs at its highest
    0.0622
    """
    slices = 1000 * epochs
    mean = sum(loop.cosine((index + 0.5) / slices * epochs / total) for index in range(slices)) / slices
    return DOSE / (lr * epochs * mean)


# ---------------------------------------------------------------------------------------------------------------------
# The phase of train.py


def prune_phase(lab: Lab, baseline: nn.Module) -> train.Pruned:
    """Train towards sparsity and cut, or cut and train on; `baseline` is trained in place. As `train.prune_phase`."""
    config, run = lab.config, lab.run
    if run.passed("prune"):
        return None, None
    peer = PEERS[config.method]
    net = hfp.wrap(baseline, **lab.wrap)
    limit = net.budgets[0].target
    optimizer = loop.sgd([{"params": baseline.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}])
    train_on: Callable[..., None] = partial(fit, lab, "prune", epochs=config.prune_epochs, schedule=(0, lab.total))
    if peer.sparse:
        steps = config.prune_epochs * lab.data.train.num_batches(config.batch_size, drop_last=True)
        scale = strength_scale(config.lr, config.prune_epochs, lab.total)
        sparse = Sparse(baseline, peer, scale=scale, update_every=-(-steps // UPDATES)).to(config.device)
        optimizer.register_step_pre_hook(sparse.pull)
        train_on(net=sparse, optimizer=optimizer)
        frozen(net, cut(peer, baseline, net.table, limit))
    else:
        frozen(net, cut(peer, baseline, net.table, limit))
        train_on(net=net, optimizer=optimizer)
    run.save(snapshot(lab, "prune", config.prune_epochs, net, optimizer), run.gated)
    return net, optimizer


def main(argv: list[str] | None = None) -> int:
    """train.py with one method more for each peer; what they are wrapped by never acts."""
    added = {name: dataclasses.replace(methods.METHODS["uniform"], name=name) for name in PEERS}
    methods.METHODS.update(added)
    try:
        return train.main(argv, partial(train.experiment, prune=prune_phase))
    finally:
        for name in added:
            del methods.METHODS[name]


if __name__ == "__main__":
    sys.exit(main())
