"""Compaction in the middle of a run: optimizer, schedulers and averages go on as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils

import hfp
import models
from hfp.cutting import surgery

STEPS = 8  # of pruning
MORE = 3  # steps, after it

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,
    "AdamW, amsgrad": lambda groups: torch.optim.AdamW(groups, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RMSprop, centred": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
    "Adagrad": torch.optim.Adagrad,
    "one by one": lambda groups: torch.optim.Adam(groups, foreach=False),
}


def trained(build: Callable[..., torch.optim.Optimizer]) -> tuple[hfp.GatedModel, torch.optim.Optimizer]:
    """A gated LeNet-5 at the end of its schedule, in float64, with what its optimizer remembers of it."""
    net = hfp.wrap(models.build("lenet5").double(), target_macs=0.4, steps=STEPS).train()
    optimizer = build(net.param_groups(lr=0.01, weight_decay=5e-4))
    for number in range(STEPS):
        step(net, optimizer, number, net.complexity_loss)
    assert net.progress == 1
    return net, optimizer


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int, penalty: Callable[[], Tensor] | None) -> None:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 1, 28, 28, generator=generator, dtype=torch.float64)
    loss = nn.functional.cross_entropy(net(x), torch.randint(10, (8,), generator=generator))
    optimizer.zero_grad()
    (loss if penalty is None else loss + penalty()).backward()
    optimizer.step()


def the_same(small: nn.Module, net: hfp.GatedModel) -> None:
    """The weights of `small` are those of the gated network, cut."""
    expected = surgery.compact(net.model, net.table, small.hfp_record.keep)  # type: ignore[union-attr, arg-type]
    for (name, value), (_, wanted) in zip(small.state_dict().items(), expected.state_dict().items(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_gated_network(name: str) -> None:
    net, optimizer = trained(OPTIMIZERS[name])
    gated, gated_optimizer = copy.deepcopy((net, optimizer))
    small = net.compact(optimizer=optimizer)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    for number in range(STEPS, STEPS + MORE):
        step(gated, gated_optimizer, number, gated.complexity_loss)
        step(small, optimizer, number, None)
        the_same(small, gated)


def test_without_what_it_remembers_the_next_step_is_another() -> None:
    """The test above can fail."""
    net, optimizer = trained(OPTIMIZERS["Adam"])
    small = net.compact()
    step(net, optimizer, STEPS, net.complexity_loss)
    step(small, torch.optim.Adam(small.parameters(), lr=0.01, weight_decay=5e-4), STEPS, None)
    with pytest.raises(AssertionError):
        the_same(small, net)


def test_groups_keep_their_options_and_that_of_the_gates_goes() -> None:
    net = hfp.wrap(models.build("lenet5"), target_macs=0.4)
    head = [parameter for name, parameter in net.model.named_parameters() if name.startswith("fc2")]
    body = [parameter for name, parameter in net.model.named_parameters() if not name.startswith("fc2")]
    outside = nn.Parameter(torch.zeros(3))  # of a loss, say
    groups = [{"params": [net.gates], "lr": 1.0}, {"params": body, "lr": 0.1}, {"params": [*head, outside], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    small: Any = net.compact(optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert optimizer.param_groups[0]["params"][0] is small.conv1.weight
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [
        id(small.fc2.weight),
        id(small.fc2.bias),
        id(outside),
    ]


def test_gates_among_the_other_parameters_go_too() -> None:
    net = hfp.wrap(models.build("lenet5"), target_macs=0.4)
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)  # type: ignore[arg-type]
    small = net.compact(optimizer=optimizer)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in small.parameters()]
    assert group["param_names"] == [name for name, _ in small.named_parameters()]
    again = torch.optim.SGD(small.named_parameters(), lr=0.5)  # type: ignore[arg-type]
    again.load_state_dict(optimizer.state_dict())  # what is saved from here on fits an optimizer of its own
    assert again.param_groups[0]["lr"] == 0.1


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, [lambda t: 1 / (t + 1), lambda t: 0.5**t]),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7, min_lr=[1e-3, 1e-4]),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=20),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=5),
    "two, one after the other": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[5],
    ),
    "two at once": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("gates_first", [True, False])
def test_schedulers_go_on(name: str, gates_first: bool) -> None:
    """As one does that never knew of gates."""

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if name == "plateau" else []))
            found.append(optimizer.param_groups[which]["lr"])
        return found

    net = hfp.wrap(models.build("lenet5"), target_macs=0.4)
    groups = net.param_groups(lr=0.1)[:: -1 if gates_first else 1]
    alone = torch.optim.SGD(copy.deepcopy(groups), momentum=0.9)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    alone_scheduler = SCHEDULERS[name](alone)
    which = 1 if gates_first else 0
    assert rates(optimizer, scheduler, 4) == rates(alone, alone_scheduler, 4)
    net.compact(optimizer=optimizer, scheduler=[scheduler])
    expected = rates(alone, alone_scheduler, 6)
    which = 0
    assert rates(optimizer, scheduler, 6) == expected and len(set(expected)) > 1
    assert len(scheduler.get_last_lr()) == 1


class WrappedOptimizer(torch.optim.Optimizer):
    """As Accelerate hands out what it has prepared."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]
    state = property(lambda self: self.optimizer.state)  # type: ignore[assignment]


class WrappedScheduler:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def test_wrapped_optimizers_and_schedulers_go_on() -> None:
    net, optimizer = trained(torch.optim.Adam)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    small = net.compact(optimizer=WrappedOptimizer(optimizer), scheduler=WrappedScheduler(scheduler))
    step(small, optimizer, STEPS, None)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.005]
    net, optimizer = trained(torch.optim.SGD)
    with pytest.raises(ValueError, match="LambdaLR belongs to another optimizer"):
        net.compact(optimizer=WrappedOptimizer(optimizer), scheduler=WrappedScheduler(scheduler))


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["of the gated network", "of the model in it"])
def test_averaged_weights_go_on(whole: bool, buffers: bool) -> None:
    """One run with the gates left in, one compacted: the same averages, which can be saved."""
    net, optimizer = trained(OPTIMIZERS["SGD with momentum"])
    average = swa_utils.get_ema_multi_avg_fn(0.9)
    ema = swa_utils.AveragedModel(net if whole else net.model, multi_avg_fn=average, use_buffers=buffers)
    for number in range(STEPS, STEPS + 2):
        step(net, optimizer, number, net.complexity_loss)
        ema.update_parameters(net if whole else net.model)
    gated, gated_optimizer, gated_ema = copy.deepcopy((net, optimizer, ema))
    small = net.compact(optimizer=optimizer, ema=ema)
    for number in range(STEPS + 2, STEPS + 4):
        step(gated, gated_optimizer, number, gated.complexity_loss)
        gated_ema.update_parameters(gated if whole else gated.model)
        step(small, optimizer, number, None)
        ema.update_parameters(small)
    averaged = gated_ema.module.model if whole else gated_ema.module
    expected = surgery.compact(averaged, net.table, small.hfp_record.keep)  # type: ignore[union-attr, arg-type]
    assert int(ema.n_averaged) == 4 and type(ema.module) is type(small)
    assert ema.module.hfp_record is small.hfp_record
    for value, wanted, live in zip(
        ema.module.parameters(), expected.parameters(), small.parameters(), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
        assert not torch.equal(value, live)


class Strange(torch.optim.SGD):
    """Remembers a vector that nothing can be said of."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = torch.zeros(7)


def test_what_cannot_be_carried_over_is_refused_and_left_as_it_was() -> None:
    net = hfp.wrap(models.build("lenet5"), target_macs=0.4)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.1), momentum=0.9)
    strange = Strange(net.param_groups(lr=0.1))
    strange.step()
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    other = swa_utils.AveragedModel(models.build("resnet20"))
    cases: dict[str, dict[str, Any]] = {
        r"this Strange cannot go on.*'history' of conv1\.weight is \(7,\), where the parameter is \(20, 1, 5, 5\)": {
            "optimizer": strange
        },
        "trains no parameter of the network": {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])},
        "a scheduler goes with its optimizer": {"scheduler": scheduler},
        "belongs to another optimizer": {"optimizer": torch.optim.SGD(net.param_groups(0.1)), "scheduler": scheduler},
        "AveragedModel that does not average this network": {"optimizer": optimizer, "ema": other},
        "a LeNet5 that does not average this network": {"ema": models.build("lenet5")},
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            net.compact(**given)
    assert optimizer.param_groups[1]["params"] == [net.gates]
    assert len(optimizer.param_groups) == len(strange.param_groups) == len(scheduler.base_lrs) == 2


def test_several_optimizers_and_averages_go_on() -> None:
    """One for matrices, one for the rest, one for the gates, each with a scheduler of its own."""
    net = hfp.wrap(models.build("lenet5").double(), target_macs=0.4, steps=1).train()
    matrices = [p for p in net.model.parameters() if p.dim() > 1]
    rest = [p for p in net.model.parameters() if p.dim() == 1]
    optimizers = [
        torch.optim.SGD(matrices, 0.01, 0.9),
        torch.optim.AdamW(rest, 0.01),
        torch.optim.SGD([net.gates], 0.002),
    ]
    schedulers = [lr_scheduler.StepLR(each, 1, gamma) for each, gamma in zip(optimizers, (0.5, 0.1, 0.2), strict=True)]
    averages = [swa_utils.AveragedModel(net), swa_utils.AveragedModel(net)]
    step(net, optimizers[0], 0, net.complexity_loss)
    optimizers[1].step(), net.zero_grad()
    gated, copies = copy.deepcopy((net, optimizers))
    small = net.compact(optimizer=optimizers, scheduler=schedulers[:2], ema=averages)
    for network, some in ((gated, copies), (small, optimizers)):
        for number in (1, 2):
            step(network, some[0], number, None)
            some[1].step()
    the_same(small, gated)
    schedulers[0].step(), schedulers[1].step()
    assert [group["lr"] for each in optimizers[:2] for group in each.param_groups] == [0.005, 0.001]
    assert all(type(average.module) is type(small) for average in averages)


def test_gradients_that_are_there_go_on() -> None:
    """Compaction between the batches that make up one step."""
    net, optimizer = trained(torch.optim.SGD)
    optimizer.zero_grad()
    net(torch.randn(4, 1, 28, 28, dtype=torch.float64)).square().sum().backward()
    gated, gated_optimizer = copy.deepcopy((net, optimizer))
    for (_, own), (_, other) in zip(gated.named_parameters(), net.named_parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    small = net.compact(optimizer=optimizer)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    optimizer.step(), gated_optimizer.step()
    the_same(small, gated)


def test_optimizers_that_hold_parameters_elsewhere_are_refused() -> None:
    net = hfp.wrap(models.build("lenet5"), target_macs=0.4)
    with pytest.raises(ValueError, match="this LBFGS cannot go on with a compact network: .* in its '_params' as well"):
        net.compact(optimizer=torch.optim.LBFGS(net.parameters()))
