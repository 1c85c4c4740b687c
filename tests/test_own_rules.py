"""Rules of the user's own: operators of `torch.library`, modules whose inside cannot be followed, for whole lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from promises import check_cut, measured, predicted, random_keep, snapshot
from specimen import Net, conv, parameter
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

import hfp
from hfp.labels import Labels
from hfp.rules.own import OWN

Build = Callable[[], nn.Module]


# ------------------------------------------------------------------- operators that PyTorch cannot look into: numpy


def operator(name: str, schema: str, run: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Tensor]:
    """An operator of `torch.library` that runs in numpy, and its gradient."""

    def opaque(*args: Any) -> Tensor:
        arrays = [torch.from_numpy(a.detach().numpy().copy()) if isinstance(a, Tensor) else a for a in args]
        return run(*arrays).clone()

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    made = torch.library.custom_op(f"own_rules::{name}", opaque, mutates_args=(), schema=schema)
    made.register_fake(lambda *args: torch.empty_like(run(*args)))
    made.register_autograd(lambda ctx, g: backward(g, *ctx.saved_tensors), setup_context=keep)
    return made


scale = operator(
    "scale",
    "(Tensor x, Tensor factor) -> Tensor",
    lambda x, factor: x * factor[:, None, None],
    lambda g, x, factor: (g * factor[:, None, None], (g * x).sum((0, 2, 3))),
)
linear = operator(
    "linear",
    "(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    lambda x, weight, bias: x @ weight.t() + bias,
    lambda g, x, weight, bias: (g @ weight, g.flatten(0, -2).t() @ x.flatten(0, -2), g.flatten(0, -2).sum(0)),
)
times = operator("times", "(Tensor x, float k) -> Tensor", lambda x, k: x * k, lambda g, x: g)
flipped = operator("flipped", "(Tensor x) -> Tensor", lambda x: x.flip(1), lambda g, x: g.flip(1))


@torch.library.custom_op("own_rules::moments", mutates_args=(), schema="(Tensor x) -> (Tensor, Tensor)")
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x squared, and its mean over space; without a fake, so that it runs on numbers only."""
    return x.square(), x.square().mean((2, 3))


@torch.library.custom_op("own_rules::double_", mutates_args=("x",), schema="(Tensor(a!) x) -> ()")
def double_(x: Tensor) -> None:
    x.mul_(2)


double_.register_fake(lambda x: None)


@register_flop_formula(torch.ops.own_rules.linear)
def linear_flops(x: Any, weight: Any, bias: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * int(np.prod(x)) * int(weight[0])


def scale_rule(call: hfp.OwnCall) -> Labels:
    x, factor = call.args
    call.tie((x, 1), (factor, 0))
    return call.labels(x)


def linear_rule(call: hfp.OwnCall) -> Labels:
    x, weight, bias = call.args
    call.read((x, -1), (weight, 1))
    call.tie((weight, 0), (bias, 0))
    call.macs(*((x, axis) for axis in range(x.dim() - 1)), (weight, 0), (weight, 1))
    return call.output({-1: call.make((weight, 0))}, like=x)


# ------------------------------------------------------------------------------ modules: autograd functions in numpy


class Leaky(torch.autograd.Function):
    """factor * x, where x is below 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        a, f = x.detach().numpy(), factor.detach().numpy()[:, None, None]
        return torch.from_numpy(np.where(a > 0, a, a * f))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, factor = ctx.saved_tensors
        return torch.where(x > 0, g, g * factor[:, None, None]), torch.where(x > 0, 0, g * x).sum((0, 2, 3))


class NumpyLeaky(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.factor = parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.width:
            raise RuntimeError(f"{x.shape[1]} channels instead of {self.width}")
        return Leaky.apply(x, self.factor)


def leaky_rule(call: hfp.OwnCall) -> Labels:
    (x,) = call.args
    module: Any = call.module
    call.tie((x, 1), (module.factor, 0))
    call.attribute("width", (module.factor, 0))
    return call.labels(x)


class Numbers(nn.Linear):
    """A linear layer in numpy, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        product = x.detach().numpy() @ self.weight.detach().numpy().T
        return torch.from_numpy(product) + self.bias


def numbers_rule(call: hfp.OwnCall) -> Labels:
    (x,), module = call.args, call.module
    assert isinstance(module, Numbers)
    call.read((x, -1), (module.weight, 1))
    call.tie((module.weight, 0), (module.bias, 0))
    call.macs((x, 0), (module.weight, 0), (module.weight, 1))
    return call.output({-1: call.make((module.weight, 0))}, like=x)


# ----------------------------------------------------------------------------------------------------- networks


def between(run: Callable[[Tensor], Tensor]) -> nn.Module:
    """conv, `run`, conv."""
    return Net(lambda net, x: net.b(run(net.a(x))), a=conv(3, 6), b=conv(6, 4)).double().eval()


def scaled() -> Net:
    """conv, scale, relu, conv."""
    run = lambda net, x: net.b(scale(net.a(x), net.factor).relu())  # noqa: E731
    return Net(run, a=conv(3, 6), factor=parameter(6), b=conv(6, 4))


def mixed() -> Net:
    """conv, an own linear layer between two operators of PyTorch, linear."""
    run = lambda net, x: net.b(linear(net.a(x).flatten(2).transpose(1, 2), net.w, net.bias).relu().mean(1))  # noqa: E731
    return Net(run, a=conv(3, 6), w=parameter(5, 6), bias=parameter(5), b=nn.Linear(5, 4))


def computed() -> Net:
    """The own linear layer reads by a weight that is computed from a stored one."""
    run = lambda net, x: net.b(linear(net.a(x).mean((2, 3)), net.w.tanh(), net.bias).relu())  # noqa: E731
    return Net(run, a=conv(3, 6), w=parameter(5, 6), bias=parameter(5), b=nn.Linear(5, 4))


def with_module() -> Net:
    return Net(lambda net, x: net.b(net.mid(net.a(x)).relu()), a=conv(3, 6), mid=NumpyLeaky(6), b=conv(6, 4))


def with_mixing_module() -> Net:
    return Net(
        lambda net, x: net.b(net.mid(net.a(x).mean((2, 3))).relu()), a=conv(3, 6), mid=Numbers(6, 5), b=nn.Linear(5, 4)
    )


NETWORKS: dict[str, tuple[Build, dict[Any, Any], dict[str, int]]] = {
    "elementwise operator": (
        scaled,
        {"own_rules::scale": scale_rule},
        {"factor/0": 6, "a.weight/0": 6, "b.weight/1": 6},
    ),
    "mixing operator": (
        mixed,
        {"own_rules::linear": linear_rule},
        {"a.weight/0": 6, "w/1": 6, "w/0": 5, "b.weight/1": 5},
    ),
    "computed weight": (computed, {"own_rules::linear": linear_rule}, {"a.weight/0": 6, "w/1": 6, "w/0": 5}),
    "elementwise module": (
        with_module,
        {NumpyLeaky: leaky_rule},
        {"a.weight/0": 6, "mid.factor/0": 6, "b.weight/1": 6},
    ),
    "mixing module": (
        with_mixing_module,
        {Numbers: numbers_rule},
        {"a.weight/0": 6, "mid.weight/1": 6, "mid.bias/0": 5},
    ),
}
"""Name -> network, the rules that it needs, `tensor/dim` that can be pruned then -> width of their group."""
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
every = pytest.mark.parametrize("name", NETWORKS)


def built(name: str, rules: bool = True) -> nn.Module:
    build, own, _ = NETWORKS[name]
    for target, function in own.items() if rules else ():
        hfp.rule(target)(function)
    torch.manual_seed(0)
    return build().double().eval()


def widths(table: hfp.ChannelTable) -> dict[str, int]:
    return {f"{tensor}/{dim}": group.width for group in table.groups for tensor, dim in group.members}


# -------------------------------------------------------------------------------------------------------- tests


@every
def test_with_a_rule_channels_can_be_pruned(name: str) -> None:
    assert NETWORKS[name][2].items() <= widths(hfp.trace(built(name), X)).items()


@every
def test_without_a_rule_they_stay_whole_and_it_says_how_to_give_one(name: str) -> None:
    table = hfp.trace(built(name, rules=False), X)
    reasons = " ".join(row.reason + str(row.place) for row in table.pinned if row.tensor == "a.weight")
    assert not widths(table).keys() & NETWORKS[name][2].keys() - {"b.weight/1"}
    assert "hfp.rule" in reasons
    assert "own_rules::" in reasons or " in mid " in reasons


@every
def test_compacted_computes_what_gated_does(name: str) -> None:
    model = built(name)
    table = hfp.trace(model, X)
    generator = torch.Generator().manual_seed(0)
    for density in (0.0, 0.3, 0.7):
        keep = random_keep(table, density, generator)
        if name != "mixing module":
            check_cut(model, table, keep, ((X,), {}), 1e-10)
            continue
        with pytest.raises(AssertionError):  # the products in numpy are not seen by PyTorch's counter
            check_cut(model, table, keep, ((X,), {}), 1e-10)
        small = hfp.cutting.surgery.compact(model, table, keep)
        numpy = len(X) * small.mid.weight.numel()
        macs, params = measured(small, ((X,), {}))
        assert predicted(table, keep) == (macs + numpy, params)


@every
def test_tracing_leaves_the_model_as_it_was(name: str) -> None:
    model = built(name).train()
    before = snapshot(model)
    hfp.trace(model, X)
    assert snapshot(model) == before


@every
def test_a_life(name: str, tmp_path: Path) -> None:
    net = hfp.wrap(built(name), X, target_macs=0.5, steps=6).train()
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01), momentum=0.9)
    for _ in range(6):
        loss = F.cross_entropy(net(X).flatten(2).sum(2) if net(X).dim() > 2 else net(X), torch.tensor([1, 0]))
        optimizer.zero_grad()
        (loss + net.complexity_loss()).backward()
        optimizer.step()
    small = net.compact().eval()
    assert net.macs() <= 0.5 * net.dense_macs and small.hfp_record.macs == net.macs()
    hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", NETWORKS[name][0]().double()).eval()
    with torch.no_grad():
        assert torch.equal(small(X), again(X))


def test_an_operator_of_the_same_name_as_one_of_pytorch_is_another_one() -> None:
    """`own_rules::add` must not be taken for `aten::add`."""
    add = operator("add", "(Tensor x) -> Tensor", lambda x: x.flip(1), lambda g, x: g.flip(1))
    table = hfp.trace(between(add), X)
    assert [row.reason for row in table.pinned if row.tensor == "a.weight"] == [
        'is touched by an operator without a rule (@hfp.rule("own_rules::add") gives it one)'
    ]


def test_what_a_rule_leaves_unsaid_stays_whole() -> None:
    @hfp.rule("own_rules::scale")
    def silent(call: hfp.OwnCall) -> Labels:
        return call.labels(call.args[0])

    table = hfp.trace(scaled().double(), X)
    assert not table.groups


@pytest.mark.parametrize("labels", [lambda call: call.output({}), lambda call: call.output({2: None})])
def test_a_rule_that_drops_channels_pins_them(labels: Callable[[hfp.OwnCall], Labels]) -> None:
    hfp.rule("own_rules::flipped")(labels)
    table = hfp.trace(between(flipped), X)
    assert not table.groups
    assert "unsaid" in next(row.reason for row in table.pinned if row.tensor == "a.weight")


def test_a_rule_that_is_wrong_about_values_is_found_out_by_comparing() -> None:
    hfp.rule("own_rules::flipped")(lambda call: call.elementwise())
    with pytest.raises(RuntimeError, match="own_rules::flipped"):
        hfp.wrap(between(flipped), X, target_macs=0.5)


def test_numbers_that_depend_on_channels_are_found_out() -> None:
    hfp.rule("own_rules::times")(lambda call: call.elementwise())
    assert hfp.trace(between(lambda h: times(h, 0.5)), X).groups
    table = hfp.trace(between(lambda h: times(h, 1 / h.shape[1])), X)
    assert "gives own_rules::times other numbers" in next(r.reason for r in table.pinned if r.tensor == "a.weight")


def test_several_outputs_of_an_operator_that_runs_on_numbers_only() -> None:
    @hfp.rule("own_rules::moments")
    def rule(call: hfp.OwnCall) -> list[Labels]:
        (x,) = call.args
        return [call.labels(x), call.output({1: call.ids(x, 1)}, like=call.out[1])]

    def normed(h: Tensor) -> Tensor:
        squares, means = moments(h)
        return squares / means[:, :, None, None]

    model = between(normed)
    check_cut(model, hfp.trace(model, X), torch.arange(6) < 2, ((X,), {}), 1e-10)


def test_an_operator_of_pytorch_that_has_no_rule_can_be_given_one() -> None:
    hfp.rule("aten::special_bessel_j0")(lambda call: call.elementwise())
    model = between(torch.special.bessel_j0)
    check_cut(model, hfp.trace(model, X), torch.arange(6) < 2, ((X,), {}), 1e-10)


@pytest.mark.parametrize("rule", [True, False])
def test_what_an_operator_writes_to_stays_whole(rule: bool) -> None:
    def doubled(h: Tensor) -> Tensor:
        double_(h)
        return h

    if rule:
        hfp.rule("own_rules::double_")(lambda call: call.elementwise())
    table = hfp.trace(between(doubled), X)
    assert not table.groups and ("writes to" if rule else "is written to") in table.pinned[0].reason


def test_a_module_that_looks_at_values() -> None:
    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.isfinite().all()) else x.relu()

    hfp.rule(Either)(lambda call: call.elementwise())
    either = Either()
    model = Net(lambda net, x: net.b(net.mid(net.a(x))), a=conv(3, 6), mid=either, b=conv(6, 4)).double().eval()
    check_cut(model, hfp.trace(model, X), torch.arange(6) < 2, ((X,), {}), 1e-10)


def test_an_own_operator_can_be_exported() -> None:
    small = hfp.wrap(built("mixing operator"), X, target_macs=0.5).compact().eval()
    exported = torch.export.export(small, (X,)).module()
    with torch.no_grad():
        assert torch.equal(exported(X), small(X))


def test_a_file_is_loaded_with_the_same_rules(tmp_path: Path) -> None:
    hfp.save(hfp.wrap(built("mixing operator"), X, target_macs=0.5).compact(), tmp_path / "small.safetensors")
    OWN.clear()
    with pytest.raises(ValueError, match="hfp.rule"):
        hfp.load(tmp_path / "small.safetensors", mixed().double())


def test_a_module_that_reads_the_input_of_the_network() -> None:
    hfp.rule(Numbers)(numbers_rule)
    model = nn.Sequential(Numbers(6, 5), nn.ReLU(), nn.Linear(5, 4)).double().eval()
    table = hfp.trace(model, X[:, 0, 0, :6])
    assert widths(table) == {"0.weight/0": 5, "0.bias/0": 5, "2.weight/1": 5}
    assert predicted(table, torch.arange(5) < 2) == (2 * 6 * 2 + 2 * 2 * 4, 6 * 2 + 2 + 2 * 4 + 4)


def test_nested_arguments() -> None:
    class Sum(nn.Module):
        def forward(self, parts: dict[str, list[Tensor]]) -> Tensor:
            return torch.from_numpy(sum(part.detach().numpy() for part in parts["all"]))

    hfp.rule(Sum)(lambda call: call.elementwise())
    run = lambda net, x: net.c(net.mid({"all": [net.a(x), net.b(x)]}))  # noqa: E731
    model = Net(run, a=conv(3, 6), b=conv(3, 6), mid=Sum(), c=conv(6, 4)).double().eval()
    table = hfp.trace(model, X)
    assert {"a.weight/0": 6, "b.weight/0": 6}.items() <= widths(table).items()
    check_cut(model, table, torch.arange(6) < 2, ((X,), {}), 1e-10)


def test_a_rule_for_a_subclass_with_the_same_forward() -> None:
    class Sub(NumpyLeaky):
        pass

    class Other(NumpyLeaky):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1)

    hfp.rule(NumpyLeaky)(leaky_rule)
    for kind, prunable in ((Sub, True), (Other, False)):
        model = Net(lambda net, x: net.b(net.mid(net.a(x))), a=conv(3, 6), mid=kind(6), b=conv(6, 4)).double()
        assert bool(hfp.trace(model, X).groups) == prunable


def test_a_module_in_a_module_with_a_rule_is_part_of_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = NumpyLeaky(6), NumpyLeaky(6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.second(self.first(x))}

    @hfp.rule(Twice)
    def twice(call: hfp.OwnCall) -> Labels:
        module: Any = call.module
        call.tie((call.args[0], 1), (module.first.factor, 0), (module.second.factor, 0))
        call.attribute("first.width", (call.args[0], 1))
        call.attribute("second.width", (call.args[0], 1))
        return call.labels(call.args[0])

    hfp.rule(NumpyLeaky)(leaky_rule)
    model = Net(lambda net, x: net.b(net.mid(net.a(x))["out"]), a=conv(3, 6), mid=Twice(), b=conv(6, 4)).double().eval()
    table = hfp.trace(model, X)
    assert widths(table)["mid.second.factor/0"] == 6
    check_cut(model, table, torch.arange(6) < 2, ((X,), {}), 1e-10)


@pytest.mark.parametrize(
    "target, words",
    [
        ("scale", "namespace, 'mylib::scale'|such as 'mylib::scale'"),
        ("mylib.scale.default", "such as 'mylib::scale'"),
        ("mylib::scale.default", "such as 'mylib::scale'"),
        ("aten::relu", "hfp has a rule"),
        ("aten::relu_", "hfp has a rule"),
        (nn.Linear(2, 2), r"pass the class: hfp.rule\(Linear\)"),
        (nn.Module, "expected"),
        (torch.relu, "expected"),
        ("own_rules::scale", "has a rule already"),
        (NumpyLeaky, "has a rule already"),
    ],
)
def test_what_cannot_have_a_rule(target: Any, words: str) -> None:
    hfp.rule("own_rules::scale")(scale_rule)
    hfp.rule(NumpyLeaky)(leaky_rule)
    with pytest.raises(ValueError, match=words):
        hfp.rule(target)(scale_rule)


WRONG: dict[str, tuple[Callable[[hfp.OwnCall], Any], str]] = {
    "nothing": (lambda call: None, "returns None: expected labels"),
    "a tensor": (lambda call: call.ids(call.args[0], 1), "expected labels"),
    "too few axes": (lambda call: call.labels(call.args[0])[:2], r"\(None, 6\) to an output of shape \(2, 6, 8, 8\)"),
    "the wrong axis": (
        lambda call: call.output({0: call.ids(call.args[0], 1)}),
        r"\(6, None, None, None\) to an output of shape \(2, 6, 8, 8\)",
    ),
    "one channel of six": (
        lambda call: call.output({1: call.ids(call.args[0], 1)[:1]}),
        r"\(None, 1, None, None\) to an output of shape \(2, 6, 8, 8\)",
    ),
    "two outputs": (lambda call: [(), ()], "2 of 1 outputs"),
    "a tie of two lengths": (lambda call: call.tie((call.args[0], 2), (call.args[1], 0)), "different lengths"),
    "no such axis": (lambda call: call.pin((call.args[1], 1), "x"), "axis 1 of a tensor of shape .6,., which has no"),
    "no such output": (lambda call: call.output({4: None}), "axis 4 of an output that has 4"),
    "no tensor": (lambda call: call.make((None, 1)), "axis 1 of None"),
    "a weight of another length": (lambda call: call.read((call.args[0], 2), (call.args[1], 0)), "not as long"),
    "no attribute": (lambda call: call.attribute("heads", (call.args[1], 0)), "Net.heads is a length"),
    "an error": (lambda call: call.args[5], "own_rules::scale failed: IndexError"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_told_so(wrong: str) -> None:
    function, words = WRONG[wrong]
    hfp.rule("own_rules::scale")(function)
    with pytest.raises(ValueError, match=words):
        hfp.trace(scaled().double(), X)
