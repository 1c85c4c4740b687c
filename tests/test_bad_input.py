"""Bad input gets a clear error, and nothing is lost: targets, models, example inputs, data, files, interruptions.

What is refused is refused with these words; what is unusual but right (half precision, parametrized layers, two wraps
of one model) works. Damage to single files is in test_checkpoint.py, settings of train.py are in test_train.py.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import check_exact
from PIL import Image
from promises import call, measured, relative_difference
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import hfp
import train
from hfp import checkpoint, files
from hfp.experiment.run import RunFolder

X = torch.randn(2, 3, 8, 8)
STEPS = 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def wrap(model: Any = None, example_inputs: Any = X, **options: Any) -> hfp.GatedModel:
    return hfp.wrap(model or network(), example_inputs, **({"target_macs": 0.4, "steps": STEPS} | options))


def step(net: Any, optimizer: torch.optim.Optimizer, x: Tensor = X) -> None:
    loss = net(x).float().square().mean() + net.complexity_loss()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def trained(net: hfp.GatedModel, x: Tensor = X) -> Any:
    """The compact network after all steps of the schedule, once it is shown to be what was promised."""
    optimizer = torch.optim.SGD(net.param_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
    for _ in range(STEPS):
        step(net, optimizer, x)
    small: Any = net.eval().compact()
    check_exact(small.hfp_record.keep, net.table, [(budget.cost, budget.target) for budget in net.budgets])
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    return small


def refused(words: str, attempt: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        attempt()


# ---------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("name", ["target_macs", "target_params"])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (0, "={}: a count is a whole number from "),
        (-1, "={}: a count is a whole number from "),
        (0.0, "={}: a share of the dense model lies above 0 and at most at 1"),
        (-0.4, "={}: a share of the dense model lies above 0 and at most at 1"),
        (1.5, "={}: a share of the dense model lies above 0 and at most at 1"),
        (float("nan"), "={}: a share of the dense model lies above 0 and at most at 1"),
        (float("inf"), "={}: a share of the dense model lies above 0 and at most at 1"),
        (True, "={}: expected a share of the dense model, such as 0.4, or a whole number"),
        (False, "={}: expected a share of the dense model, such as 0.4, or a whole number"),
        ("0.4", "={}: expected a share of the dense model, such as 0.4, or a whole number"),
        (1, "={} asks for 1 (a whole number is a count; the whole network is "),
        (0.001, "; the smallest reachable target is "),
        (10**9, "={} is above the "),
    ],
)
def test_a_target_that_makes_no_sense(name: str, target: Any, words: str) -> None:
    refused(words.format(repr(target)), lambda: hfp.wrap(network(), X, **{name: target}))


def test_no_target() -> None:
    refused("no target given; for 40 % of the multiply-adds: hfp.wrap(", lambda: hfp.wrap(network(), X))


# ---------------------------------------------------------------------------------------------- models


@torch.inference_mode()
def in_inference_mode() -> nn.Module:
    return network()


def test_options_of_the_wrong_kind() -> None:
    refused("verify='no': expected True or False", lambda: wrap(verify="no"))
    refused("ignore=3: expected a module or a glob pattern", lambda: wrap(ignore=3))
    assert wrap(ignore=None).table.fingerprint() == wrap().table.fingerprint()
    wrap(ignore=iter(["0"]), target_macs=0.8)
    refused("rounds(0): expected one at least", lambda: hfp.methods.rounds(0))
    refused("optimizer=3: expected a torch.optim.Optimizer, or a list", lambda: wrap().compact(optimizer=3))
    refused(
        "this is the table of another network: 0.weight, which is (5, 3), was ",
        lambda: hfp.verify(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), wrap().table),
    )


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, on the end of its quantization
def test_a_quantized_model() -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear})
    refused("prune the network before it is quantized", lambda: hfp.trace(quantized, torch.zeros(2, 8)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Conv2d(3, 4, 3), "Conv2d has no channel that could be removed"),
        (lambda: nn.Conv2d(3, 4, 3), "is an output of the network"),
        (lambda: nn.ReLU(), "ReLU has no parameters, so there is nothing to prune"),
        (lambda: nn.ReLU, "hfp.wrap needs an nn.Module, not a type"),
        (lambda: wrap(), "the model is wrapped already; wrap the plain model, net.model, or go on with the net"),
        (lambda: nn.Sequential(wrap(), nn.ReLU()), "the model is wrapped already"),
        (lambda: torch.compile(network()), "then compile: torch.compile(hfp.wrap(model._orig_mod, ...))"),
        (lambda: nn.DataParallel(network()), "DataParallel(hfp.wrap(model.module, ...))"),
        (lambda: network().requires_grad_(False), "are frozen, so it cannot recover; call model.requires_grad_(True)"),
        (lambda: torch.jit.script(network()), "the model is TorchScript, which has no Python code to follow"),
        (lambda: nn.Sequential(torch.jit.script(network()), nn.ReLU()), "0 is TorchScript, which has no Python code"),
        (lambda: torch.export.export(network(), (X,)).module(), "the model is an exported program, which cannot be"),
        (
            lambda: network().to("meta"),
            "is on the meta device and has no values to train; load them first: model.to_empty(",
        ),
        (in_inference_mode, "was made in torch.inference_mode(), where nothing can be trained; make it outside"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "has layers without a size (lazy modules); call it once first"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_model_that_cannot_be_wrapped(build: Callable[[], Any], words: str) -> None:
    refused(words, lambda: wrap(build()))


def test_a_parametrized_layer_is_pruned_like_any_other() -> None:
    model = network()
    weight_norm(model[3])
    net = wrap(model, target_macs=0.5)
    assert [group.members[0][0] for group in net.table.groups] == ["0.weight", "3.bias", "6.weight"]
    small = trained(net)
    assert small[3].parametrizations.weight[0] is not model[3].parametrizations.weight[0]
    assert relative_difference(call(net, ((X,), {})), call(small, ((X,), {}))) < 1e-5


def test_a_target_that_parametrized_layers_put_out_of_reach() -> None:
    model = network()
    orthogonal(model[0])
    refused("print(hfp.trace(model, example_inputs)) shows what stays whole, and why", lambda: wrap(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_work(dtype: torch.dtype) -> None:
    small = trained(wrap(network().to(dtype), X.to(dtype)), X.to(dtype))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_stays_there() -> None:
    small = trained(wrap(network().cuda(), X), X.cuda())
    assert {tensor.device.type for tensor in small.state_dict().values()} == {"cuda"}


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about what it cannot see into
def test_a_wrapped_model_may_be_compiled() -> None:
    net = wrap()
    compiled: Any = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(net.param_groups(lr=0.05), momentum=0.9)
    for _ in range(2):
        step(compiled, optimizer)
    assert net.progress == 2 / STEPS
    net.eval()
    assert torch.allclose(compiled(X), net(X), rtol=1e-5)


def test_frozen_layers_stay_as_they_are() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    small = trained(wrap(model))
    assert torch.equal(model[0].weight, before)
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_two_wraps_of_one_model_both_work() -> None:
    """Gates belong to the wrap, weights to the model: trained in turns, each meets its own budget."""
    model = network()
    nets = [wrap(model), wrap(model, target_macs=None, target_params=0.3)]
    optimizers = [torch.optim.SGD(net.param_groups(lr=0.02), momentum=0.9) for net in nets]
    for _ in range(STEPS):
        for net, optimizer in zip(nets, optimizers, strict=True):
            step(net, optimizer)
    for net in nets:
        small = net.eval().compact()
        macs, params = measured(small, ((X,), {}))
        assert (macs, params) == (net.macs(), net.params())
        assert relative_difference(call(net, ((X,), {})), call(small, ((X,), {}))) < 1e-5
    assert nets[0].macs() <= 0.4 * nets[0].dense_macs and nets[1].params() <= 0.3 * nets[1].dense_params


def test_a_layer_shared_with_another_wrapped_model() -> None:
    shared = network()
    first, second = wrap(shared), wrap(nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4)))
    for net in (first, second):
        trained(net)
    assert shared[0].out_channels == 12


# ---------------------------------------------------------------------------------------------- example inputs


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            None,
            "Sequential does not tell its input size; pass example_inputs, for example hfp.wrap(",
        ),
        (X.numpy(), "example_inputs is a ndarray; expected a tensor, a tuple of tensors or a dict"),
        ((1, 3, 8, 8), "example_inputs holds no tensor (int); pass what the model's forward takes"),
        (torch.zeros(0, 3, 8, 8), "example_inputs is empty, of shape (0, 3, 8, 8)"),
        (torch.zeros(1, 4, 8, 8), "Sequential does not run on the example inputs, which are (1, 4, 8, 8): "),
        (torch.zeros(3, 8, 8), "Sequential does not run on the example inputs, which are (3, 8, 8): "),
        (torch.zeros(1, 3, 2, 2), "Sequential does not run on the example inputs, which are (1, 3, 2, 2): "),
        (X.long(), "Pass inputs that model(...) itself accepts."),
        (X.half(), "Pass inputs that model(...) itself accepts."),
        ({"image": X}, "which are image=(2, 3, 8, 8): TypeError"),
    ],
)
def test_example_inputs_that_do_not_fit(given: Any, words: str) -> None:
    refused(words, lambda: wrap(example_inputs=given))


def test_a_forward_that_trains_is_not_blamed_on_its_inputs() -> None:
    class Adapting(nn.Module):
        """Takes a step on what it is shown, as MAML does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, shown: Tensor, asked: Tensor) -> Tensor:
            with torch.enable_grad():
                loss = self.outer(self.inner(shown)).square().mean()
                (slope,) = torch.autograd.grad(loss, self.outer.weight, create_graph=True)
            return nn.functional.linear(self.inner(asked), self.outer.weight - slope)

    refused(
        "Adapting runs on the example inputs, but not where its operators are watched (RuntimeError: element 0",
        lambda: hfp.trace(Adapting(), (torch.rand(5, 6), torch.rand(4, 6))),
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet18", "hfp.trace needs an nn.Module, not a str"),
        (None, "hfp.trace needs an nn.Module, not a NoneType"),
        (wrap(), "the model is wrapped, and has its table already: net.table (the plain model is net.model)"),
    ],
)
def test_what_cannot_be_traced(model: Any, words: str) -> None:
    refused(words, lambda: hfp.trace(model, X))


# ---------------------------------------------------------------------------------------------- data, by train.py


def image_folder(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "train").rename(root / "other"), "needs the folders train, and val or test"),
        (lambda root: [path.unlink() for path in (root / "train" / "dog").iterdir()], "without images: dog"),
        (lambda root: (root / "test" / "dog").rename(root / "test" / "wolf"), "only in train: dog; only in test: wolf"),
        (lambda root: (root / "train" / "cat" / "0.png").write_bytes(b"?"), "0.png is not an image that can be read"),
    ],
)
def test_a_data_folder_that_is_not_in_order(
    spoil: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "data")
    spoil(tmp_path / "data")
    settings = ["--target-macs", "0.4", "--dataset", "imagefolder", "--model", "lenet5", "--batch-size", "2"]
    folders = ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    assert train.main([*settings, *folders]) == 2
    error = capsys.readouterr().err
    assert error.startswith("\nerror: ") and words in error
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- runs that are stopped

TINY = ["--target-macs", "0.4", "--dense-epochs", "1", "--prune-epochs", "1", "--finetune-epochs", "0"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("runs") / "begun"
    with pytest.MonkeyPatch.context() as patch:
        assert stopped_in_write(patch, folder, 4, send(signal.SIGINT)) == 130
    return folder


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    for file in begun.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped_in_write(patch: pytest.MonkeyPatch, folder: Path, number: int, stop: Callable[[], None]) -> int:
    """The exit code of a run to which `stop` happens while its checkpoint is written for the `number`-th time."""
    fsync, writes = os.fsync, []

    def flush(descriptor: int) -> None:
        writing = next(folder.glob(".checkpoint.safetensors.*.tmp"), None)
        if writing is not None:
            writes.append(writing)
            if len(writes) == number:
                stop()
        fsync(descriptor)

    patch.setattr(os, "fsync", flush)
    return train.main([*TINY, "--output", str(folder)])


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (send(signal.SIGTERM), 143, "stopped by SIGTERM."),
        (send(signal.SIGINT), 130, "stopped by Ctrl-C."),
        (full_disk, 1, "error: [Errno 28] No space left on device."),
    ],
)
def test_a_checkpoint_is_whole_or_the_one_before(
    stop: Callable[[], None],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second write is that after the first epoch: what the run began with stays, and goes on to the end."""
    folder = tmp_path / "a run"
    assert stopped_in_write(monkeypatch, folder, 2, stop) == code
    said = capsys.readouterr().err
    assert words in said and f"is whole; go on with\n  python train.py --resume '{folder}'" in said
    state = checkpoint.load_training(folder / "checkpoint.safetensors")
    assert (state["phase"], state["epoch"]) == ("dense", 0)
    assert not list(folder.glob(".*"))
    monkeypatch.undo()
    assert train.main(["--resume", str(folder)]) == 0
    assert (folder / "result.json").exists()


def newer(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORMAT", 9)
        changed()(folder)


def changed(**entries: Any) -> Callable[[Path], None]:
    """Other entries in the checkpoint."""

    def change(folder: Path) -> None:
        path = folder / "checkpoint.safetensors"
        checkpoint.save_training(path, checkpoint.load_training(path) | entries)

    return change


def other_target(folder: Path) -> None:
    state = checkpoint.load_training(folder / "checkpoint.safetensors")
    changed(config=state["config"] | {"target_macs": 0.3})(folder)


def truncate(folder: Path) -> None:
    for path in (folder / "checkpoint.safetensors", folder / "previous.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])


def other_optimizer(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        optimizer = checkpoint.load_training(folder / "checkpoint.safetensors")["optimizer"]
        groups = [group | settings for group in optimizer["param_groups"]]
        changed(optimizer=optimizer | {"param_groups": groups})(folder)

    return change


def other_momentum(folder: Path) -> None:
    optimizer = checkpoint.load_training(folder / "checkpoint.safetensors")["optimizer"]
    changed(optimizer=optimizer | {"state": {0: {"momentum_buffer": torch.zeros(7)}}})(folder)


def dense_weights(folder: Path) -> None:
    (folder / "dense.safetensors").replace(folder / "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "is not a whole safetensors file"),
        (newer, "was written by a newer hfp: it has format 9"),
        (dense_weights, "is a file of dense weights, and a training checkpoint is wanted here"),
        (changed(phase="breakfast"), "it names no phase and epoch"),
        (changed(config=None), "it does not tell its settings"),
        (other_target, "config.json beside it says --target-macs 0.4"),
        (changed(net=network().state_dict()), "does not fit this GatedModel: gates is missing"),
        (changed(net=7), "is damaged: it has no net"),
        (changed(optimizer=None), "is damaged: it has no optimizer"),
        (other_optimizer(weight_decay=0.1), "does not fit this SGD: its groups have other settings"),
        (other_momentum, "does not fit this SGD: its tensors are of other shapes"),
        (changed(lines=[{"phase": "dense"}]), "its lines are not those of epochs"),
        (changed(epoch=7), "has 7 epochs of phase 'prune', which has 1 in this run"),
        (changed(epoch=-1), "it names no phase and epoch"),
    ],
)
def test_a_run_with_a_checkpoint_that_is_not_its_own(
    spoil: Callable[[Path], object], words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RunFolder.resume(copied).state is not None
    spoil(copied)
    before = (copied / "checkpoint.safetensors").read_bytes()
    assert train.main(["--resume", str(copied)]) == 2
    assert words in capsys.readouterr().err
    assert (copied / "checkpoint.safetensors").read_bytes() == before


def test_a_compact_network_is_not_loaded_to_where_it_has_no_memory(tmp_path: Path) -> None:
    hfp.save(wrap().compact(), tmp_path / "small.safetensors")
    with torch.device("meta"):
        model = network()
    refused('model.to_empty(device="cpu")', lambda: hfp.load(tmp_path / "small.safetensors", model))
    small = hfp.load(tmp_path / "small.safetensors", model.to_empty(device="cpu"))
    assert measured(small, ((X,), {}))[0] <= 0.4 * measured(network(), ((X,), {}))[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_wrapped_model_may_be_cast(dtype: torch.dtype) -> None:
    small = trained(wrap().to(dtype), X.to(dtype))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
