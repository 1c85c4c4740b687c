"""What a trace says when a model cannot be traced, and that it needs shapes only."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from promises import Gated, random_keep, relative_difference, snapshot
from specimen import Net, conv, parameter
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp import trace
from hfp.cutting.surgery import compact

X = torch.zeros(1, 3, 8, 8)


def chain() -> Net:
    return ZOO["chain"].model(torch.float32)  # type: ignore[return-value]


def test_only_shapes_are_used() -> None:
    """Inputs and parameters of NaN, and a model that is on the meta device altogether, give the same table."""
    right = trace(chain(), X).fingerprint()
    broken = chain()
    for tensor in broken.parameters():
        nn.init.constant_(tensor, float("nan"))
    assert trace(broken, torch.full_like(X, float("nan"))).fingerprint() == right
    assert trace(chain().to("meta"), X.to("meta")).fingerprint() == right


def test_a_network_on_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        net = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4)).to(dtype)
        assert trace(net, X.to(dtype)).channels == 6


def test_constants_that_are_no_buffers() -> None:
    net = Net(lambda net, x: net.b(net.a(x) * net.factor + net.row), a=conv(3, 6), b=conv(6, 4))
    net.factor, net.row = torch.tensor(2.0), torch.linspace(0, 1, 8)
    assert trace(net, X).channels == 6
    assert not net.row.is_meta


def test_the_training_mode_is_traced_too() -> None:
    """A head that only training runs is cut along; without the training run its weight would no longer fit."""
    specimen = ZOO["auxiliary_head"]
    assert ("aux.weight", 1) in trace(specimen.model(), specimen.inputs()).groups[0].members


class Dropping(nn.Module):
    """Leaves each of its layers out of a training step at random."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 6)) for _ in range(4)]
        self.first, self.layers, self.last = nn.Linear(3, 6), nn.ModuleList(layers), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            if not self.training or torch.rand(()) < 0.5:
                x = x + layer(x)
        return self.last(x)


@pytest.mark.parametrize("seed", range(4))
def test_layers_that_a_training_run_drops_are_gated_all_the_same(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Dropping().double().train(), torch.randn(5, 3).double()
    table = trace(model, x)
    keep = random_keep(table, 0.5, torch.Generator().manual_seed(seed))
    gated, small = Gated(model, table, keep), compact(model, table, keep)
    for other in range(8):  # other layers each time
        outs = []
        for net in (gated, small):
            torch.manual_seed(other)
            outs.append(net(x))
        assert relative_difference(*outs) < 1e-12


def test_a_training_mode_that_does_not_run_is_noted() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        if net.training:
            raise RuntimeError("needs targets in training")
        return net.b(net.a(x))

    table = trace(Net(run, a=conv(3, 6), b=conv(6, 4)), X)
    assert table.channels == 6
    assert any("needs targets in training" in note for note in table.notes)


def looks_at_values(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x) if float(x.mean()) > 0 else -net.a(x))


@pytest.mark.parametrize(
    "build, inputs, words",
    [
        (chain, torch.zeros(1, 4, 8, 8), "(1, 4, 8, 8)"),
        (chain, (X, X), "(1, 3, 8, 8)"),
        (chain, "picture", "example_inputs"),
        (chain, None, "input size"),
        (lambda: torch.jit.script(nn.Sequential(conv(3, 6), conv(6, 4))), X, "TorchScript"),
        (lambda: nn.Sequential(nn.LazyConv2d(6, 3), conv(6, 4)), X, "azy"),
        (lambda: nn.LSTM(4, 5), None, "example_inputs"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_traced_is_said_in_the_users_words(build: Any, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        trace(build(), inputs)
    assert words in str(error.value)


def test_a_model_that_looks_at_values_is_run_on_its_own() -> None:
    net = Net(looks_at_values, a=conv(3, 6), b=conv(6, 4))
    assert trace(net, torch.ones(1, 3, 8, 8)).channels == 6


def test_two_traces_of_one_model_agree_and_can_be_interleaved() -> None:
    net = chain()
    tables = [trace(net, X), trace(copy.deepcopy(net), X), trace(net.train(), X)]
    assert len({table.fingerprint() for table in tables}) == 1


def test_a_pin_names_the_line_in_torchvision() -> None:
    model = torchvision.models.resnet18()
    model.layer1[0].downsample = Net(lambda net, x: torch.arange(64.0)[:, None, None])  # the forward's own, not cut
    lines = {pinned.place.line.split(":")[0] for pinned in trace(model, torch.zeros(1, 3, 32, 32)).pinned}
    assert "resnet.py" in lines and "test_tracing.py" not in lines


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about hooks
def test_a_part_that_is_compiled_is_followed_and_not_compiled() -> None:
    def backend(*_: Any) -> Any:
        raise AssertionError("nothing is to be compiled")

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 5, 3)), nn.Conv2d(5, 4, 3))
    plain = trace(model, X)
    model[1] = torch.compile(model[1], backend=backend)  # type: ignore[assignment]
    table = trace(model, X)
    assert [group.width for group in table.groups] == [group.width for group in plain.groups] == [6, 5]


def test_what_runs_on_numbers_only_is_run_on_numbers() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise ValueError("written for the CPU")
        return net.b(net.a(x).relu())

    model = Net(run, a=conv(3, 6), b=conv(6, 4))
    assert [group.width for group in trace(model, X).groups] == [6]


def test_what_runs_only_where_nobody_watches_is_told_so() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise ArithmeticError("not with a mode")
        return net.b(net.a(x).relu())

    net = Net(run, a=conv(3, 6), b=conv(6, 4))
    before = snapshot(net)
    with pytest.raises(
        ValueError, match=r"Net runs on .*, but not where .* watched \(ArithmeticError: not with a mode\)"
    ):
        trace(net, X)
    assert snapshot(net) == before


def test_what_code_computes_but_once_does_not_tell_runs_apart() -> None:
    """The first run reads one number more off a tensor than those after it."""

    @cache
    def offset(device: torch.device) -> int:
        return int(torch.tensor(3, device=device).item())

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x) if net.training else net.a(x).relu()
        start = offset(h.device)
        length = int((h.abs().sum() > -1).sum().item()) + 4
        return net.b(h[:, :, start - 3 : length].reshape(len(h), -1, length, h.shape[3]))

    model = Net(run, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 1))
    assert [group.width for group in trace(model, X).groups] == [6]


def test_a_word_of_ours_in_an_error_of_the_users() -> None:
    """No run on shapes alone has to do with it."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.a(x["image"]) * x["meta"]

    with pytest.raises(ValueError, match=r"does not run on the example inputs, which are x=\{.*KeyError: 'meta'"):
        trace(Net(run, a=conv(3, 6)), {"x": {"image": X}})


def test_layers_that_did_not_run_are_told_of() -> None:
    """On other inputs they may meet channels of which some are gone."""

    def run(net: Net, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = net.a(x)
        return net.b(h if condition is None else h * net.film(condition)[:, :, None, None])

    net = Net(run, a=conv(3, 6), b=conv(6, 4), film=nn.Linear(5, 6))
    (note,) = trace(net, X).notes
    assert note.startswith("film did not run on the example inputs: ")
    table = trace(net, {"x": X, "condition": torch.zeros(1, 5)})
    assert not table.notes and ("film.weight", 0) in table.groups[0].members


def test_parts_of_a_list_that_did_not_run_are_no_layer() -> None:
    """Parameters of one number have no axis by which they are known; of others one that runs is enough."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(net.a(x) * net.scales[0] * net.shifts[1][:, None, None])

    scales = nn.ParameterList([torch.ones(1), torch.ones(1)])
    shifts = nn.ParameterList([torch.zeros(6), torch.zeros(6)])
    assert not trace(Net(run, a=conv(3, 6), b=conv(6, 4), scales=scales, shifts=shifts), X).notes


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _halved(x: Tensor, channels: int) -> Tensor:
    return torch.tanh(x[:, :channels]) * x[:, channels:]


def _reshaped(x: Tensor, alpha: Tensor) -> Tensor:
    shape = x.shape
    x = x.reshape(shape[0], shape[1], -1)
    return (x + torch.sin(alpha * x).pow(2)).reshape(shape)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_functions_are_followed_as_they_are_written() -> None:
    halved, centred, reshaped = map(torch.jit.script, (_halved, _centred, _reshaped))

    def run(net: Net, x: Tensor) -> Tensor:
        return net.c(reshaped(centred(net.b(halved(net.a(x), net.half))), net.alpha))

    torch.manual_seed(0)
    model = Net(run, a=conv(3, 12), b=conv(6, 7), c=conv(7, 4), alpha=parameter(1, 7, 1), half=6)
    net = hfp.wrap(model, X, target_macs=0.3, steps=1, verify=True)
    assert sorted(group.width for group in net.table.groups) == [6, 7]
    (net(X).square().mean() + net.complexity_loss()).backward()
    small = net.eval().compact()
    torch.testing.assert_close(small(X), net(X))
    assert type(torch._C.ScriptFunction.__call__).__name__ != "function"  # as it was


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_functions_in_torchscript() -> None:
    """What works across channels in there, and was never Python, cannot be given something else: it stays whole."""

    def net(function: Any) -> Net:
        return Net(lambda n, x: n.b(function(n.a(x))), a=conv(3, 6), b=conv(6, 4), helper=function)

    text = "def centred(x):\n    return x - x.mean(1, True)\n"
    swish, centred = torch.jit.script(_swish), torch.jit.CompilationUnit(text).centred
    assert trace(net(swish), X).channels == 6
    hfp.wrap(net(swish), X, target_macs=0.5, verify=True).compact()
    (pinned,) = [pin for pin in trace(net(centred), X).pinned if pin.tensor == "a.weight"]
    assert pinned.reason == "is reduced or normalised along the channels" and pinned.place.operator == "mean"


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() if bool((x < 7).all()) else self.a(x))


@pytest.mark.parametrize("build", [LooksAtValues, chain])
def test_no_model_outlives_its_networks(build: Any) -> None:
    """Without the garbage collector, that is."""
    gc.collect()
    gc.disable()
    try:
        model = build()
        net: Any = hfp.wrap(model, X, target_macs=0.5)
        small = net.compact()
        gone = weakref.ref(model)
        del model, net
        assert gone() is None and small is not None
    finally:
        gc.enable()


def test_what_other_threads_run_meanwhile_is_theirs() -> None:
    """Whether the mode matters is seen by who asks for it: a model of another thread says nothing of this one."""

    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if self.training else x + 1)

    other = Other(4, 4)

    def forwards(beside: bool) -> int:
        calls = []

        def run(net: Net, x: Tensor) -> Tensor:
            calls.append(1)
            if beside:
                thread = threading.Thread(target=other, args=(torch.randn(3, 4),))
                thread.start(), thread.join()
            return net.b(net.a(x).relu())

        trace(Net(run, a=conv(3, 6), b=conv(6, 4)), X)
        return len(calls)

    assert forwards(beside=True) == forwards(beside=False)


def modulated(run: Callable[[Any, Tensor, Tensor], Tensor]) -> Net:
    parts = {"x": nn.Linear(4, 8), "norm": nn.BatchNorm1d(8), "t": nn.Linear(1, 16), "y": nn.Linear(8, 5)}
    return Net(run, **parts)


def by_time(net: Any, x: Tensor, t: Tensor) -> Tensor:
    """As in diffusion transformers: a shift and a scale for each example."""
    shift, scale = net.t(t[:, None]).reshape(x.shape[0], 2, -1).chunk(2, 1)
    return net.y(net.norm(net.x(x).mT).mT * scale + shift)


def by_strength(net: Any, x: Tensor, t: Tensor) -> Tensor:
    """The same for all examples."""
    shift, scale = net.t(t).chunk(2)
    return net.y(net.norm(net.x(x).mT).mT * scale * t + shift)


def by_example(net: Any, x: Tensor, t: Tensor) -> Tensor:
    (example,) = x
    return net.y(net.x(example)) * t


@pytest.mark.parametrize("run", [by_time, by_strength, by_example])
def test_what_may_be_in_a_batch_of_two(run: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    """One number: a step of time for each example, or a strength for all; and code for one example alone."""
    net = modulated(run)
    table = hfp.trace(net, (torch.rand(1, 6, 4), torch.rand(1)))
    assert not any("training mode" in note for note in table.notes)
    assert {(line.tensor, line.dim) for line in table.pinned} == {("y.weight", 0)}
    assert max(group.width for group in table.groups) == 8
    assert hfp.verify(net, table) < 1e-5
