"""Gates sit where channels are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promises import Gated, call, relative_difference
from specimen import Specimen
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp import gates, trace


def gated_weights(model: nn.Module, table: hfp.ChannelTable, values: Tensor) -> dict[str, Tensor]:
    readers = gates.Readers(model, table)
    return readers.gated(model, readers.spread(values)[0])


@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_open_gates_change_nothing(specimen: Specimen) -> None:
    """Not a single bit: the weights are multiplied by one."""
    model, inputs = specimen.model(), specimen.inputs()
    inputs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    table = trace(model, specimen.inputs())
    gated = Gated(model, table, torch.ones(table.channels, dtype=torch.bool))
    assert relative_difference(call(model, inputs), call(gated, inputs)) == 0.0


def test_gates_are_read_by_every_reader_of_a_channel() -> None:
    specimen = ZOO["squeeze_and_excite"]
    model = specimen.model()
    table = trace(model, specimen.inputs())
    readers = gates.Readers(model, table)
    assert {(name, dim) for name, dim, _ in readers.places} == {("down.weight", 1), ("up.weight", 1), ("c.weight", 1)}


def test_a_gate_scales_one_column_of_a_weight() -> None:
    model = ZOO["chain"].model()
    table = trace(model, ZOO["chain"].inputs())
    values = torch.rand(6, dtype=torch.float64)
    weight = gated_weights(model, table, values)["b.weight"]
    assert torch.equal(weight, model.b.weight * values.reshape(1, 6, 1, 1))


def test_a_tied_weight_is_gated_under_all_its_names() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)).double()
    model[3].weight = model[1].weight
    table = trace(model, torch.zeros(2, 4, dtype=torch.float64))
    gated = gated_weights(model, table, torch.ones(table.channels, dtype=torch.float64))
    assert gated["1.weight"] is gated["3.weight"]


def test_the_gradient_of_a_gate_is_that_of_its_columns() -> None:
    model = ZOO["chain"].model()
    x = ZOO["chain"].inputs()[0]
    table = trace(model, (x,))
    values = torch.ones(6, dtype=torch.float64, requires_grad=True)
    out = gates.gated_forward(model, gates.Readers(model, table), values, (x,), {})
    out.square().mean().backward()
    for channel in range(6):
        moved = torch.ones(2, 6, dtype=torch.float64)
        moved[0, channel] += 1e-6
        moved[1, channel] -= 1e-6
        with torch.no_grad():
            readers = gates.Readers(model, table)
            high, low = (gates.gated_forward(model, readers, v, (x,), {}).square().mean() for v in moved)
        assert float(values.grad[channel]) == pytest.approx(float(high - low) / 2e-6, rel=1e-5)


def test_the_model_is_not_touched() -> None:
    model, x = ZOO["chain"].model(), ZOO["chain"].inputs()[0]
    table = trace(model, (x,))
    before = model.b.weight
    gates.gated_forward(model, gates.Readers(model, table), torch.zeros(6, dtype=torch.float64), (x,), {})
    assert model.b.weight is before and bool(before.any())


def test_a_first_look_in_inference_mode_leaves_training_possible() -> None:
    """On another device than it was traced on, where the numbers of channels go with the first forward."""
    model, (x, *_) = ZOO["chain"].model(), ZOO["chain"].inputs()
    readers = gates.Readers(model, trace(model, (x,)))
    model, x = model.to("meta"), x.to("meta")
    values = torch.ones(6, device="meta", requires_grad=True)
    with torch.inference_mode():
        gates.gated_forward(model, readers, values, (x,), {})
    gates.gated_forward(model, readers, values, (x,), {}).sum().backward()
    assert values.grad is not None


@pytest.mark.parametrize("name", ["module_with_two_names", "module_called_twice", "tied_weights", "chain"])
def test_every_parameter_is_in_its_place_again_after_a_gated_forward(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model()
    before = dict(model.named_parameters(remove_duplicate=False))
    gated = Gated(model, table := trace(model, specimen.inputs()), torch.ones(table.channels, dtype=torch.bool))
    call(gated, (specimen.inputs(), {}))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_keywords_of_any_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, *, position: Tensor, function: Tensor, model: Tensor, gates: Tensor) -> Tensor:
            return self.b(self.a(position + function + model + gates).relu())

    inputs = dict.fromkeys(("position", "function", "model", "gates"), torch.ones(2, 4))
    net = hfp.wrap(Model(), inputs, target_params=0.6)
    torch.testing.assert_close(net(**inputs), net.model(**inputs))


class Remembering(nn.Module):
    """Reads channels by tensors that its forward writes to: in place, through `data` and as other `data`, and as
    another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6))
        self.query, self.key, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("codes", torch.randn(3, 6))
        self.register_buffer("queue", torch.randn(3, 6))
        self.key.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).relu()).relu()
        with torch.no_grad():
            self.key.weight.data = 0.9 * self.key.weight.data + 0.1 * self.query.weight.data
            self.key.bias.mul_(0.9)
        self.last.weight.data.clamp_(-0.2, 0.2)
        out = self.last(self.query(h) + self.key(h)) + (h @ self.codes.clone().T + h @ self.queue.T).sum(
            1, keepdim=True
        )
        with torch.no_grad():
            self.codes.mul_(0.9).add_(0.1 * h.mean(0))
            self.queue = torch.cat([self.queue[1:], h[:1].detach()])
        return out


def test_what_a_forward_writes_is_kept() -> None:
    """Averages, power iterations and queues go on as without gates: of what is live, and all of it while all is."""
    torch.manual_seed(0)
    plain, model, x = Remembering(), Remembering(), torch.randn(5, 4)
    net = hfp.wrap(model, x, target_params=0.6, steps=1).train()
    model.load_state_dict(plain.state_dict())
    buffers = dict(model.named_buffers())
    for _ in range(3):
        torch.testing.assert_close(net(x), plain.train()(x))
        net(x).sum().backward()
        plain(x)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    assert not torch.equal(model.codes, torch.zeros_like(model.codes))
    net.complexity_loss()
    assert not net.keep.all()
    small = net.compact().train()
    closed = ~net.keep[net.table.axes["codes"][1]]
    before = model.codes[:, closed].clone()
    for _ in range(3):
        torch.testing.assert_close(net(x), small(x))
    torch.testing.assert_close(model.codes[:, ~closed], small.codes)
    torch.testing.assert_close(model.queue[:, ~closed], small.queue)
    made, read = (net.keep[ids] for ids in net.table.axes["key.weight"])
    torch.testing.assert_close(model.key.weight[made][:, read], small.key.weight)
    assert torch.equal(model.codes[:, closed], before)
    assert dict(model.named_buffers()).keys() == buffers.keys() and model.codes is buffers["codes"]


class Loop(nn.Module):
    """Takes as many turns as there are words; what is done to channels in one, and behind the loop, is for the code."""

    def __init__(self, turn: Callable[[Any, Tensor], Tensor], end: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.again, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.softmax, self.norm, self.turn, self.end = nn.Softmax(-1), nn.LayerNorm(12), turn, end

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.words(x[:, 0]))
        for t in range(x.shape[1]):
            h = torch.tanh(self.turn(self, self.words(x[:, t]) + self.again(h)))
        return self.last(self.end(self, h))


LOOPS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]] = {
    "a norm": (lambda net, h: h / (h.norm(dim=-1, keepdim=True) + 0.1), lambda net, h: h),
    "a softmax": (lambda net, h: 3 * F.softmax(h, -1), lambda net, h: h),
    "a softmax, and one behind it": (lambda net, h: 3 * F.softmax(h, -1), lambda net, h: F.softmax(net.again(h), -1)),
    "a module, and behind it again": (lambda net, h: 3 * net.softmax(h), lambda net, h: net.softmax(net.again(h))),
    "a function that is taken apart": (lambda net, h: F.layer_norm(h, h.shape[-1:]), lambda net, h: h),
    "that, and behind it again": (
        lambda net, h: h / h.std(-1, keepdim=True),
        lambda net, h: h / h.std(-1, keepdim=True),
    ),
    "a layer": (lambda net, h: net.norm(h), lambda net, h: net.norm(h)),
}


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("name", LOOPS)
def test_loops_may_take_more_turns_than_in_the_trace(name: str, length: int) -> None:
    torch.manual_seed(0)
    net = hfp.wrap(Loop(*LOOPS[name]), torch.randn(2, 3, 5), target_params=0.6, steps=1, method="random")
    net.complexity_loss()
    small, x = net.compact(), torch.randn(4, length, 5)
    torch.testing.assert_close(net(x), small(x), rtol=1e-4, atol=1e-5)


def test_calls_that_nothing_but_their_number_tells_apart_are_counted() -> None:
    """Layers of one width, some of which are left out in training: what was the third call is the second."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.left_out = nn.Linear(5, 6), nn.Linear(6, 3), [False, False]
            self.up = nn.ModuleList(nn.Linear(6, 8) for _ in range(2))
            self.down = nn.ModuleList(nn.Linear(8, 6) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for up, down, out in zip(self.up, self.down, self.left_out, strict=True):
                x = x if out else x + down(F.softmax(up(x), -1))
            return self.last(x)

    model, x = Dropping(), torch.randn(2, 5)
    net = hfp.wrap(model, x, target_params=0.6)
    net(x)
    model.left_out = [True, False]
    with pytest.raises(
        RuntimeError, match="softmax in the network is called another number of times, on other channels"
    ):
        net(x)
    model.left_out = [True, True]
    net(x)
