"""`python -m hfp.compact`: from any checkpoint of a run, the network that its gates mean; from a spoilt one, none."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hfp
import models
import train
from hfp import checkpoint, compact
from hfp.experiment.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["--target-macs", "0.4", "--target-params", "0.3", "--round-to", "2", "--control"]
EPOCHS = ["--dense-epochs", "1", "--prune-epochs", "2", "--finetune-epochs", "1"]
MOMENTS = {
    "dense0": "dense", "dense1": "dense", "prune0": "prune", "prune1": "prune", "prune2": "prune",
    "finetune0": "finetune", "finetune1": "finetune", "control0": "control", "control3": "control",
}  # fmt: skip

FRESH_PROCESS = """
import sys, hfp, models
from safetensors.torch import load_file, save_file
small = hfp.load(sys.argv[1], models.build("lenet5")).eval()
save_file({"y": small(load_file(sys.argv[2])["x"]).detach()}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every checkpoint of one run, under the name of its moment."""
    folder = tmp_path_factory.mktemp("moments")
    write = RunFolder.save

    def keep(self: RunFolder, state: dict[str, Any], path: Path | None = None) -> None:
        write(self, state, path)
        checkpoint.save_training(folder / f"{state['phase']}{state['epoch']}.safetensors", state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", keep)
        assert train.main([*SETTINGS, *EPOCHS, "--output", str(folder / "run")]) == 0
    return folder


def images() -> Tensor:
    return torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(3))


def in_a_fresh_process(small: Path, folder: Path) -> Tensor:
    """What the file computes where nothing is known but the file and the model's constructor."""
    save_file({"x": images()}, folder / "exchange")
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, small, folder / "exchange"], cwd=ROOT, check=True)
    return load_file(folder / "exchange")["y"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_any_moment_of_a_run_gives_a_network_within_the_budget(
    moment: str, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small.safetensors"
    assert compact.main([str(moments / f"{moment}.safetensors"), "--output", str(output)]) == 0
    small: Any = hfp.load(output, models.build("lenet5"))
    record = checkpoint.record_of(small)
    assert record.macs <= 0.4 * record.dense_macs and record.params <= 0.3 * record.dense_params
    assert sum(parameter.numel() for parameter in small.parameters()) == record.params
    assert small.conv1.out_channels % 2 == small.conv2.out_channels % 2 == small.fc1.out_features % 2 == 0
    printed = capsys.readouterr().out
    assert f"phase '{MOMENTS[moment]}', {moment[-1]} epochs done; {compact.WHERE[MOMENTS[moment]]}" in printed
    assert ("the gated network's differ by" in printed) == (MOMENTS[moment] in ("dense", "prune"))
    for row in ("parameters", "MACs", "MACs, as ptflops counts", "file, bytes", "CPU latency, ms"):
        assert f"│ {row} " in printed


@pytest.mark.parametrize("moment", ["prune1", "prune2"])
def test_the_file_computes_what_the_gated_network_does(moment: str, moments: Path, tmp_path: Path) -> None:
    source, output = moments / f"{moment}.safetensors", tmp_path / "small.safetensors"
    assert compact.main([str(source), "--output", str(output)]) == 0
    gated = hfp.wrap(models.build("lenet5"), target_macs=0.4, target_params=0.3, round_to=2)
    gated.load_state_dict(checkpoint.load_training(source)["net"])
    gated.keep.copy_(checkpoint.record_of(hfp.load(output, models.build("lenet5"))).keep)
    torch.testing.assert_close(in_a_fresh_process(output, tmp_path), gated.eval()(images()), rtol=1e-5, atol=1e-5)


def test_at_the_end_of_pruning_it_is_what_train_made_of_it(moments: Path, tmp_path: Path) -> None:
    """The keep set is frozen by then: what is cut is what was trained, and train.py cut the same."""
    records = {}
    for moment in ("prune2", "finetune0", "finetune1", "control3"):
        compact.main([str(moments / f"{moment}.safetensors"), "--output", str(tmp_path / moment)])
        records[moment] = load_file(tmp_path / moment)
    assert all(torch.equal(value, records["finetune0"][name]) for name, value in records["prune2"].items())
    final = load_file(moments / "run" / "small.safetensors")
    for moment in ("finetune1", "control3"):
        assert all(torch.equal(value, records[moment][name]) for name, value in final.items())


def test_the_command_itself(moments: Path, tmp_path: Path) -> None:
    source, output = moments / "prune2.safetensors", tmp_path / "small"
    command = [sys.executable, "-m", "hfp.compact", str(source), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "written and read back" in done.stdout


# --- spoilt and hostile checkpoints


def change(**entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(entries)


def within(entry: str, **entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state[entry].update(entries)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no phase": (change(phase="breakfast"), "is not a checkpoint of train.py"),
    "no network": (change(net=[1, 2]), "is not a checkpoint of train.py"),
    "no build": (lambda state: state.pop("build"), "'build' should have name, num_classes"),
    "build a string": (change(build="os.system"), "'build' should have name, num_classes"),
    "a module path": (within("build", name="os.system"), "unknown model 'os.system'"),
    "a name of models": (within("build", name="load_weights"), "unknown model 'load_weights'"),
    "a list as name": (within("build", name=["lenet5"]), "name=['lenet5'] in its entry 'build'"),
    "weights": (within("build", weights="/etc/passwd"), "'build' should have name, num_classes"),
    "a bool as size": (within("build", num_classes=True), "num_classes=True in its entry 'build'"),
    "a negative size": (within("build", image_size=-28), "a network of an impossible size"),
    "a size without end": (within("build", num_classes=10**12), "a network of an impossible size"),
    "other classes": (within("build", num_classes=11), "fc2.weight is (10, 500) float32, the network has (11, 500)"),
    "another model": (within("build", name="resnet20", image_size=32), "does not fit this"),
    "no wrap": (change(wrap=None), "'wrap' should have target_macs"),
    "a method's path": (within("wrap", method="os"), "was made with settings that this hfp does not take: method='os'"),
    "no target": (within("wrap", target_macs="0.4"), "target_macs='0.4' in its entry 'wrap'"),
    "names that are none": (within("wrap", ignore=[7]), "something other than names in its list of ignored modules"),
    "tensor missing": (lambda state: state["net"].pop("model.conv1.bias"), "model.conv1.bias is missing"),
    "tensor misshapen": (within("net", **{"model.conv1.bias": torch.zeros(3)}), "model.conv1.bias is (3,) float32"),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_checkpoint_is_refused_in_words(
    spoil: str, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_it, message = SPOILT[spoil]
    state = checkpoint.load_training(moments / "prune1.safetensors")
    change_it(state)
    checkpoint.save_training(tmp_path / "spoilt", state)
    assert compact.main([str(tmp_path / "spoilt"), "--output", str(tmp_path / "small")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"record": None}, "no record of how its network was cut"),
        ({"net": {}}, "conv1.weight is missing"),
    ],
)
def test_a_spoilt_fine_tuning_checkpoint_is_refused_in_words(
    entries: dict[str, Any], message: str, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save_training(tmp_path / "spoilt", checkpoint.load_training(moments / "finetune1.safetensors") | entries)
    assert compact.main([str(tmp_path / "spoilt"), "--output", str(tmp_path / "small")]) == 2
    assert message in capsys.readouterr().err


def test_files_of_another_kind_are_refused(moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise").write_bytes(b"noise")
    cases = {
        moments / "run" / "small.safetensors": "a compact network, and a training checkpoint is wanted",
        moments / "run" / "dense.safetensors": "dense weights, and a training checkpoint is wanted",
        tmp_path / "noise": "is not a whole safetensors file",
        tmp_path / "nothing": "There is no file",
    }
    for path, message in cases.items():
        assert compact.main([str(path), "--output", str(tmp_path / "small")]) == 2
        assert message in capsys.readouterr().err


def test_the_checkpoint_is_not_written_over(moments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(moments / "prune1.safetensors")
    assert compact.main([path, "--output", path]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    output = tmp_path / "file" / "small.safetensors"
    assert compact.main([str(moments / "prune1.safetensors"), "--output", str(output)]) == 1
    assert f"error: {output} could not be written" in capsys.readouterr().err
