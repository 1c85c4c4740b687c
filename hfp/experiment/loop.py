"""The training loop that train.py tells: one epoch, one evaluation, one latency measurement. Knows nothing of gates.

for epoch in range(epochs):
    running = train_epoch(net, data.train.batches(128, seed=0, epoch=epoch, augment=True), optimizer, Recipe(),
                          lr_factor=lambda step: cosine(step / steps), penalty=net.complexity_loss)
    accuracy, loss = evaluate(net, data.validation.batches(500))
"""

from __future__ import annotations

import copy
import hashlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfp.model.inputs import Arguments, placed

AUXILIARY_WEIGHT = 0.3
"""Weight of an auxiliary head's loss, as GoogLeNet's authors have it (Szegedy et al., 2015, section 5)."""

DISTILLATION_TEMPERATURE = 4.0
"""Softens teacher and student alike; T in Hinton et al., 2015, equation 1."""

LARGEST_GRADIENT = 10.0
"""Norm to which gradients are clipped beside a teacher. Its softened loss is curved even where cross-entropy is flat,
so that networks without normalisation leave the minimum that they start from; others stay below this."""

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """What is minimised and how it is computed, the same for every phase of a run.

    With a teacher, the task loss is `(1 - distill) * cross_entropy + distill * T^2 * KL(teacher || student)`, both
    softened by the temperature T, and gradients are clipped.
    """

    label_smoothing: float = 0.0
    distill: float = 0.0
    teacher: nn.Module | None = None
    amp: bool = False
    """Forward passes under bfloat16 autocast; losses and gates stay in float32."""
    channels_last: bool = False


@dataclass
class Running:
    """Sums over an epoch so far, kept on the device: reading one waits for the device, adding to it does not."""

    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: int, **values: Tensor) -> None:
        self.images += images
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()

    @property
    def task_loss(self) -> float:
        """Mean over images."""
        return self._mean("task_loss", self.images)

    @property
    def penalty(self) -> float:
        """Mean over steps of what `penalty` returned; 0 without one."""
        return self._mean("penalty", self.steps)

    @property
    def accuracy(self) -> float:
        """Share of the images seen that were right, in [0, 1], in train mode and under augmentation."""
        return self._mean("correct", self.images)

    def _mean(self, name: str, count: int) -> float:
        return float(self.sums[name]) / max(count, 1) if name in self.sums else 0.0


def cosine(progress: float) -> float:
    """Learning-rate factor, from 1 at progress 0 to 0 at progress 1 (Loshchilov and Hutter, 2017).

    >>> [round(cosine(p), 3) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def epoch_seed(seed: int, stage: str, epoch: int) -> int:
    """A seed of its own for every epoch, so that what an epoch draws does not depend on what ran before it.

    >>> epoch_seed(0, "dense", 3) == epoch_seed(0, "dense", 3) != epoch_seed(0, "dense", 4)
    True
    """
    digest = hashlib.sha256(f"{seed}/{stage}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")  # 56 bits: every generator takes that many


def sgd(groups: Iterable[dict[str, Any]]) -> torch.optim.SGD:
    """SGD with Nesterov momentum 0.9; each group's learning rate becomes its `initial_lr`, the top of its schedule."""
    listed = [{**group, "initial_lr": group["lr"]} for group in groups]
    return torch.optim.SGD(listed, momentum=0.9, nesterov=True)


def train_epoch(
    net: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    lr_factor: Callable[[int], float],
    penalty: Callable[[], Tensor] | None = None,
    on_step: Callable[[Running], None] | None = None,
    running: Running | None = None,
) -> Running:
    """One pass over `batches` in train mode.

    Args:
        batches: pairs of images (B, C, H, W) and labels (B,), on the device of `net`.
        lr_factor: of the step number in this epoch; multiplies every group's `initial_lr`.
        penalty: called once after each forward pass, added to the task loss (`net.complexity_loss` of a gated network).
        on_step: called after each step with the sums so far.
        running: the sums of an epoch that was stopped, whose first steps `batches` leaves out; it is added to.

    Raises:
        ValueError: the loss is no longer a finite number.
    """
    net.train()
    running = Running() if running is None else running
    start = time.perf_counter() - running.seconds
    for step, (x, y) in enumerate(batches, start=running.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor(step)
        output = forward(net, x, recipe)
        task = task_loss(output, x, y, recipe)
        extra = penalty() if penalty is not None else task.new_zeros(())
        optimizer.zero_grad(set_to_none=True)
        (task + extra).backward()
        if recipe.teacher is not None:  # gates, whose gradients are of another size, by themselves
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], LARGEST_GRADIENT)
        optimizer.step()
        correct = (main_output(output).argmax(1) == y).sum()
        running.add(len(y), task_loss=task.detach() * len(y), penalty=extra, correct=correct)
        running.seconds = time.perf_counter() - start
        if on_step is not None:
            on_step(running)
    if not math.isfinite(running.task_loss + running.penalty):
        rates = ", ".join(f"{group['initial_lr']:g}" for group in optimizer.param_groups)
        raise ValueError(
            f"The loss became {running.task_loss + running.penalty}: training diverged. "
            f"Lower the learning rate ({rates})."
        )
    running.seconds = time.perf_counter() - start
    return running


@torch.no_grad()
def evaluate(net: nn.Module, batches: Batches, recipe: Recipe = Recipe()) -> tuple[float, float]:  # noqa: B008  # frozen
    """Accuracy in [0, 1] and mean cross-entropy over all of `batches`, in eval mode; the mode is put back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    running = Running()
    try:
        for x, y in batches:
            logits = main_output(forward(net, x, recipe)).float()
            loss = F.cross_entropy(logits, y, reduction="sum")
            running.add(len(y), task_loss=loss, correct=(logits.argmax(1) == y).sum())
    finally:
        for module, training in modes.items():
            module.training = training
    return running.accuracy, running.task_loss


def forward(net: nn.Module, x: Tensor, recipe: Recipe) -> Any:
    """What `net` returns for the images x (B, C, H, W), computed as the recipe says."""
    if recipe.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.amp):
        return net(x)


def main_output(output: Any) -> Tensor:
    """The logits (B, classes); GoogLeNet and Inception return them first, before their auxiliary heads."""
    return output if isinstance(output, Tensor) else output[0]


def task_loss(output: Any, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy of all heads, plus distillation of the main one where the recipe has a teacher; a scalar."""
    heads = [output] if isinstance(output, Tensor) else [head for head in output if head is not None]
    losses = [F.cross_entropy(head.float(), y, label_smoothing=recipe.label_smoothing) for head in heads]
    loss = losses[0] + AUXILIARY_WEIGHT * sum(losses[1:], start=losses[0].new_zeros(()))
    if recipe.teacher is None or recipe.distill == 0:
        return loss
    with torch.no_grad():
        target = main_output(forward(recipe.teacher, x, recipe)).float() / DISTILLATION_TEMPERATURE
    student = F.log_softmax(heads[0].float() / DISTILLATION_TEMPERATURE, dim=1)
    divergence = F.kl_div(student, F.log_softmax(target, dim=1), reduction="batchmean", log_target=True)
    # T^2 keeps the gradient's size independent of T (Hinton et al., 2015, section 2.1).
    return (1 - recipe.distill) * loss + recipe.distill * DISTILLATION_TEMPERATURE**2 * divergence


def latency(
    nets: Mapping[str, nn.Module], x: Tensor | Arguments, *, seconds: float = 3.0, rounds: int = 100
) -> dict[str, float]:
    """Median milliseconds of one CPU forward pass of each network, measured side by side, as `turns` does.

    `x`: images (B, C, H, W), or positional and keyword arguments as in `hfp.model.inputs`. Copies are measured: the
    networks stay as they are.
    """
    args = placed(((x,), {}) if isinstance(x, Tensor) else x, torch.device("cpu"))
    copies = {name: copy.deepcopy(net).cpu().eval() for name, net in nets.items()}
    return {name: statistics.median(times) for name, times in turns(copies, args, seconds, rounds).items()}


@torch.no_grad()
def turns(
    nets: Mapping[str, Callable[..., Any]], given: Arguments, seconds: float = 3.0, rounds: int = 100
) -> dict[str, list[float]]:
    """Milliseconds of a call of each network, turn by turn.

    They take turns, in another order each time, so that a slow moment of the machine, or a cache that the one before
    left warm, falls on all of them alike. It stops after `rounds` turns or `seconds`, but not before five turns.
    """
    args, kwargs = given
    times: dict[str, list[float]] = {name: [] for name in nets}
    begin, order = time.perf_counter(), random.Random(0)
    for turn in range(rounds + 2):
        for name in order.sample(sorted(nets), len(nets)):
            start = time.perf_counter()
            nets[name](*args, **kwargs)
            if turn >= 2:  # the first two turns allocate and choose kernels
                times[name].append(1e3 * (time.perf_counter() - start))
        if turn >= 6 and time.perf_counter() - begin > seconds:
            break
    return times
