"""What each method says of channels, against numbers worked out by other means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfp
import models
from hfp.methods import METHODS, prunenet, slimming

X = torch.randn(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 3])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 9, 4),
    ).train()  # fmt: skip


def wrapped(method: str, steps: int = 10, **options: Any) -> hfp.GatedModel:
    return hfp.wrap(network(), X, steps=steps, method=method, **({"target_macs": 0.5} | options))


def loss_of(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(X), Y)


def sizes(layer: nn.Module) -> Tensor:
    """(C_out,) the mean |w| of each filter."""
    return torch.stack([row.abs().mean() for row in layer.weight.detach().double()])  # type: ignore[union-attr]


def test_hfp_lets_a_gate_count_more_the_fewer_are_above_it_in_its_layer() -> None:
    net = wrapped("hfp")
    first, second = torch.tensor([1.0, 6, 5, 2, 4, 3]), torch.tensor([5.0, 4, 3, 2, 1])
    net.gates.data.copy_(torch.cat([first, second]))
    above = torch.tensor([5.5, 0.5, 1.5, 4.5, 2.5, 3.5]), torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5])
    expected = torch.cat([first * (6 / above[0]).sqrt(), second * (5 / above[1]).sqrt()])
    assert torch.allclose(net.method.scores(net).float(), expected)


def test_hfp_does_not_cut_a_layer_to_one_channel_for_gates_that_are_a_little_smaller() -> None:
    net = hfp.wrap(models.build("resnet20"), target_macs=0.4)
    net.gates.data.fill_(1.0)
    weakest = net.table.groups[1].channels
    net.gates.data[weakest] = 0.9
    keep = net.compact().hfp_record.keep  # type: ignore[union-attr]
    shares = [float(keep[group.channels].float().mean()) for group in net.table.groups]  # type: ignore[index]
    assert shares[1] == min(shares) == pytest.approx(0.9**2 * max(shares), abs=1 / 16)  # a channel of the narrowest


def test_of_complex_weights_the_modulus_counts() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(5, 2)
            self.mix = nn.Parameter(torch.randn(6, 5, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:  # (batch, positions, 3)
            f = torch.fft.rfft(self.first(x), dim=1)
            return self.last(torch.fft.irfft(torch.einsum("bpi,io->bpo", f, self.mix), dim=1))

    model = Spectral()
    table = hfp.trace(model, torch.randn(2, 8, 3))
    squares = hfp.methods.filter_sizes(model, table, torch.square)
    made = table.axes["mix"][1]  # by no other filters
    assert torch.allclose(squares[made], model.mix.detach().abs().square().mean(0).double())


def test_pag_compares_filters_of_all_layers_as_they_are() -> None:
    net = wrapped("pag", target_params=0.45, target_macs=None)
    expected = torch.cat([sizes(net.model[0]), sizes(net.model[3])])  # type: ignore[index]
    assert torch.allclose(net.method.scores(net), expected)
    net.model[0].weight.data *= 100  # type: ignore[index]
    net.complexity_loss()
    assert net.keep.tolist() == [True] * 6 + [bool(kept) for kept in expected[6:] == expected[6:].max()]


def test_ggp_takes_the_scale_of_a_layer_away_and_asks_only_the_living() -> None:
    net = wrapped("ggp")
    net.model[0].weight.data *= 100  # type: ignore[index]
    net.keep = torch.tensor([True, False, True, True, False, True] + 5 * [True])
    first, second = sizes(net.model[0]), sizes(net.model[3])  # type: ignore[index]
    typical = first[[0, 2, 3, 5]].square().mean().sqrt(), second.square().mean().sqrt()
    assert torch.allclose(net.method.scores(net), torch.cat([first / typical[0], second / typical[1]]))


def test_ggp_drops_a_few_channels_at_a_time() -> None:
    net = hfp.wrap(models.build("resnet20").train(), target_macs=0.4, steps=100, method="ggp")
    live = [int(net.keep.sum())]
    for _ in range(100):
        net.complexity_loss()
        live.append(int(net.keep.sum()))
    drops = [before - after for before, after in zip(live, live[1:], strict=False)]
    assert sum(drop > 0 for drop in drops) > 40 and max(drops) < 0.05 * live[0]


@pytest.mark.parametrize("target", [0.2, 0.4, 0.7])
def test_uniform_keeps_the_same_share_of_every_group_and_its_largest_filters(target: float) -> None:
    net = hfp.wrap(models.build("resnet56"), target_macs=target, method="uniform")
    keep = net.compact().hfp_record.keep  # type: ignore[union-attr]
    shares = [float(keep[group.channels].float().mean()) for group in net.table.groups]  # type: ignore[index]
    assert max(shares) - min(shares) <= 1 / 16  # a channel of the narrowest
    largest = hfp.methods.filter_sizes(net.model, net.table)
    for group in net.table.groups:
        live = keep[group.channels]  # type: ignore[index]
        assert float(largest[group.channels][live].min()) >= float(largest[group.channels][~live].max())


def test_random_is_drawn_by_the_seed() -> None:
    keeps = []
    for seed in (0, 0, 1):
        net = wrapped("random")
        torch.manual_seed(seed)
        net.complexity_loss()
        keeps.append(net.keep)
    assert torch.equal(keeps[0], keeps[1]) and not torch.equal(keeps[0], keeps[2])


def test_slimming_reads_the_scales_of_norms() -> None:
    net = wrapped("slimming")
    scale = torch.tensor([0.5, -2.0, 1.0, 0.25, 0.25, 2.0])
    net.model[1].weight.data.copy_(scale)  # type: ignore[index]
    scores = net.method.scores(net)
    assert torch.allclose(scores[:6].float(), scale.abs())  # their mean is 1
    filters = sizes(net.model[3])  # type: ignore[index]  # there is no norm behind it
    assert torch.allclose(scores[6:], filters / filters.mean())


def test_slimming_takes_filters_where_the_scale_of_a_norm_is_computed() -> None:
    class Exponential(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    nn.utils.parametrize.register_parametrization(model[1], "weight", Exponential())
    net = hfp.wrap(model, torch.randn(2, 3, 8, 8), target_macs=0.5, method="slimming", steps=1)
    net.complexity_loss()
    assert net.compact()[0].out_channels == 3  # type: ignore[index, union-attr]


def test_slimming_makes_scales_sparse_until_it_cuts() -> None:
    net = wrapped("slimming", steps=2)
    scale = net.model[1].weight  # type: ignore[index]
    scale.data[0] = -1.0  # type: ignore[union-attr]
    expected = slimming.SPARSITY * torch.tensor([-1.0, 1, 1, 1, 1, 1])
    for wanted in (expected, None):
        net.zero_grad()
        (loss_of(net) * 0 + net.complexity_loss()).backward()
        assert torch.equal(scale.grad, torch.zeros(6) if wanted is None else wanted)  # type: ignore[arg-type]


def sensitivity(model: nn.Sequential) -> Tensor:
    """(channels,) dL / d phi, by the weights that read each channel: sum over w of w dL / dw."""
    model.zero_grad()
    loss_of(model).backward()
    second, last = model[3].weight, model[6].weight  # (5, 6, 3, 3), (4, 5 * 9)
    products = [(second * second.grad).sum((0, 2, 3)), (last * last.grad).reshape(4, 5, 9).sum((0, 2))]
    model.zero_grad()
    return torch.cat(products).detach()


def test_taylor_gathers_the_squares_of_gradients() -> None:
    net = wrapped("taylor")
    expected = sensitivity(net.model).square()  # type: ignore[arg-type]
    (loss_of(net) + net.complexity_loss()).backward()
    assert net.gates.grad is not None
    found = -net.gates.grad
    assert torch.allclose(found / found.sum(), expected / expected.sum(), rtol=1e-4)


# ---------------------------------------------------------------------------------------------- PruneNet


def state_of(net: hfp.GatedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.model.state_dict().items()}


def test_in_prunenets_light_step_only_the_scalars_learn() -> None:
    net = wrapped("prunenet", steps=20)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.1, weight_decay=0.1), momentum=0.9)
    before = state_of(net)
    for step in range(1, 7):
        optimizer.zero_grad()
        (loss_of(net) + net.complexity_loss()).backward()
        optimizer.step()
        still = all(torch.equal(value, before[name]) for name, value in state_of(net).items())
        assert still == (step <= 4) and (net.macs() < net.dense_macs) == (step >= 4)
    assert bool((net.gates != 0).all())


def test_prunenets_scalars_feel_the_task_and_the_penalty() -> None:
    net = wrapped("prunenet", steps=20)
    task = sensitivity(net.model)  # type: ignore[arg-type]
    (loss_of(net) + net.complexity_loss()).backward()
    weights = prunenet.pressure(net.get_buffer("variance"), net.table)
    assert net.gates.grad is not None
    assert torch.allclose(net.gates.grad, task + weights / (prunenet.TRAVEL * 4), rtol=1e-4, atol=1e-7)


def test_prunenet_presses_hardest_where_little_varies() -> None:
    net = wrapped("prunenet", steps=20)
    with torch.no_grad():
        net.model[3].weight[:, 2] *= 0.5  # type: ignore[index]
        hidden = net.model[:3](X)  # type: ignore[index]  # (B, 6, 8, 8)
    net.model[1].reset_running_stats()  # type: ignore[index]
    loss_of(net)
    second = net.model[3].weight.detach()  # type: ignore[index]
    expected = hidden.transpose(0, 1).flatten(1).var(1, correction=0) * second.square().sum((0, 2, 3))
    found = net.get_buffer("variance")[:6]
    assert torch.allclose(found, expected / expected.mean(), rtol=1e-4)
    weights = prunenet.pressure(net.get_buffer("variance"), net.table)[:6]
    assert torch.allclose(weights, (expected.mean() / expected).sqrt().clamp_max(prunenet.HEAVIEST), rtol=1e-4)
    assert int(weights.argmax()) == 2


def test_prunenet_weighs_all_alike_where_it_saw_nothing() -> None:
    table = hfp.trace(network(), X)
    assert prunenet.pressure(torch.zeros(11), table).tolist() == [1.0] * 11


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_goes_from_nothing_to_all_and_never_back(method: str) -> None:
    for steps in (1, 3, 10, 101):
        shares = [METHODS[method].share(step, steps) for step in range(steps + 3)]
        assert shares[0] == 0.0 and shares[steps:] == [1.0] * 3
        assert shares == sorted(shares)


def test_which_methods_are_gradual() -> None:
    assert [name for name, method in METHODS.items() if method.gradual] == ["hfp", "pag-rounds", "ggp"]
