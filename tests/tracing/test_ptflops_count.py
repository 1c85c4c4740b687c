"""The second cost of the channel table is, as an integer, what ptflops prints: before and after compaction."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.functional import relu as relu_by_value

import hfp
import models
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact
from hfp.model import inputs
from hfp.tracing.ptflops_count import FUNCTIONS

ptflops = pytest.importorskip("ptflops")
from hfp.proof.ptflops_check import agree, measured  # noqa: E402

trace = partial(hfp.trace, ptflops=True)

IMAGE = torch.zeros(1, 3, 16, 16)
TOKENS = torch.zeros(1, 5, 12)


def printed(model: nn.Module, example: Tensor) -> int:
    """The plain call of ptflops that its README shows."""
    macs, _ = ptflops.get_model_complexity_info(
        model, tuple(example.shape[1:]), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )
    return int(macs)


def random_keep(table: ChannelTable, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(table.channels, generator=generator) < share
    for group in table.groups:
        keep[group.channels[torch.randint(group.width, (1,), generator=generator)]] = True
    return keep


def counts(table: ChannelTable, keep: Tensor | None = None) -> int:
    assert table.ptflops is not None, table.notes
    return table.ptflops.dense() if keep is None else table.ptflops.count(keep)


class Forward(nn.Module):
    """Some layers, and a forward written as a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self._forward(self, *args, **kwargs)


class OwnConv(nn.Conv2d):
    """ptflops knows exact types only: this counts nothing."""


def convs(forward: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A forward between two convolutions, `a` (3 -> 8) and `b` (8 -> 4), so that there are channels to remove."""
    return Forward(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 4, 1), **layers)


def between(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 4, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Whole networks

TORCHVISION = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "squeezenet1_0": 32,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "regnet_y_400mf": 32,
    "shufflenet_v2_x0_5": 32,
    "convnext_tiny": 32,
}


def torchvision_network(name: str) -> nn.Module:
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **slow)


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20_a": ("resnet20", {"shortcut": "A"}),
    "resnet20_b": ("resnet20", {"shortcut": "B"}),
    "vgg16_bn": ("vgg16_bn", {}),
    "lenet5": ("lenet5", {}),
    "alexnet": ("alexnet", {}),
}


def check_printed(model: nn.Module, example: Tensor) -> None:
    table = trace(model, example)
    keep = random_keep(table, 0.4)
    assert counts(table) == printed(model, example)
    assert counts(table, keep) == printed(compact(model, table, keep), example)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    check_printed(torchvision_network(name), torch.zeros(1, 3, TORCHVISION[name], TORCHVISION[name]))


@pytest.mark.parametrize("name", OWN)
def test_own_networks(name: str) -> None:
    model = models.build(OWN[name][0], **OWN[name][1])
    check_printed(model, torch.zeros(1, *model.input_size))


# ---------------------------------------------------------------------------------------------------------------------
# One kind of call each

SHARED = nn.ReLU()
BLOCK = torch.zeros(1, 3, 8, 8, 8)
LINE = torch.zeros(1, 3, 16)

CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "functional relu": (lambda: convs(lambda m, x: m.b(F.relu(m.a(x)))), IMAGE),
    "relu imported by value is not seen": (lambda: convs(lambda m, x: m.b(relu_by_value(m.a(x)))), IMAGE),
    "method relu is not seen": (lambda: convs(lambda m, x: m.b(m.a(x).relu())), IMAGE),
    "torch.add": (lambda: convs(lambda m, x: m.b(torch.add(m.a(x), m.a(x)))), IMAGE),
    "Tensor.mul by a number": (lambda: convs(lambda m, x: m.b(m.a(x).mul(2))), IMAGE),
    "number times tensor": (lambda: convs(lambda m, x: m.b(torch.mul(2, m.a(x)))), IMAGE),
    "operators are not seen": (lambda: convs(lambda m, x: m.b(m.a(x) + 2 * m.a(x))), IMAGE),
    "broadcast product": (lambda: convs(lambda m, x: m.b(m.a(x).mul(m.a(x).mean((2, 3), keepdim=True)))), IMAGE),
    "a module called twice": (lambda: between(SHARED, SHARED), IMAGE),
    "a module held twice": (lambda: between(nn.Sequential(SHARED), nn.Sequential(SHARED)), IMAGE),
    "subclass of a convolution": (lambda: between(OwnConv(8, 8, 3)), IMAGE),
    "activations": (
        lambda: between(nn.ReLU6(), nn.PReLU(8), nn.ELU(), nn.LeakyReLU(), nn.GELU(), nn.SiLU(), nn.Hardswish()),
        IMAGE,
    ),
    "pools": (
        lambda: between(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(1)),
        IMAGE,
    ),
    "batch norms": (lambda: between(nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)), IMAGE),
    "other norms": (lambda: between(nn.InstanceNorm2d(8), nn.GroupNorm(2, 8, affine=False), nn.GroupNorm(2, 8)), IMAGE),
    "upsampling by a factor": (lambda: between(nn.Upsample(scale_factor=2)), IMAGE),
    "upsampling to a size": (lambda: between(nn.Upsample((5, 7))), IMAGE),
    "upsampling by factors that are cut": (lambda: between(nn.Upsample(scale_factor=(1.5, 2.5))), IMAGE),
    "interpolate by a broken factor": (
        lambda: convs(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=1.5))),
        IMAGE,
    ),
    "interpolate to one size": (lambda: convs(lambda m, x: m.b(F.interpolate(m.a(x), 5))), IMAGE),
    "grouped, slot by slot": (lambda: between(nn.Conv2d(8, 8, 3, groups=2)), IMAGE),
    "grouped, group by group": (lambda: between(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1)), IMAGE),
    "transposed": (lambda: between(nn.ConvTranspose2d(8, 8, 3, 2, bias=False), nn.ConvTranspose2d(8, 8, 2)), IMAGE),
    "1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.MaxPool1d(2), nn.Conv1d(8, 4, 1)), LINE),
    "3d": (lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1)), BLOCK),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 6), nn.Linear(6, 2)),
        IMAGE,
    ),
    "linear on tokens": (lambda: nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 4, bias=False)), TOKENS),
    "layer norm and softmax": (lambda: nn.Sequential(nn.LayerNorm(12), nn.Softmax(-1)), TOKENS),
    "shapes lined up at the first axis": (
        lambda: Forward(lambda m, x: torch.add(x, m.a.weight[0]), a=nn.Linear(12, 2)),
        TOKENS,
    ),
    "matrix products": (lambda: Forward(lambda m, x: torch.bmm(x, x.mT) @ torch.matmul(x, x.mT)), TOKENS),
    "sum of matrix products": (
        lambda: Forward(
            lambda m, x: torch.baddbmm(x @ x.mT, x, x.mT) + torch.addmm(x[0] @ x[0].T, x[0], x[0].T, beta=0)
        ),
        TOKENS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_calls(name: str) -> None:
    build, example = CASES[name]
    check_printed(build(), example)


def test_attention_that_can_be_cut_has_no_number() -> None:
    """ptflops knows `nn.MultiheadAttention` by its class, and does not count what is left of one."""
    table = trace(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), TOKENS)
    assert table.ptflops is None and any("ptflops" in note for note in table.notes)


RECURRENT: dict[str, tuple[nn.Module, Tensor]] = {
    "rnn": (nn.RNN(12, 7, num_layers=2), TOKENS),
    "lstm": (nn.LSTM(12, 7, bidirectional=True, batch_first=True), TOKENS),
    "gru": (nn.GRU(12, 7, bias=False), TOKENS),
    "rnn cell": (nn.RNNCell(12, 7), TOKENS[0]),
    "lstm cell": (nn.LSTMCell(12, 7), TOKENS[0]),
    "gru cell": (nn.GRUCell(12, 7), TOKENS[0]),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    model, example = RECURRENT[name]
    table = trace(model, example)
    assert counts(table) == measured(model, inputs.arguments(model, example))


# ---------------------------------------------------------------------------------------------------------------------
# Inputs, disagreement, side effects


@pytest.mark.parametrize("example", [(IMAGE, IMAGE), {"x": IMAGE, "y": IMAGE}], ids=["positional", "keywords"])
def test_several_inputs(example: Any) -> None:
    model = convs(lambda m, x, y: m.b(F.relu(m.a(x)).add(m.a(y))))
    table = trace(model, example)
    keep = random_keep(table, 0.5)
    arguments = inputs.arguments(model, example)
    assert counts(table) == measured(model, arguments)
    assert counts(table, keep) == measured(compact(model, table, keep), arguments)


def test_measured_is_what_ptflops_prints_and_leaves_no_trace() -> None:
    model = models.build("resnet20").train()
    attributes = [set(vars(module)) for module in model.modules()]
    shapes_only = inputs.rebuild(inputs.describe(inputs.arguments(model)))
    assert measured(model, inputs.arguments(model)) == measured(model, shapes_only)
    assert model.training and [set(vars(module)) for module in model.modules()] == attributes
    assert measured(model, shapes_only) == printed(model, torch.zeros(1, 3, 32, 32))


def test_pytorch_is_as_before() -> None:
    before = [vars(owner).get(name) for owner, name in FUNCTIONS]
    trace(nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError):
        trace(nn.Linear(2, 3), torch.zeros(1, 5))
    assert all(vars(owner).get(name) is old for (owner, name), old in zip(FUNCTIONS, before, strict=True))


def deformable() -> nn.Module:
    return Forward(
        lambda m, x: m.b(m.c(m.a(x), m.offset(x))),
        a=nn.Conv2d(3, 8, 1),
        offset=nn.Conv2d(3, 18, 1),
        c=torchvision.ops.DeformConv2d(8, 8, 3, padding=1),
        b=nn.Conv2d(8, 4, 1),
    )


DISAGREE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a module it knows and the table does not": (
        deformable,
        r"the network ptflops counts [\d,]+, the channel table [\d,]+",
    ),
    "its hook fails": (
        lambda: convs(lambda m, x: m.b(m.p(input=m.a(x))), p=nn.MaxPool2d(2)),
        "input_size in p: IndexError",
    ),
    "no sum of products": (
        lambda: convs(lambda m, x: m.b(torch.mul(m.a(x), m.a.weight[0, 0, 0, 0].expand(16, 16)))),
        "compares the lengths of different axes",
    ),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_no_budget_in_a_number_that_is_not_ptflops(name: str) -> None:
    model = DISAGREE[name][0]()
    with pytest.raises(ValueError, match=rf"counter='ptflops' is not possible for (?s:.*){DISAGREE[name][1]}"):
        agree(trace(model, IMAGE), model, ((IMAGE,), {}))


def test_agreement_is_also_asked_of_the_compact_network() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(F.relu(y) if y.shape[1] == 8 else torch.relu(y))  # one operator, and ptflops counts the first only

    model = convs(forward)
    with pytest.raises(ValueError, match="for the network at half its width ptflops counts"):
        agree(trace(model, IMAGE), model, ((IMAGE,), {}))


def test_ptflops_failure_is_told() -> None:
    model = convs(lambda m, x: m.b(m.p(input=m.a(x))), p=nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="ptflops gives no number for Forward"):
        measured(model, ((IMAGE,), {}))
