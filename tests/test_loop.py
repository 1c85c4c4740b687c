"""The training loop: what it minimises, what it measures, and that it leaves the network as it should."""

import time
from collections import namedtuple
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfp.experiment import loop


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Heads(nn.Module):
    """Logits and auxiliary logits in training, as GoogLeNet returns them; only logits in evaluation."""

    Output = namedtuple("Output", ["logits", "aux2", "aux1"])

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> object:
        return self.Output(self.main(x), self.aux(x), None) if self.training else self.main(x)


def sgd(net: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return loop.sgd([{"params": net.parameters(), "lr": lr}])


def test_one_epoch_is_plain_sgd() -> None:
    net, expected = network(), network()
    torch.manual_seed(5)
    loop.train_epoch(net, batches(8, 8), sgd(net), loop.Recipe(), lr_factor=lambda step: 1 / (step + 1))
    torch.manual_seed(5)
    plain = torch.optim.SGD(expected.train().parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step, (x, y) in enumerate(batches(8, 8)):
        plain.param_groups[0]["lr"] = 0.1 / (step + 1)
        plain.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))


def test_the_penalty_is_added_after_each_forward_pass() -> None:
    net, weight, calls = network(), nn.Parameter(torch.tensor(1.0)), []

    def penalty() -> Tensor:
        calls.append(net.training)
        return 3 * weight

    optimizer = loop.sgd([{"params": net.parameters(), "lr": 0.0}, {"params": [weight], "lr": 0.1}])
    running = loop.train_epoch(net, batches(8), optimizer, loop.Recipe(), lr_factor=lambda step: 1.0, penalty=penalty)
    assert calls == [True]
    assert weight.item() == pytest.approx(1 - 0.1 * 3 * 1.9)  # Nesterov: (1 + momentum) times the gradient
    assert running.penalty == pytest.approx(3.0)


def test_means_are_over_images_not_batches() -> None:
    net = network().eval()
    sizes = (7, 2)
    accuracy, loss = loop.evaluate(net, batches(*sizes))
    x, y = (torch.cat(parts) for parts in zip(*batches(*sizes), strict=True))
    assert loss == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-5)
    assert accuracy == (net(x).argmax(1) == y).double().mean().item()


def test_evaluation_changes_nothing_and_puts_modes_back() -> None:
    net = network().train()
    net[1].eval()  # a frozen batch norm stays one
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = loop.evaluate(net, batches(8)), loop.evaluate(net, batches(8))
    assert first == second
    assert net.training and net[3].training and not net[1].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_evaluation_that_ends_early_puts_modes_back() -> None:
    net = network().train()

    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.evaluate(net, interrupted())
    assert all(module.training for module in net.modules())


def test_auxiliary_heads_count_a_little_and_only_in_training() -> None:
    net = Heads()
    ((x, y),) = batches(8)
    expected = F.cross_entropy(net.main(x), y) + 0.3 * F.cross_entropy(net.aux(x), y)
    assert loop.task_loss(net.train()(x), x, y, loop.Recipe()).item() == pytest.approx(expected.item())
    assert loop.evaluate(net, batches(8))[1] == pytest.approx(F.cross_entropy(net.main(x), y).item(), rel=1e-5)


def test_a_student_that_equals_its_teacher_learns_nothing_from_it() -> None:
    net = nn.Linear(4, 3)
    ((x, y),) = batches(8)
    recipe = loop.Recipe(distill=0.4, teacher=net)
    expected = 0.6 * F.cross_entropy(net(x), y).item()
    assert loop.task_loss(net(x), x, y, recipe).item() == pytest.approx(expected, abs=1e-6)


def test_distillation_pulls_the_student_to_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    ((x, y),) = batches(64)
    optimizer, recipe = sgd(student, 0.2), loop.Recipe(distill=0.99, teacher=teacher)
    before = (student(x).softmax(1) - teacher(x).softmax(1)).abs().max().item()
    for _ in range(100):
        loop.train_epoch(student, [(x, y)], optimizer, recipe, lr_factor=lambda step: 1)
    after = (student(x).softmax(1) - teacher(x).softmax(1)).abs().max().item()
    assert after < 0.1 * before
    assert teacher.weight.grad is None


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_beside_a_teacher_no_step_is_longer_than_a_clipped_gradient(distill: float) -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    (x, y), before = batches(8)[0], student.weight.detach().clone()
    recipe = loop.Recipe(distill=distill, teacher=teacher if distill else None)
    loop.train_epoch(student, [(1e4 * x, y)], sgd(student, 0.01), recipe, lr_factor=lambda step: 1)
    longest = 0.01 * loop.LARGEST_GRADIENT * 1.9  # Nesterov's first step is that of the gradient and 0.9 of it
    moved = (student.weight - before).norm().item()
    assert moved == pytest.approx(longest, rel=1e-4) if distill else moved > 10 * longest


def test_bfloat16_and_channels_last_run_and_losses_stay_in_float32() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3))
    images = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))]
    recipe = loop.Recipe(amp=True, channels_last=True)
    seen: list[torch.dtype] = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loop.train_epoch(net, images, sgd(net), recipe, lr_factor=lambda step: 1)
    assert seen == [torch.bfloat16]
    assert loop.task_loss(loop.forward(net, images[0][0], recipe), *images[0], recipe).dtype == torch.float32


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    net = nn.Linear(4, 3)
    nn.init.constant_(net.weight, float("nan"))
    with pytest.raises(ValueError, match=r"The loss became nan: training diverged\. Lower the learning rate \(0\.1\)"):
        loop.train_epoch(net, batches(8), sgd(net), loop.Recipe(), lr_factor=lambda step: 1)


def test_on_step_hears_every_step() -> None:
    net, seen = network(), []
    loop.train_epoch(
        net,
        batches(8, 8, 3),
        sgd(net),
        loop.Recipe(),
        lr_factor=lambda step: 1,
        on_step=lambda running: seen.append((running.steps, running.images)),
    )
    assert seen == [(1, 8), (2, 16), (3, 19)]


def test_every_epoch_draws_its_own() -> None:
    seeds = {
        loop.epoch_seed(seed, stage, epoch) for seed in range(3) for stage in ("dense", "pruning") for epoch in range(5)
    }
    assert len(seeds) == 30
    for seed in seeds:
        torch.Generator().manual_seed(seed)  # and every generator takes it


def test_the_cosine_falls_from_one_to_zero() -> None:
    values = [loop.cosine(step / 10) for step in range(-1, 12)]
    assert values[:2] == [1.0, 1.0] and values[-2:] == [0.0, 0.0]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


class Sleeper(nn.Module):
    def __init__(self, seconds: float, order: list[float]) -> None:
        super().__init__()
        self.seconds, self.order = seconds, order

    def __deepcopy__(self, memo: object) -> "Sleeper":
        return self  # so that the test sees the calls

    def forward(self, x: Tensor) -> Tensor:
        self.order.append(self.seconds)
        time.sleep(self.seconds)
        return x


def test_latency_is_the_median_of_turns_taken_side_by_side() -> None:
    order: list[float] = []
    nets = {"slow": Sleeper(0.02, order), "fast": Sleeper(0.005, order)}
    measured = loop.latency(nets, torch.zeros(1), rounds=7)
    assert measured["slow"] >= 20 > measured["fast"] >= 5
    pairs = [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert len(pairs) == 9 and set(pairs) == {(0.02, 0.005), (0.005, 0.02)}


def test_latency_measures_copies_in_evaluation_mode() -> None:
    net = network().train()
    loop.latency({"net": net}, torch.randn(1, 4), rounds=5)
    assert net.training and net[1].num_batches_tracked == 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
