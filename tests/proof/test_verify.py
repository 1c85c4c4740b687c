"""Gating must be removing: where it is not, whatever the reason, the channel groups to blame are named."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from promises import snapshot
from specimen import Net, conv
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp.proof.verify import Proof, random_keeps
from hfp.rules import RULES
from hfp.rules.movers import same

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def real(h: Tensor) -> bool:
    """What a model may ask, and a run on shapes alone answers otherwise."""
    return h.device.type != "meta"


def chain(second: Callable[[Tensor], Tensor], third: Callable[[Tensor], Tensor] = torch.relu) -> Net:
    """Groups 0 to 3: of a (6 channels), b (7), c (8), d (9); `second` is done to what b gives, `third` to c's."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = second(net.b(net.a(x).relu()))
        return net.e(net.d(third(net.c(h))).sigmoid())

    torch.manual_seed(0)
    net = Net(run, a=conv(3, 6), b=conv(6, 7), c=conv(7, 8), d=conv(8, 9), e=conv(9, 4))
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return net


def flip(h: Tensor) -> Tensor:
    return h.flip(1)


def scaled_by_its_width(h: Tensor) -> Tensor:
    return h / h.shape[1] if real(h) else h


def turned_round_when_cut(h: Tensor) -> Tensor:
    return -3 * h if real(h) and h.shape[1] < 7 else h


def of_a_fixed_width(h: Tensor) -> Tensor:
    return h.view(-1, 7, 8, 8) if real(h) else h


def advised(error: pytest.ExceptionInfo[hfp.Disagreement]) -> list[str]:
    """The `ignore` that the message says will do."""
    found = re.search(r"hfp\.wrap\(\.\.\., ignore=(\[.*?\])\)", str(error.value))
    assert found
    return ast.literal_eval(found[1])


# ---------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("name", ["chain", "residual", "squeeze_and_excite", "keyword_inputs", "flattened"])
def test_networks_of_the_zoo_pass_and_stay_as_they_are(name: str) -> None:
    model, given = ZOO[name].model(), ZOO[name].inputs()
    table, before = hfp.trace(model, given), snapshot(model)
    assert hfp.verify(model, table) < 1e-12
    assert hfp.verify(model, table, given, cuts=1) < 1e-12
    assert snapshot(model) == before


def test_parts_in_single_precision_of_a_network_in_double() -> None:
    """As many published networks have them, whatever the precision of the rest."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).float()
        return net.b((10 * h * (h.square().mean(1, keepdim=True) + 1e-6).rsqrt()).sin().to(x.dtype))

    torch.manual_seed(0)
    net = Net(run, a=nn.Linear(6, 64), b=nn.Linear(64, 4)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    hfp.verify(net, hfp.trace(net, x))
    hfp.wrap(net, x, target_macs=0.5).compact()


def test_a_network_without_groups_has_nothing_to_fail() -> None:
    model = nn.Conv2d(3, 4, 3)
    assert hfp.verify(model, hfp.trace(model, X)) == 0.0


def test_random_cuts_are_cuts_and_the_same_at_every_call() -> None:
    table = hfp.trace(chain(torch.relu), X)
    keeps = list(random_keeps(table, 6))
    assert all(torch.equal(*pair) for pair in zip(keeps, random_keeps(table, 6), strict=True))
    widths = torch.tensor([[int(keep[group.channels].sum()) for group in table.groups] for keep in keeps])
    assert (widths >= 1).all() and (widths <= torch.tensor([6, 7, 8, 9])).all()
    assert all(len(column.unique()) > 2 for column in widths.T)


def test_rounding_is_not_held_against_a_network() -> None:
    """What float32 cannot tell, float64 decides."""
    torch.manual_seed(0)
    model = Net(lambda net, x: torch.sin(1e5 * net.b(net.a(x).relu())), a=nn.Linear(64, 500), b=nn.Linear(500, 64))
    x = torch.randn(8, 64)
    table = hfp.trace(model, x)
    proof = Proof(model, table, ((x,), {}))
    keep = next(random_keeps(table, 1))
    assert proof.compared(keep)[0] > 10 * proof.tolerance
    assert proof.check(keep) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = chain(torch.relu).to(dtype)
    hfp.verify(model, hfp.trace(model, X.to(dtype)))
    model = chain(turned_round_when_cut).to(dtype)
    with pytest.raises(hfp.Disagreement, match="made by b"):
        hfp.verify(model, hfp.trace(model, X.to(dtype)))


# ---------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("second", [flip, scaled_by_its_width, of_a_fixed_width], ids=lambda f: f.__name__)
@pytest.mark.parametrize("training", [False, True])
def test_the_group_to_blame_is_named_and_the_advice_is_right(
    second: Callable[[Tensor], Tensor], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is wrong, and code that escapes the trace: between b and c of five layers."""
    monkeypatch.setitem(RULES, "flip", same)
    model = chain(second).train(training)
    before = snapshot(model)
    with pytest.raises(hfp.Disagreement, match=r"group 1 \(7 channels made by b, read by c\)") as error:
        hfp.wrap(model, X, target_macs=0.5)
    assert error.value.groups == (1,) and snapshot(model) == before
    assert ("does not run (RuntimeError" in str(error.value)) == (second is of_a_fixed_width)
    assert advised(error) == ["b"]
    net = hfp.wrap(model, X, target_macs=0.5, ignore=advised(error), verify=True)
    assert net.compact().b.out_channels == 7  # type: ignore[union-attr]


def test_every_group_to_blame_is_named() -> None:
    model = chain(scaled_by_its_width, scaled_by_its_width)
    table = hfp.trace(model, X)
    with pytest.raises(hfp.Disagreement, match="made by b, read by c.*; .*made by c, read by d") as error:
        hfp.verify(model, table)
    assert error.value.groups == (1, 2) and advised(error) == ["b", "c"]


def test_what_is_ignored_already_is_in_the_advice() -> None:
    with pytest.raises(hfp.Disagreement) as error:
        hfp.wrap(chain(scaled_by_its_width, scaled_by_its_width), X, target_macs=0.6, ignore="c")
    assert error.value.groups == (1,) and advised(error) == ["c", "b"]


def test_groups_that_fail_only_together_are_named_together() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h, g = net.a(x), net.c(x)
        both = real(h) and h.shape[1] < 6 and g.shape[1] < 8
        return net.f(net.e(net.b(h.relu())).relu()) + net.d(-g if both else g)

    torch.manual_seed(0)
    model = Net(run, a=conv(3, 6), b=conv(6, 7), c=conv(3, 8), d=conv(8, 4), e=conv(7, 9), f=conv(9, 4))
    table = hfp.trace(model, X)
    with pytest.raises(hfp.Disagreement, match="made by a, read by b.*together, group .*made by c, read by d") as error:
        hfp.verify(model, table)
    widths = [table.groups[number].width for number in error.value.groups]
    assert sorted(widths) == [6, 8]
    hfp.wrap(model, X, target_macs=0.6, ignore=advised(error))


CALLS = itertools.count(1)


class Forgetful(nn.Module):
    """Gives something else at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = chain(torch.relu)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) * float(next(CALLS) if real(x) else 1)


def test_a_network_of_which_nothing_can_be_said() -> None:
    model = Forgetful()
    table = hfp.trace(model, X)
    with pytest.raises(hfp.Disagreement, match="nothing can be said of Forgetful.*the same twice") as error:
        hfp.verify(model, table)
    assert error.value.groups == ()


@pytest.mark.parametrize("cuts", [0, -1, 1.5, True, "3"])
def test_a_number_of_cuts_that_is_none(cuts: Any) -> None:
    model = chain(torch.relu)
    with pytest.raises(ValueError, match="cuts=.*at least 1"):
        hfp.verify(model, hfp.trace(model, X), cuts=cuts)


# ---------------------------------------------------------------------------------------------- when it is asked


def test_wrap_verifies_small_networks_and_whatever_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(verify: bool | None) -> hfp.GatedModel:
        return hfp.wrap(chain(scaled_by_its_width), X, target_macs=0.5, verify=verify)

    for verify in (None, True):
        with pytest.raises(hfp.Disagreement):
            wrap(verify)
    with pytest.raises(hfp.Disagreement, match="made by b"):
        wrap(False).compact()
    monkeypatch.setattr(sys.modules["hfp.wrap"], "VERIFIED_BY_DEFAULT", 1000)
    wrap(None)
    with pytest.raises(hfp.Disagreement):
        wrap(True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_has_diverged_is_not_blamed_on_a_rule(value: float) -> None:
    """A closed gate times infinity is not zero, so the gated network differs from the cut one; but that is no bug."""
    model = chain(torch.relu)
    with torch.no_grad():
        model.c.weight[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="holds numbers that are not finite, in c.weight: it has diverged"):
        hfp.verify(model, hfp.trace(model, X))


def test_the_table_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"expected the table, hfp.trace\(model, example_inputs\), not a Tensor"):
        hfp.verify(nn.Linear(2, 3), torch.zeros(1, 2))  # type: ignore[arg-type]


class LogSpectrum(nn.Sequential):
    """Of numbers below zero it gives none; and it has a branch on a width, which is what the proof has to find."""

    branches = False

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](torch.log(x + 1e-4)).relu()
        return self[1](x * 1.5 if self.branches and self[1].in_channels == 8 else x)


def test_inputs_of_which_not_any_number_will_do() -> None:
    """Where noise gives nothing that is finite, the example inputs are taken, unless they give nothing either."""
    torch.manual_seed(0)
    model, x = LogSpectrum(conv(1, 8), conv(8, 2)), torch.rand(2, 1, 8, 8)
    assert 0.0 <= hfp.verify(model, hfp.trace(model, x), x) < 1e-5
    with pytest.raises(ValueError, match="no output of LogSpectrum is finite, on noise or on the example inputs"):
        hfp.verify(model, hfp.trace(model, x), -x)
    model.branches = True
    with pytest.raises(hfp.Disagreement):
        hfp.wrap(model, x, target_macs=0.5)


class Clicks(nn.Module):
    """Numbers of entries and measurements are in one tensor, as networks for tables of clicks take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
        self.body = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.cat([*(e(x[:, i].long()) for i, e in enumerate(self.embed)), x[:, 3:]], 1))


def test_numbers_that_are_indices_stay_as_they_are_given(tmp_path: Path) -> None:
    x = torch.cat([torch.randint(10, (4, 3)).float(), torch.randn(4, 2)], 1)
    net = hfp.wrap(Clicks(), x, target_macs=0.5, verify=True)
    small = net.compact()
    assert hfp.verify(Clicks(), net.table) < 1e-5
    hfp.save(small, tmp_path / "small.safetensors")
    hfp.load(tmp_path / "small.safetensors", Clicks())
    with pytest.raises(hfp.Disagreement, match="nothing can be said of Clicks.* does not run .*index out of range"):
        hfp.wrap(Clicks(), x + 10, target_macs=0.5)


class Picky(nn.Module):
    """Takes any number while it is whole, whole numbers only once it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.picky = nn.Linear(4, 8), nn.Linear(8, 2), False

    def forward(self, x: Tensor) -> Tensor:
        if self.picky and len(self.a.weight) < 8 and bool((x != x.round()).any()):
            raise IndexError("no such row")
        return self.b(self.a(x).relu())


def test_the_fault_of_a_cut_network_is_not_excused() -> None:
    model, x = Picky(), torch.arange(12.0).reshape(3, 4)
    table = hfp.trace(model, x)
    assert hfp.verify(model, table, x) < 1e-6
    model.picky = True
    with pytest.raises(hfp.Disagreement, match="does not run .*no such row"):
        hfp.verify(model, table, x)


class ActNorm(nn.Module):
    """Sets itself up by the first batch, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(16))
        self.register_buffer("ready", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.ready.item() == 0:
            self.shift.data.copy_(-x.detach().mean(0))
            self.ready.fill_(1)
        return x + self.shift


class Renormalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(nn.functional.normalize(self.weight, dim=1))
        return super().forward(x)


class Clipped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.1)
        return super().forward(x)


WRITING: list[Callable[[], nn.Module]] = [
    ActNorm,
    lambda: Renormalised(16, 16),
    lambda: Clipped(16, 16),
    lambda: nn.Embedding(20, 16, max_norm=0.1),
]


@pytest.mark.parametrize("second", WRITING)
def test_what_forwards_write_to_parameters_is_put_back(second: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = second()
    looks_up = isinstance(layer, nn.Embedding)
    first, x = ([], torch.randint(0, 20, (6,))) if looks_up else ([nn.Linear(8, 16)], torch.randn(6, 8))
    model = nn.Sequential(*first, layer, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = hfp.wrap(model, x, target_params=0.7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert net.table.written


def test_a_codebook_that_the_first_batch_sets_up_is_to_be_set_up_before() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        if not bool(net.ready):
            net.codes.copy_(h.detach()[:5])
            net.ready.fill_(True)
        return net.b(h + net.codes[(h @ net.codes.t()).argmax(1)])

    torch.manual_seed(0)
    model, x = Net(run, a=nn.Linear(8, 12), b=nn.Linear(12, 4)), torch.randn(32, 8)
    model.register_buffer("codes", torch.zeros(5, 12))
    model.register_buffer("ready", torch.tensor(False))
    with pytest.raises(hfp.Disagreement, match="writes to codes, ready, in evaluation mode.* run the model once"):
        hfp.wrap(model, x, target_macs=0.5)
    assert not model.ready and not model.codes.any()  # type: ignore[union-attr]
    model(x)
    net = hfp.wrap(model, x, target_macs=0.5, steps=1)
    assert net.eval().compact().a.out_features == 6  # type: ignore[union-attr]


class Attended(nn.Module):
    """PyTorch's own attention, which a cut network has hfp's in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Linear(6, 16), nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.first(x)))


def test_the_judge_of_a_network_with_attention_is_that_network() -> None:
    torch.manual_seed(0)
    net = hfp.wrap(Attended(), torch.randn(2, 8, 6), target_macs=0.5, steps=1)
    net.complexity_loss()
    judge = net.proof()._judge()
    assert judge.dtype == torch.float64 and type(judge.model.mix.self_attn) is nn.MultiheadAttention  # type: ignore[union-attr]
    assert judge.compared(net.keep)[0] < 1e-12
    assert judge.compared_gradients(net.keep)[0] < 1e-9
    with torch.autocast("cpu", torch.bfloat16):  # in which the first comparison is too coarse
        net.compact()


def test_attention_in_half_precision() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Attended().bfloat16(), torch.randn(2, 30, 6, dtype=torch.bfloat16)
        hfp.verify(model, hfp.trace(model, x))
