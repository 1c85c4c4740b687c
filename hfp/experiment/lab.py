"""What the phases of train.py share: the lab that they work in, and the loop over epochs that writes down every one.

fit(lab, "dense", net, optimizer, epochs=20, schedule=(0, 20))     # trains, or goes on, and leaves a checkpoint
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hfp import checkpoint, report
from hfp.experiment import data, loop
from hfp.experiment.floor import Floor
from hfp.experiment.restore import amid
from hfp.experiment.run import RunFolder
from hfp.experiment.settings import Config
from hfp.experiment.stopping import saved_if_stopped
from hfp.gated import GatedModel


@dataclass
class Lab:
    """What every phase works with."""

    config: Config
    run: RunFolder
    data: data.Dataset
    display: report.Display
    recipe: loop.Recipe
    build: dict[str, Any]
    """Arguments of `models.build`, without weights: they say the dense architecture."""
    wrap: dict[str, Any]
    """Arguments of `hfp.wrap`, beside the network."""
    counts: tuple[int, int]
    """Multiply-adds and parameters of the dense network."""
    dense: Callable[[], nn.Module]
    """Makes the dense network, with fresh weights."""

    @property
    def total(self) -> int:
        """Epochs of pruning and fine-tuning, which share one learning-rate schedule."""
        return self.config.prune_epochs + self.config.finetune_epochs


def fit(
    lab: Lab,
    phase: str,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: tuple[int, int],
    penalty: Callable[[], torch.Tensor] | None = None,
    also: dict[str, Any] | None = None,
    floor: Floor | None = None,
) -> None:
    """Train `net` for the epochs of `phase` that are still to do, with a line and a checkpoint after each.

    `schedule` is (epochs before this phase, epochs in all) of the learning-rate cosine; `also` goes into checkpoints;
    `floor` is told of every epoch.
    Whatever an epoch draws at random depends on its number alone, so that a resumed run equals an uninterrupted one;
    and the control sees the same batches as pruning and fine-tuning. An epoch that a signal stops is saved amid, with
    its sums and the state of the random numbers.
    """
    run, (before, total) = lab.run, schedule
    done = run.restore(phase, net, optimizer)
    if done > epochs:
        raise ValueError(f"{run.checkpoint} has {done} epochs of phase {phase!r}, which has {epochs} in this run.")
    running = run.amid(phase, torch.device(lab.config.device))
    if done == 0 and not running.steps:
        if floor is not None:
            floor.check(0, loop.evaluate(net, batches(lab, lab.data.validation), lab.recipe)[0])
        run.save(snapshot(lab, phase, 0, net, optimizer, also))
    steps = lab.data.train.num_batches(lab.config.batch_size, drop_last=True)
    lab.display.start(phase, total=epochs * steps, done=done * steps + running.steps)

    def save_amid(epoch: int, running: loop.Running) -> None:
        parts = {**(also or {}), "amid": amid(running, torch.device(lab.config.device))}
        run.save(snapshot(lab, phase, epoch, net, optimizer, parts))

    def lr_factor(position: int, step: int) -> float:
        return loop.cosine((position + step / steps) / total)

    for epoch in range(done, epochs):
        position = before + epoch
        with saved_if_stopped(partial(save_amid, epoch, running)) as stopped:
            train_epoch(
                lab,
                net,
                optimizer,
                running,
                seed=loop.epoch_seed(lab.config.seed, "dense" if phase == "dense" else "pruning", position),
                lr_factor=partial(lr_factor, position),
                penalty=penalty,
                stopped=stopped,
            )
            validation = unless(stopped, batches(lab, lab.data.validation))
            accuracy, loss = loop.evaluate(net, validation, lab.recipe)
        line = {
            "phase": phase,
            "epoch": epoch + 1,
            "lr": lab.config.lr * lr_factor(position, 0),
            **figures(lab, running, *live_counts(lab, net)),
            "validation_accuracy": accuracy,
            "validation_loss": loss,
        }
        run.log(line)
        lab.display.line(report.epoch_line(line, epochs))
        if floor is not None and (said := floor.check(epoch + 1, accuracy)):
            lab.display.line(said)
        run.save(snapshot(lab, phase, epoch + 1, net, optimizer, also))
        running = loop.Running()


def train_epoch(
    lab: Lab,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: loop.Running,
    *,
    seed: int,
    lr_factor: Callable[[int], float],
    penalty: Callable[[], torch.Tensor] | None,
    stopped: Callable[[], bool],
) -> None:
    """What is left of one epoch, added to `running`; everything that an epoch draws at random comes from `seed`."""
    if not running.steps:
        torch.manual_seed(seed)
    config = lab.config
    shuffled = lab.data.train.batches(
        config.batch_size,
        seed=seed,
        augment=config.augment,
        drop_last=True,
        start=running.steps,
        device=config.device,
    )
    loop.train_epoch(
        net,
        unless(stopped, shuffled),
        optimizer,
        lab.recipe,
        lr_factor=lr_factor,
        penalty=penalty,
        on_step=lambda running: lab.display.step(lambda: live_text(lab, running, *live_counts(lab, net))),
        running=running,
    )


def unless(stopped: Callable[[], bool], batches: loop.Batches) -> loop.Batches:
    """The batches until `stopped`."""
    return itertools.takewhile(lambda batch: not stopped(), batches)


def figures(lab: Lab, running: loop.Running, macs: int, params: int) -> dict[str, Any]:
    """What an epoch's line says of training and of the network's size."""
    return {
        "task_loss": running.task_loss,
        "complexity_loss": running.penalty,
        "train_accuracy": running.accuracy,
        "macs": macs,
        "macs_share": macs / lab.counts[0],
        "params": params,
        "params_share": params / lab.counts[1],
        "seconds": round(running.seconds, 3),
    }


def snapshot(
    lab: Lab,
    phase: str,
    epoch: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    also: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A checkpoint: enough to go on, and for `python -m hfp.compact` to rebuild the network without this script."""
    state = {
        "phase": phase,
        "epoch": epoch,
        "build": lab.build,
        "wrap": lab.wrap,
        "config": dataclasses.asdict(lab.config),
    }
    return state | {"net": net.state_dict(), "optimizer": optimizer.state_dict()} | (also or {})


def live_counts(lab: Lab, net: nn.Module) -> tuple[int, int]:
    """How many multiply-adds and parameters of `net` are live now."""
    if isinstance(net, GatedModel):
        return net.macs(), net.params()
    if hasattr(net, "hfp_record"):
        record = checkpoint.record_of(net)
        return record.macs, record.params
    return lab.counts


def live_text(lab: Lab, running: loop.Running, macs: int, params: int) -> str:
    """What the progress bar says of the epoch so far."""
    return (
        f"MACs {macs / lab.counts[0]:.3f}  parameters {params / lab.counts[1]:.3f}  "
        f"loss {running.task_loss:.3f}  accuracy {report.percent(running.accuracy)}"
    )


def batches(lab: Lab, split: data.Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A whole split, in order, as it is."""
    return split.batches(2 * lab.config.batch_size, device=lab.config.device)


def place(net: nn.Module, config: Config) -> nn.Module:
    """`net` where, and in the layout in which, it is to run."""
    net = net.to(config.device)
    return net.to(memory_format=torch.channels_last) if config.channels_last else net
