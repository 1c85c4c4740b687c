"""What holds for every method: budgets, compaction, resuming, and a method of one's own."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import small_run
import torch
from exactness import check_exact
from promises import call, measured, relative_difference, snapshot
from small_run import STEPS, X, network
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp.methods import METHODS

every_method = pytest.mark.parametrize("method", METHODS)
gradual_method = pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.gradual])


def wrapped(method: Any, **options: Any) -> tuple[hfp.GatedModel, torch.optim.Optimizer]:
    return small_run.wrapped(method=method, **options)


def train(net: hfp.GatedModel, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Steps `first` to `last`, on data and random numbers of their own; the losses."""
    losses = []
    for step in range(first, last):
        torch.manual_seed(step)
        images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))
        loss = nn.functional.cross_entropy(net(images), labels) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_compact_keeps_its_promises(net: hfp.GatedModel) -> nn.Module:
    """Equal to the gated network, of the counts told, and exactly within the budget."""
    small: Any = net.eval().compact()
    record = small.hfp_record
    assert torch.equal(record.keep, net.keep)
    assert relative_difference(call(net, ((X,), {})), call(small, ((X,), {}))) < 1e-5
    assert measured(small, ((X,), {})) == (record.macs, record.params) == (net.macs(), net.params())
    return small


# ---------------------------------------------------------------------------------------------- promises


@every_method
@pytest.mark.parametrize("targets", [{"target_macs": 0.4}, {"target_macs": None, "target_params": 0.3}], ids=str)
def test_the_budget_comes_down_and_is_met_exactly(method: str, targets: dict[str, float]) -> None:
    net, optimizer = wrapped(method, **targets)
    counts, lives = [], [net.keep]
    for step in range(STEPS + 3):
        train(net, optimizer, step, step + 1)
        counts.append(net.budgets[0].cost.count(net.keep))
        lives.append(net.keep)
    assert counts == sorted(counts, reverse=True) and len(set(counts[STEPS - 1 :])) == 1
    check_exact(net.keep, net.table, [(budget.cost, budget.target) for budget in net.budgets])
    assert_compact_keeps_its_promises(net)
    cuts = {tuple(keep.tolist()) for keep in lives[1:]}
    assert len(cuts) > 2 if METHODS[method].gradual else len(cuts) <= 2


@every_method
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_it_can_be_cut_at_any_moment(method: str, stop: int) -> None:
    net, optimizer = wrapped(method, target_params=0.3)
    train(net, optimizer, 0, stop)
    torch.manual_seed(0)
    small: Any = net.compact()
    check_exact(small.hfp_record.keep, net.table, [(budget.cost, budget.target) for budget in net.budgets])


@every_method
def test_widths_are_rounded_and_ignored_layers_stay_whole(method: str) -> None:
    net, optimizer = wrapped(method, round_to=4, target_macs=0.7, ignore=("3",))
    train(net, optimizer, 0, STEPS)
    small: Any = assert_compact_keeps_its_promises(net)
    assert small[0].out_channels in (4, 8, 12) and small[6].out_features in (4, 8, 10)
    assert small[3].out_channels == 16 and net.macs() <= 0.7 * net.dense_macs


@every_method
def test_the_other_counter(method: str) -> None:
    net, optimizer = wrapped(method, counter="ptflops")
    train(net, optimizer, 0, STEPS)
    assert net.macs() <= 0.4 * net.dense_macs
    assert net.eval().compact().hfp_record.macs == net.macs()  # type: ignore[union-attr]


@every_method
@pytest.mark.parametrize("name", ["residual", "flattened", "squeeze_and_excite", "dense_block"])
def test_networks_of_many_kinds(method: str, name: str) -> None:
    model, given = ZOO[name].model(torch.float32).train(), ZOO[name].inputs()
    given = tuple(x.float() for x in given)
    net = hfp.wrap(model, given, target_params=0.6, steps=6, method=method)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.001), momentum=0.9)
    for _ in range(7):
        (net(*given).square().mean() + net.complexity_loss()).backward()
        optimizer.step(), optimizer.zero_grad()
    check_exact(net.keep, net.table, [(net.table.params, net.budgets[0].target)])
    small = net.eval().compact()
    assert relative_difference(call(net, (given, {})), call(small, (given, {}))) < 1e-5


@every_method
def test_wrap_changes_nothing(method: str) -> None:
    model = network()
    before = snapshot(model)
    hfp.wrap(model, X, target_macs=0.4, method=method)
    assert snapshot(model) == before


@every_method
def test_a_resumed_run_is_the_uninterrupted_one(method: str) -> None:
    whole, optimizer = wrapped(method)
    losses = train(whole, optimizer, 0, STEPS + 3)
    for stop in (1, 3, 9, STEPS):
        first, optimizer = wrapped(method)
        before = train(first, optimizer, 0, stop)
        saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
        second, optimizer = wrapped(method)
        second.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        assert before + train(second, optimizer, stop, STEPS + 3) == losses
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


@every_method
def test_a_copy_trains_like_the_original(method: str) -> None:
    net, optimizer = wrapped(method)
    train(net, optimizer, 0, 2)
    twin = copy.deepcopy(net)
    twins = torch.optim.SGD(twin.param_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
    twins.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(net, optimizer, 2, STEPS) == train(twin, twins, 2, STEPS)
    assert torch.equal(net.keep, twin.keep)


@every_method
def test_a_compact_network_is_saved_and_loaded(method: str, tmp_path: Any) -> None:
    net, optimizer = wrapped(method)
    train(net, optimizer, 0, STEPS)
    small = net.eval().compact()
    hfp.save(small, tmp_path / "small.safetensors")
    loaded: Any = hfp.load(tmp_path / "small.safetensors", network().eval())
    assert torch.equal(loaded(X), small(X)) and loaded.hfp_record.targets["method"] == method


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.gradual and not one.reopens])
@pytest.mark.parametrize("round_to", [1, 4])
def test_what_is_cut_stays_cut_until_the_last_cut(method: str, round_to: int) -> None:
    net, optimizer = wrapped(method, round_to=round_to, target_macs=0.5)
    for step in range(STEPS):
        if METHODS[method].share(step + 1, STEPS) == 1.0:
            break
        live = net.keep
        train(net, optimizer, step, step + 1)
        assert not bool((net.keep & ~live).any())
        assert all(int(net.keep[group.channels].sum()) % round_to == 0 for group in net.table.groups[:2])


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.gradual])
@pytest.mark.parametrize("target", [0.3, 0.4, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_the_last_cut_fills_the_budget_where_channels_cost_different_amounts(
    method: str, target: float, seed: int
) -> None:
    torch.manual_seed(seed)
    wide = [(3, 6), (6, 4), (4, 32), (32, 2)]
    model = nn.Sequential(*(nn.Conv2d(*widths, 3) for widths in wide))
    net = hfp.wrap(model, torch.zeros(1, 3, 12, 12), target_macs=target, steps=40, method=method)
    for _ in range(40):
        with torch.no_grad():
            net.gates.copy_(torch.rand(net.gates.shape))
        net.complexity_loss()
    check_exact(net.keep, net.table, [(budget.cost, budget.target) for budget in net.budgets])
    assert torch.equal(net.compact().hfp_record.keep, net.keep)


def test_what_comes_back_to_fill_the_budget_is_the_best_of_what_was_cut() -> None:
    wide = torch.tensor([3.0, 9.0, 1.0, 12.0, 5.0, 15.0, 2.0, 8.0, 0.0, 14.0, 4.0, 11.0, 7.0, 13.0, 6.0, 10.0])
    fixed = hfp.Method("fixed", scores=lambda net: torch.cat([100 + torch.arange(8.0), wide]), schedule=lambda p: p)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1))
    net = hfp.wrap(model, torch.zeros(1, 3, 4, 4), target_macs=0.5, steps=1, method=fixed)
    net.keep = torch.arange(24) < 9  # all of the first layer and one of the second: less than the target
    net.complexity_loss()
    live = net.keep[8:]
    assert live[0] and int(live.sum()) > 3
    assert set(live.nonzero().flatten().tolist()) == {0, *wide.topk(int(live.sum()) - 1).indices.tolist()}


def test_a_cut_that_could_not_be_made_is_made_by_the_next_call() -> None:
    def scores(net: hfp.GatedModel) -> Tensor:
        return hfp.methods.filter_sizes(net.model, net.table)

    net, _ = wrapped(hfp.Method("mine", scores=scores, schedule=hfp.methods.at_once))
    weight = next(net.model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        net.complexity_loss()
    assert net.progress == 0.0 and net.macs() == net.dense_macs
    with torch.no_grad():
        weight.copy_(before)
    net.complexity_loss()
    assert net.progress == 1 / STEPS and net.macs() <= 0.4 * net.dense_macs


# ---------------------------------------------------------------------------------------------- stopping


@gradual_method
def test_pruning_can_be_stopped_where_it_is(method: str) -> None:
    net, optimizer = wrapped(method)
    train(net, optimizer, 0, 9)
    keep = net.keep.clone()
    assert net.dense_macs > net.macs() > 0.4 * net.dense_macs
    net.stop()
    assert net.stopped and net.progress == 1.0
    train(net, optimizer, 9, STEPS + 3)
    assert torch.equal(net.keep, keep) and float(net.complexity_loss().detach()) == 0.0
    assert_compact_keeps_its_promises(net)
    again, _ = wrapped(method)
    again.load_state_dict(net.state_dict())
    assert again.stopped
    assert torch.equal(again.compact().hfp_record.keep, keep)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------- of one's own


def test_a_method_is_given_by_name_or_as_it_is() -> None:
    assert hfp.wrap(network(), X, target_macs=0.5, method=METHODS["pag"]).method is METHODS["pag"]


@pytest.mark.parametrize("method", ["magic", "", None, 3, torch.abs])
def test_an_unknown_method_is_told_the_names(method: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("expected one of hfp, pag, pag-rounds, ggp, prunenet, uniform")):
        hfp.wrap(network(), X, target_macs=0.5, method=method)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.ones(3), "the scores of method 'mine' are (3,); expected a tensor of 38 numbers"),
        ([1.0] * 38, "the scores of method 'mine' are list; expected a tensor of 38 numbers"),
        (torch.full((38,), torch.nan), "not finite"),
    ],
)
def test_wrong_scores_are_told_what_is_right(scores: Any, words: str) -> None:
    mine = hfp.Method("mine", scores=lambda net: scores, schedule=hfp.methods.at_once)
    with pytest.raises(ValueError, match=re.escape(words)):
        hfp.wrap(network(), X, target_macs=0.5, method=mine).compact()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"schedule": lambda progress: 100 * progress},
            "the schedule of method 'mine' gives 2.0 at a progress of 0.02; expected",
        ),
        ({"schedule": lambda progress: None}, "gives None at a progress of 0; expected the share"),
        ({"schedule": lambda progress: -progress}, "gives -0.01 at a progress of 0.01; expected the share"),
        ({"schedule": lambda progress: float("nan")}, "expected the share of the way that the budget has come down"),
        ({"cuts": 0}, "cuts=0 of method 'mine': expected one at least"),
    ],
)
def test_a_course_that_no_budget_can_take_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        hfp.Method(**{"name": "mine", "scores": lambda net: net.gates, "schedule": hfp.methods.steadily} | options)


def test_a_schedule_between_its_percents_is_checked_as_it_runs() -> None:
    course = lambda progress: 2.0 if 0.001 < progress < 0.009 else progress  # noqa: E731
    net, _ = wrapped(hfp.Method("mine", scores=lambda net: net.gates, schedule=course), steps=1000)
    net.complexity_loss()
    with pytest.raises(ValueError, match=r"gives 2\.0 at a progress of 0\.002; expected the share"):
        net.complexity_loss()


def test_a_schedule_may_be_rounded() -> None:
    mine = hfp.Method("mine", scores=lambda net: net.gates, schedule=lambda progress: progress * (1 + 1e-15) - 1e-17)
    assert [mine.share(step, 4) for step in (0, 4)] == [0.0, 1.0]
    assert mine.share(1, 10**20) == 0.0 and mine.share(10**20 - 1, 10**20) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": lambda net: net.gates[:3]}, "the gates of method 'mine' are (3,); expected a tensor of 38 numbers"),
        ({"gate": lambda net: None}, "the gates of method 'mine' are NoneType; expected a tensor of 38 numbers"),
        (
            {"forward": lambda net, args, kwargs: net.gated(net.gates[None], args, kwargs)},
            "'mine' are (1, 38); expected",
        ),
        ({"penalty": lambda net: net.gates}, "the penalties of method 'mine' are (38,); expected a scalar"),
        ({"penalty": lambda net: 0.5}, "the penalties of method 'mine' are float; expected a scalar"),
    ],
)
def test_wrong_gates_and_penalties_are_told_what_is_right(options: dict[str, Any], words: str) -> None:
    mine = hfp.Method("mine", scores=lambda net: net.gates, schedule=hfp.methods.steadily, **options)
    net, optimizer = wrapped(mine)
    with pytest.raises(ValueError, match=re.escape(words)):
        train(net, optimizer, 0, 1)


def test_buffers_of_a_method_are_in_the_state() -> None:
    def mean_activity(net: hfp.GatedModel) -> Tensor:
        return net.get_buffer("seen")

    def seen(table: hfp.ChannelTable) -> dict[str, Tensor]:
        return {"seen": torch.arange(table.channels, dtype=torch.float32)}

    mine = hfp.Method("mine", scores=mean_activity, schedule=hfp.methods.at_once, buffers=seen)
    net, _ = wrapped(mine)
    assert "seen" in net.state_dict()
    net.load_state_dict(net.state_dict() | {"seen": -torch.arange(38.0)})
    assert bool(net.compact().hfp_record.keep[net.table.groups[0].channels[0]])  # type: ignore[union-attr,index]


@every_method
def test_inputs_without_a_batch(method: str) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    net = hfp.wrap(model, torch.zeros(6), target_macs=0.5, steps=3, method=method).train()
    for _ in range(4):
        (net(torch.randn(6)).sum() + net.complexity_loss()).backward()
    assert net.compact()[0].out_features == 8  # type: ignore[index]
