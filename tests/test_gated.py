"""The gated network: trained, stopped, copied, averaged, resumed, compacted."""

from __future__ import annotations

import copy
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from exactness import fits
from promises import call, measured, relative_difference, snapshot
from small_run import STEPS, X, network, train, wrapped
from torch import Tensor, nn
from torch.optim import swa_utils

import hfp
import models
from hfp.cutting import surgery
from hfp.model import inputs

# ---------------------------------------------------------------------------------------------- training


def test_training_follows_the_budget_down_and_the_result_is_what_was_trained() -> None:
    net, optimizer = wrapped()
    counts = []
    for step in range(STEPS):
        train(net, optimizer, step, step + 1)
        counts.append(net.macs())
    assert counts == sorted(counts, reverse=True) and counts[-1] <= 0.4 * net.dense_macs < counts[0]
    assert net.progress == 1.0
    keep = net.keep.clone()
    train(net, optimizer, STEPS, STEPS + 5)
    assert torch.equal(net.keep, keep)
    small = net.eval().compact()
    assert torch.equal(small.hfp_record.keep, keep)
    assert measured(small, ((X,), {})) == (net.macs(), net.params())
    assert relative_difference(call(net, ((X,), {})), call(small, ((X,), {}))) < 1e-5


def test_live_counts_are_those_of_the_compact_network() -> None:
    net, optimizer = wrapped(target_macs=None, target_params=0.3)
    train(net, optimizer, 0, STEPS)
    small = net.compact()
    assert (net.macs(), net.params()) == measured(small, ((X,), {}))
    assert (net.dense_macs, net.dense_params) == measured(network(), ((X,), {}))


def test_compact_leaves_the_wrapped_network_as_it_was() -> None:
    net, optimizer = wrapped()
    train(net, optimizer, 0, 5)
    before, state = snapshot(net), copy.deepcopy(net.state_dict())
    net.compact()
    assert snapshot(net) == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_complexity_loss_is_a_scalar_that_reaches_the_gates_and_ends_at_zero() -> None:
    net, optimizer = wrapped()
    loss = net.complexity_loss()
    assert loss.shape == () and float(loss.detach()) > 0
    net.eval()
    progress = net.progress
    net.complexity_loss()
    assert net.progress == progress
    net.train()
    train(net, optimizer, 0, STEPS)
    assert float(net.complexity_loss().detach()) == 0.0


def test_the_price_of_a_channel_is_how_the_gap_changes_with_its_gate() -> None:
    """By finite differences, of all channels at random, and anew once others are live."""
    net, optimizer = wrapped(target_params=0.3)
    for steps in (0, STEPS // 2):
        train(net, optimizer, 0, steps)
        direction, live = torch.randn(net.table.channels, dtype=torch.float64), net.keep.double()
        high, low = (net.gap(live + sign * 1e-2 * direction).item() for sign in (1, -1))
        assert (net.price().double() @ direction).item() == pytest.approx((high - low) / 2e-2, rel=1e-3)
        dense = {"macs": net.dense_macs, "params": net.dense_params}
        expected = (net.macs() - int(0.4 * dense["macs"])) / dense["macs"]
        expected += (net.params() - int(0.3 * dense["params"])) / dense["params"]
        net.live_gap().add_(1.0)  # as a loop may that adds its losses up in place
        assert net.live_gap().item() == pytest.approx(expected, rel=1e-5)


def test_gates_are_trained_with_settings_of_their_own() -> None:
    net, _ = wrapped()
    weights, gates = net.param_groups(lr=0.05, weight_decay=5e-4)
    assert {id(p) for p in weights["params"]} == {id(p) for p in net.model.parameters()}
    assert (weights["lr"], weights["weight_decay"], gates["weight_decay"]) == (0.05, 5e-4, 0.0)
    ours = {id(p) for p in net.parameters()} - {id(p) for p in net.model.parameters()}
    assert {id(p) for p in gates["params"]} == ours


def test_an_epoch_of_no_training_step_prunes_nothing() -> None:
    net, _ = wrapped()
    net.eval()
    for _ in range(2 * STEPS):
        net.complexity_loss()
    assert net.macs() == net.dense_macs


@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_rounded(round_to: int) -> None:
    net, optimizer = wrapped(round_to=round_to, target_macs=0.6)
    train(net, optimizer, 0, STEPS)
    small = net.compact()
    dense = [12, 16, 10]
    widths = [small[0].out_channels, small[3].out_channels, small[6].out_features]
    assert all(width % round_to == 0 or width == full for width, full in zip(widths, dense, strict=True))
    assert net.macs() <= 0.6 * net.dense_macs


def test_ignored_layers_stay_whole() -> None:
    net, optimizer = wrapped(ignore=("3",), target_macs=0.6)
    train(net, optimizer, 0, STEPS)
    assert net.compact()[3].out_channels == 16


# ---------------------------------------------------------------------------------------------- promises 7 and 8


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Promise 7: same losses, same gates, same live channels, wherever it was cut off."""
    whole, optimizer = wrapped()
    losses = train(whole, optimizer, 0, STEPS + 3)
    for stop in (1, 7, STEPS, STEPS + 1):
        first, optimizer = wrapped()
        before = train(first, optimizer, 0, stop)
        saved, saved_optimizer = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
        second, optimizer = wrapped()
        second.load_state_dict(saved)
        optimizer.load_state_dict(saved_optimizer)
        assert before + train(second, optimizer, stop, STEPS + 3) == losses
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
        assert torch.equal(whole.compact().hfp_record.keep, second.compact().hfp_record.keep)


def test_a_state_may_be_loaded_into_a_network_that_has_run() -> None:
    """Nothing that was reckoned from the old gates is left over."""
    first, optimizer = wrapped()
    train(first, optimizer, 0, 12)
    second, _ = wrapped()
    second(X), second.complexity_loss()
    second.load_state_dict(first.state_dict())
    gradients = []
    for net in (first, second):
        net.zero_grad()
        (net(X).square().mean() + net.complexity_loss()).backward()
        gradients.append(net.gates.grad)
    assert torch.equal(*gradients)


def test_same_seed_same_result() -> None:
    """Promise 8."""
    runs = []
    for _ in range(2):
        net, optimizer = wrapped()
        runs.append((train(net, optimizer, 0, STEPS), net.keep.tolist()))
    assert runs[0] == runs[1]


def test_a_state_holds_tensors_only() -> None:
    net, _ = wrapped()
    assert all(isinstance(value, Tensor) for value in net.state_dict().values())


def test_a_copy_trains_like_the_original() -> None:
    net, optimizer = wrapped()
    train(net, optimizer, 0, 3)
    twin = copy.deepcopy(net)
    twin_optimizer = torch.optim.SGD(twin.param_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(net, optimizer, 3, STEPS) == train(twin, twin_optimizer, 3, STEPS)
    assert torch.equal(net.keep, twin.keep)


# ---------------------------------------------------------------------------------------------- every run


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize("targets", [{"target_macs": 0.4}, {"target_macs": 0.5, "target_params": 0.3}])
@pytest.mark.parametrize("steps", [1, STEPS, 50 * STEPS])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (SGD, {"lr": 0.05}),
        (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        (SGD, {"lr": 0.0}),
        (SGD, {"lr": 1e-9, "momentum": 0.9}),
        (SGD, {"lr": 1.0}),
        (ADAM, {"lr": 1e-3}),
        (ADAM, {"lr": 1.0}),
        (ADAMW, {"lr": 1e-3, "weight_decay": 0.1}),
    ],
)
def test_every_run_ends_within_its_budget(
    optimizer: Any, settings: dict[str, Any], steps: int, targets: dict[str, float]
) -> None:
    """Whatever the optimizer, its settings, and whether the run is longer or shorter than the schedule."""
    net = hfp.wrap(network().train(), X, steps=steps, **targets)
    own = {name: value for name, value in settings.items() if name not in ("lr", "weight_decay")}
    groups = net.param_groups(lr=settings["lr"], weight_decay=settings.get("weight_decay", 0.0))
    losses = train(net, optimizer(groups, **own), 0, STEPS)
    assert all(map(math.isfinite, losses)) and net.gates.isfinite().all()
    assert_compact_is_exact(net)


def assert_compact_is_exact(net: hfp.GatedModel) -> None:
    """Within every budget, with no channel (or block of `round_to`) that could have stayed, and of the counts told."""
    small: Any = net.eval().compact()
    keep, limits = small.hfp_record.keep, [(budget.cost, budget.target) for budget in net.budgets]
    assert fits(keep, limits)
    for group in net.table.groups:
        gone = group.channels[~keep[group.channels]]
        if len(gone):
            more = keep.clone()
            more[gone[: net.round_to]] = True
            assert not fits(more, limits)
    arguments = inputs.rebuild(small.hfp_record.inputs)
    assert measured(copy.deepcopy(small).to("meta"), arguments) == (small.hfp_record.macs, small.hfp_record.params)


@pytest.mark.parametrize("target", [0.05, 0.25, 0.6, 0.95])
@pytest.mark.parametrize("of", [("macs",), ("params",), ("macs", "params")], ids="+".join)
@pytest.mark.parametrize("round_to", [1, 8])
def test_every_target_of_a_residual_network_is_met(target: float, of: tuple[str, ...], round_to: int) -> None:
    if round_to == 8:
        target = max(target, 0.3)  # 8 channels of 16 in every layer, and 0.25 of the multiply-adds are left
    targets: dict[str, Any] = {f"target_{name}": target for name in of}
    net = hfp.wrap(models.build("resnet20"), torch.zeros(1, 3, 8, 8), steps=3, round_to=round_to, **targets)
    optimizer = SGD(net.param_groups(lr=0.1), momentum=0.9)
    losses = train(net, optimizer, 0, 4)
    assert net.progress == 1.0 and all(map(math.isfinite, losses))
    assert_compact_is_exact(net)


def averaged(net: hfp.GatedModel, average: hfp.GatedModel) -> None:
    """An exponential moving average of the weights, as training recipes keep one beside the network."""
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), net.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
        for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)


def test_what_happens_between_two_steps_changes_no_step() -> None:
    """Evaluation without gradients, a copy that is averaged, compaction, a state saved and loaded."""
    alone, optimizer = wrapped()
    expected = train(alone, optimizer, 0, STEPS + 2)
    net, optimizer = wrapped()
    average, losses = copy.deepcopy(net), []
    for step in range(STEPS + 2):
        losses += train(net, optimizer, step, step + 1)
        averaged(net, average)
        net.eval()
        for silent in (torch.no_grad, torch.inference_mode):
            with silent():
                net(X), net.complexity_loss(), net.macs()
        net.compact()
        net.load_state_dict(copy.deepcopy(net.state_dict()))
        net.train()
    assert losses == expected
    assert torch.equal(net.keep, alone.keep) and torch.equal(average.keep, alone.keep)
    for each in (net, average):
        assert_compact_is_exact(each)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", ["ema", "swa"])
def test_an_average_of_all_buffers_is_a_gated_network_too(name: str, stops: bool) -> None:
    """As is usual beside batch norms: nothing that only makes sense as a whole number may be in them."""
    mean = swa_utils.get_ema_avg_fn(0.8) if name == "ema" else swa_utils.get_swa_avg_fn()
    net, optimizer = wrapped()
    both = swa_utils.AveragedModel(net, avg_fn=mean, use_buffers=True)
    for step in range(3 * STEPS):
        train(net, optimizer, step, step + 1)
        both.update_parameters(net)
        if stops and step == STEPS // 2:
            net.stop()
    average = both.module
    assert torch.equal(average.keep, net.keep) and not bool(net.keep.all())
    assert average.stopped == stops and average.complexity_loss() == 0.0
    assert not torch.equal(average.model[0].weight, net.model[0].weight)
    average.eval()
    small = surgery.compact(average.model, average.table, net.keep)
    assert relative_difference(average(X), small(X)) < 1e-5
    assert torch.equal(average.compact().hfp_record.keep, net.keep)  # type: ignore[union-attr, arg-type]


def test_a_copy_counts_steps_of_its_own() -> None:
    """Though it has been written to as often as what it is a copy of."""
    net, optimizer = wrapped()
    train(net, optimizer, 0, 3)
    twin = copy.deepcopy(net)
    while twin.step._version < net.step._version:
        twin.step.fill_(1)
    assert (net.progress, twin.progress) == (3 / net.steps, 1 / net.steps)
    net.load_state_dict(twin.state_dict())
    assert net.progress == 1 / net.steps


class Slow(nn.Module):
    """A forward in which other threads get a chance; the tensors that it computes with are in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.held = [self.last.weight]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        time.sleep(0.02)
        return self.last(x) + x @ self.held[0].t()


def test_threads_take_turns_in_a_net() -> None:
    """One trains, others look on: what stands in for weights during the forward of one is not met by another."""
    torch.manual_seed(0)
    model, x = Slow(), torch.randn(4, 6)
    own = dict(model.named_parameters())
    net = hfp.wrap(model, x, target_macs=0.5, steps=1, method="uniform")
    net.complexity_loss()
    expected = net(x)
    gradients = torch.autograd.grad(expected.square().sum(), [*own.values()])

    def train() -> bool:
        out = net(x)
        found = torch.autograd.grad(out.square().sum(), [*own.values()])
        return torch.equal(out, expected) and all(map(torch.equal, found, gradients))

    def look() -> bool:
        with torch.no_grad():
            return torch.equal(net(x), expected)

    with ThreadPoolExecutor(3) as pool:
        assert all([one.result() for one in [pool.submit(function) for function in 3 * [train, look, look]]])
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert model.held[0] is model.last.weight


def test_what_only_the_model_has_is_told_of() -> None:
    net, _ = wrapped()
    net.model.encode = net.model[0].forward
    with pytest.raises(AttributeError, match=r"no attribute 'encode'; the model has: net\.model\.encode\. .* no gates"):
        net.encode(X)
    with pytest.raises(AttributeError, match=r"no attribute 'decode'$"):
        net.decode(X)
    assert not hasattr(net, "encode") and not hasattr(hfp.GatedModel.__new__(hfp.GatedModel), "model")


def test_gates_that_no_optimizer_trains_are_told_of() -> None:
    net, _ = wrapped(steps=100)
    optimizer = torch.optim.SGD(net.model.parameters(), lr=0.01)
    train(net, optimizer, 0, 31)
    with pytest.warns(UserWarning, match=r"no gate has changed in 32 steps.*net\.param_groups") as warned:
        train(net, optimizer, 31, 32)
    assert warned[0].filename == train.__code__.co_filename
    train(net, optimizer, 32, 100)  # once
    assert net.progress == 1.0 and net.macs() <= 0.4 * net.dense_macs
    train(*wrapped(steps=100, method="slimming"), 0, 40)  # has none that learn


@pytest.mark.parametrize("method", ["hfp", "ggp", "uniform"])
def test_training_in_evaluation_mode_is_told_of(method: str) -> None:
    net, optimizer = wrapped(method=method)
    net.eval()
    train(net, optimizer, 0, 31)
    with pytest.warns(UserWarning, match=r"32 steps of training in evaluation mode.*net\.train\(\)") as warned:
        train(net, optimizer, 31, 32)
    assert warned[0].filename == train.__code__.co_filename
    train(net, optimizer, 32, 70)  # once
    assert net.macs() == net.dense_macs


def test_evaluation_is_not_taken_for_training() -> None:
    """Between steps, with gradients or without; of weights that others train; and once there is nothing to cut."""
    net, optimizer = wrapped(steps=100)
    average = swa_utils.AveragedModel(net).eval()
    for step in range(40):
        train(net.train(), optimizer, step, step + 1)
        average.update_parameters(net)
        net.eval()
        net.complexity_loss(), net.complexity_loss()
        with torch.no_grad():
            average.module.complexity_loss()
    for _ in range(40):
        net.complexity_loss()
    net, optimizer = wrapped(steps=100, method="uniform")
    train(net, optimizer, 0, 1)
    train(net.eval(), optimizer, 1, 70)
    net, optimizer = wrapped(steps=100)
    net.model[1].eval()
    train(net, optimizer, 0, 70)


def test_gates_may_wait_for_their_first_step_until_channels_are_cut() -> None:
    """Gradients of 40 batches are added up, and no channel is cut before they are taken: nothing is amiss."""
    net, optimizer = wrapped(steps=500)
    for _ in range(40):
        (net(X).square().mean() + net.complexity_loss()).backward()
    optimizer.step()
    train(net, optimizer, 40, 140)
    assert net.macs() < net.dense_macs


def test_gradients_may_be_accumulated_and_scaled() -> None:
    """Two forwards in one step, and a loss scale, as mixed precision uses it."""
    net, optimizer = wrapped()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(2):
            (512 * (net(X).square().mean() + net.complexity_loss() / 2)).backward()
        for parameter in net.parameters():
            parameter.grad /= 512
        optimizer.step()
    assert net.compact().hfp_record.macs <= 0.4 * net.dense_macs


def test_gates_that_are_not_finite_are_reported() -> None:
    net, optimizer = wrapped()
    train(net, optimizer, 0, 2)
    with torch.no_grad():
        net.gates.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        net.compact()


def test_a_model_that_is_changed_is_told_of_at_once() -> None:
    net, _ = wrapped()
    head = next(n for n, module in reversed(list(net.model.named_modules())) if isinstance(module, nn.Linear))
    net.model.set_submodule(head, nn.Linear(net.model.get_submodule(head).in_features, 7))
    with pytest.raises(ValueError, match=rf"{head}.weight, which is \(7, \d+\), was .* when the model was wrapped:"):
        net.complexity_loss()


@pytest.mark.parametrize("width", [3, 5, 12])
def test_float64_is_not_lost_on_the_way(width: int) -> None:
    """Shares of a width are reckoned in the precision of the model, whatever that of the gates is."""
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.RMSNorm(16), nn.Linear(16, 4))
    model = model.double()
    x = torch.randn(5, 6, dtype=torch.float64)
    net = hfp.wrap(model, x, target_macs=0.999, steps=1)
    net.keep = torch.cat([torch.arange(16) < width, torch.arange(16) < 16 - width])
    net.stop()
    net.eval()
    assert (net(x) - net.compact()(x)).abs().max() < 1e-13 * net(x).abs().max()
