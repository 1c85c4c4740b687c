"""`python -m hfp.compact`: from any checkpoint of a run, the network that its gates mean; from a spoilt one, none."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets_of_mine
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from unpickling import FORBIDDEN, PROGRAMS

import hfp
import models
import train
from hfp import checkpoint, compact
from hfp.deploy import foreign, formats, origin
from hfp.experiment import loop
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


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured for a moment only: their values are not what is tested here."""
    turns = loop.turns
    monkeypatch.setattr(loop, "turns", lambda nets, given, *how_long: turns(nets, given, 0.1, 5))


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
    assert f"phase '{MOMENTS[moment]}', {moment[-1]} epochs done; {origin.WHERE[MOMENTS[moment]]}" in printed
    assert ("the gated network's differ by" in printed) == (MOMENTS[moment] in ("dense", "prune"))
    counts = ("parameters", "MACs", "MACs, as ptflops counts", "tensors in a file, bytes")
    for row in (*counts, "CPU latency, batch 1, ms"):
        assert f"│ {row} " in printed


@pytest.mark.parametrize("moment", ["prune1", "prune2"])
def test_the_file_computes_what_the_gated_network_does(moment: str, moments: Path, tmp_path: Path) -> None:
    source, output = moments / f"{moment}.safetensors", tmp_path / "small.safetensors"
    assert compact.main([str(source), "--output", str(output)]) == 0
    gated = hfp.wrap(models.build("lenet5"), target_macs=0.4, target_params=0.3, round_to=2)
    gated.load_state_dict(checkpoint.load_training(source)["net"])
    gated.keep = checkpoint.record_of(hfp.load(output, models.build("lenet5"))).keep
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
    "a name of models": (within("build", name="pretrained"), "unknown model 'pretrained'"),
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
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    cases = {
        moments / "run" / "dense.safetensors": "holds dense weights; say how much may stay: --target-macs 0.4",
        tmp_path / "noise": "is damaged, or holds more than tensors",
        tmp_path / "noise.safetensors": "is not a whole safetensors file",
        tmp_path / "nothing": "There is no file",
        tmp_path: f"{tmp_path} is a folder; give the name of a file\n",
        moments / "run": f"a file, {moments}/run/small.safetensors or {moments}/run/checkpoint.safetensors\n",
    }
    for path, message in cases.items():
        assert compact.main([str(path), "--output", str(tmp_path / "small")]) == 2
        assert message in capsys.readouterr().err


def test_the_checkpoint_is_not_written_over(moments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(moments / "prune1.safetensors")
    assert compact.main([path, "--output", path]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_written(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.pt2").mkdir()
    command = [str(moments / "prune1.safetensors"), "--output", str(tmp_path / "small")]
    assert compact.main([*command, "--format", "safetensors,pt2"]) == 2
    assert "small.pt2 is a folder; give the name of a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


def test_a_folder_that_cannot_be_written_is_named(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    output = tmp_path / "file" / "small.safetensors"
    assert compact.main([str(moments / "prune1.safetensors"), "--output", str(output)]) == 1
    assert f"error: {output} could not be written" in capsys.readouterr().err


def test_of_several_formats_all_are_written_or_none(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(outcome: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("it cannot be exported")

    (tmp_path / "small.safetensors").write_bytes(b"an older one")
    monkeypatch.setitem(
        formats.FORMATS, "torchscript", dataclasses.replace(formats.FORMATS["torchscript"], write=fails)
    )
    given = [str(moments / "prune1.safetensors"), "--output", str(tmp_path / "small")]
    assert compact.main([*given, "--format", "safetensors,torchscript"]) == 2
    assert "it cannot be exported" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"small.safetensors": b"an older one"}


# --- what is wanted beside the checkpoint


def compacted(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    """What the command says in JSON."""
    assert compact.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert compact.main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Weights of somebody's ResNet-20."""
    torch.manual_seed(1)
    net = models.build("resnet20")
    torch.save({"state_dict": {f"module.{name}": x for name, x in net.state_dict().items()}}, tmp_path / "dense.th")
    return tmp_path / "dense.th"


def test_json_tells_what_was_done(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "small.safetensors"
    found = compacted(capsys, dense, "--model", "resnet20", "--target-macs", "0.4", "--output", output)
    assert found["said"] == "dense weights of resnet20; cut by magnitude" and found["gated_difference"] < 1e-5
    assert found["written"] == {"safetensors": {"path": str(output), "difference": 0.0}}
    assert found["files"] == {"safetensors": output.stat().st_size}
    assert found["file_bytes"][1] < 0.7 * found["file_bytes"][0]
    assert found["widths"]["conv1"] == [16, hfp.load(output, models.build("resnet20")).conv1.out_channels]  # type: ignore[union-attr]
    assert found["macs"][1] <= 0.4 * found["macs"][0] and found["macs"][0] == 40_551_040
    assert set(found["latency_ms"]) == {"1", "8"}
    notes = checkpoint.header(output)["notes"]
    assert notes == {"model": "resnet20", "seed": 0, "weights": "dense.th"}


def test_the_same_command_gives_the_same_tensors(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [dense, "--model", "resnet20", "--target-params", "0.5", "--method", "random", "--seed"]
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        compacted(capsys, *given, seed, "--output", tmp_path / name)
    one, same, other = (load_file(tmp_path / name) for name in ("one", "same", "other"))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert (
        checkpoint.header(tmp_path / "one")["record"]["keep"] != checkpoint.header(tmp_path / "other")["record"]["keep"]
    )
    assert other.keys() == one.keys()


@pytest.mark.parametrize("method", origin.ONE_SHOT)
def test_methods_that_need_no_training(
    method: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [dense, "--model", "resnet20", "--target-macs", "0.5", "--method", method, "--output", tmp_path / "small"]
    found = compacted(capsys, *given, "--ignore", "layer1.0*", "--round-to", "4")
    assert 0.3 * found["macs"][0] < found["macs"][1] <= 0.5 * found["macs"][0]
    assert found["widths"]["layer1.0.conv1"] == [16, 16]
    assert all(after % 4 == 0 for name, (_, after) in found["widths"].items() if name.endswith("conv1"))


def test_a_dry_run_does_everything_and_leaves_nothing(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "small.safetensors"
    given = [str(dense), "--model", "resnet20", "--target-macs", "0.4", "--output", str(output), "--dry-run"]
    assert compact.main(given) == 0
    assert f"{output}: not written (--dry-run), but tried" in capsys.readouterr().out
    assert not output.parent.exists()


def test_dense_weights_of_a_run_tell_their_network(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name may be torchvision's as well, and of other images."""
    dense, small = moments / "run" / "dense.safetensors", tmp_path / "small.safetensors"
    found = compacted(capsys, dense, "--target-macs", "0.4", "--output", small)
    assert 0.39 * found["macs"][0] < found["macs"][1] <= 0.4 * found["macs"][0]
    assert (
        compacted(capsys, small, "--target-macs", "0.3", "--output", tmp_path / "smaller")["macs"][1]
        <= 0.3 * found["macs"][0]
    )
    given = compacted(capsys, dense, "--model", "lenet5", "--target-macs", "0.4", "--output", tmp_path / "named")
    assert given["widths"] == found["widths"]


def test_a_compact_file_tells_the_inputs_of_its_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A function of one's own need not tell them, and a network that is built for one size is built for that."""
    resized, sized = tmp_path / "resized", tmp_path / "sized"
    own = hfp.wrap(nets_of_mine.Resized(), (torch.zeros(1, 3, 8, 8), torch.tensor([6.0, 6.0])), target_macs=0.6)
    hfp.save(own.compact(), resized)
    hfp.save(hfp.wrap(nets_of_mine.tall(), torch.zeros(1, 3, 8, 8), target_macs=0.6).compact(), sized)
    for source, name in ((resized, "nets_of_mine:Resized"), (sized, "nets_of_mine:tall")):
        given = [source, "--model", name, "--output", tmp_path / "less"]
        alone = compacted(capsys, *given, "--target-macs", "0.5")
        assert alone["macs"][0] == checkpoint.header(source)["record"]["dense_macs"]
    assert compacted(capsys, *given, "--input-shape", "1,3,8,8")["macs"][1] > alone["macs"][1]
    assert "--input-shape 1,3,64,64: " in refused(capsys, *given, "--input-shape", "1,3,64,64")


def test_weights_for_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number that was given once is in the file."""
    torch.save(models.build("resnet20", num_classes=7).state_dict(), tmp_path / "seven.pt")
    given = [tmp_path / "seven.pt", "--model", "resnet20", "--target-macs"]
    compacted(capsys, *given, "0.6", "--num-classes", 7, "--output", tmp_path / "small")
    cut = compacted(capsys, tmp_path / "small", "--target-macs", "0.5", "--output", tmp_path / "less")
    named = [tmp_path / "less", "--model", "resnet20", "--output", tmp_path / "again"]
    assert compacted(capsys, *named)["macs"] == cut["macs"]
    notes = {"model": "resnet20", "num_classes": 7, "seed": 0, "weights": "seven.pt"}
    assert checkpoint.header(tmp_path / "again")["notes"] == notes
    assert "--num-classes 7, or a module:function" in refused(capsys, *named, "--num-classes", "8")
    assert hfp.load(tmp_path / "again", models.build("resnet20", num_classes=7)).linear.out_features == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [True, -1, 10**9, "7", [7]])
def test_a_file_asks_for_no_impossible_number_of_classes(
    classes: Any, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = hfp.load(moments / "run" / "small.safetensors", models.build("lenet5"))
    hfp.save(small, tmp_path / "hostile", model="lenet5", num_classes=classes)
    error = refused(capsys, tmp_path / "hostile", "--output", tmp_path / "small")
    assert f"asks for a network of {classes!r} classes" in error


def test_no_folder_is_left_where_nothing_is_written(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    for folder in ("new/newer", "old"):
        given = [str(dense), "--target-macs", "0.4", "--output", str(tmp_path / folder / "small.safetensors")]
        assert compact.main(given) == 2
        assert "say of which network" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["old"]


def test_a_compact_file_is_cut_further_and_changes_its_format(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = moments / "run" / "small.safetensors"
    found = compacted(capsys, small, "--output", tmp_path / "same")
    assert found["said"] == "a compact network" and found["gated_difference"] is None
    assert all(torch.equal(value, load_file(small)[name]) for name, value in load_file(tmp_path / "same").items())
    found = compacted(
        capsys, tmp_path / "same", "--target-macs", "0.3", "--round-to", "4", "--output", tmp_path / "less"
    )
    assert found["said"] == "a compact network; cut further by magnitude" and found["gated_difference"] < 1e-5
    less: Any = hfp.load(tmp_path / "less", models.build("lenet5"))
    assert less.hfp_record.macs <= 0.3 * less.hfp_record.dense_macs and less.conv2.out_channels % 4 == 0
    header = checkpoint.header(tmp_path / "less")
    assert header["notes"]["build"]["name"] == "lenet5" and header["record"]["targets"]["macs"] == 0.3


def test_widths_that_cannot_be_rounded_any_more_are_counted(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = moments / "run" / "small.safetensors"
    width = hfp.load(small, models.build("lenet5")).conv1.out_channels  # type: ignore[union-attr]
    found = compacted(capsys, small, "--round-to", width + 1, "--output", tmp_path / "less")
    end = f"; 1 of 3 channel groups had fewer than {width + 1} channels left, and keep them"
    assert found["said"] == f"a compact network; cut further by magnitude{end}"


def test_a_run_is_cut_to_another_target_with_what_its_gates_know(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [moments / "prune1.safetensors", "--target-macs", "0.2", "--round-to", "5", "--output", tmp_path / "small"]
    found = compacted(capsys, *given)
    assert "cut further" not in found["said"] and found["gated_difference"] < 1e-5
    assert found["macs"][1] <= 0.2 * found["macs"][0]
    assert all(found["widths"][name][1] % 5 == 0 for name in ("conv1", "conv2", "fc1"))


def test_auto_tells_what_it_measured(moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = moments / "dense1.safetensors"
    given = [str(source), "--round-to", "auto", "--batch", "2", "--output", str(tmp_path / "small")]
    assert compact.main(given) == 0
    printed = capsys.readouterr().out
    chosen = re.search(r"widths in multiples of (\d+), the fastest here at batch 2: 1: [\d.]+ ms, 4: ", printed)
    assert chosen is not None and "CPU latency, batch 2, ms" in printed
    small: Any = hfp.load(tmp_path / "small", models.build("lenet5"))
    assert small.fc1.out_features % int(chosen[1]) == 0


def test_what_does_not_go_together_is_refused_in_words(
    dense: Path, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, small = moments / "prune1.safetensors", moments / "run" / "small.safetensors"
    model = ["--model", "resnet20"]
    cases: list[tuple[list[Any], str]] = [
        ([dense], "holds dense weights; say of which network: --model NAME"),
        ([dense, *model], "say how much may stay: --target-macs 0.4"),
        (
            [dense, *model, "--method", "hfp"],
            "--method hfp needs training, which train.py --method hfp does; without it: ",
        ),
        ([dense, *model, "--method", "gpp"], "method='gpp': expected one of hfp, pag"),
        ([dense, "--model", "resnet32", "--target-macs", "0.4"], "does not fit this CifarResNet: layer1.3."),
        ([dense, "--model", "resnet2", "--target-macs", "0.4"], "unknown model 'resnet2'; did you mean"),
        ([dense, *model, "--target-macs", "0.4", "--use-ema"], "holds no averaged weights"),
        ([dense, *model, "--target-macs", "0.00001"], "the smallest reachable target"),
        ([dense, *model, "--target-macs", "0.4", "--format", "pkl"], "--format pkl: expected some of safetensors,pt2"),
        (
            [moments / "run" / "dense.safetensors", "--model", "lenet5", "--target-macs", "0.4", "--use-ema"],
            "holds no averaged weights",
        ),
        ([ours, *model], "is a training checkpoint, which says its network; leave out --model resnet20"),
        ([ours, "--use-ema"], "--use-ema and --ignore are for dense weights, and phase 'prune'"),
        ([small, "--method", "pag"], "--method cuts a network further; say how far"),
        ([small, *model], "does not fit this CifarResNet"),
        ([ours, "--input-shape", "1,3,28,28"], "--input-shape 1,3,28,28: "),
        ([small, "--input-shape", "1,1,32,32"], "is of a network that takes 1,1,28,28, as it says itself; leave "),
        ([small, "--model", "lenet5", "--input-shape", "1,1,28,28:float64"], "--input-shape 1,1,28,28:float64: "),
        (
            [moments / "run" / "dense.safetensors", "--target-macs", "0.4", "--input-shape", "1,3,28,28"],
            "--input-shape 1,3,28,28: ",
        ),
        ([small, "--num-classes", "7"], "--num-classes 7 is for the network that --model names; a file that tells its"),
        ([dense, *model, "--num-classes", "7", "--target-macs", "0.4"], "(python -m hfp.compact: --num-classes 10, or"),
    ]
    for given, message in cases:
        assert message in refused(capsys, *given, "--output", tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("named", ["os:system", "nets_of_mine:build"])
def test_nothing_that_a_file_names_is_imported(
    named: str, moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = hfp.load(moments / "run" / "small.safetensors", models.build("lenet5"))
    hfp.save(small, tmp_path / "hostile.safetensors", model=named)
    error = refused(capsys, tmp_path / "hostile.safetensors", "--output", tmp_path / "small")
    assert "give the dense one that it was cut from: --model NAME" in error
    hfp.save(small, tmp_path / "hostile.safetensors", build={"name": named})
    assert "does not say how its network is made" in refused(
        capsys, tmp_path / "hostile.safetensors", "--output", tmp_path / "small"
    )


# --- from somebody's file to one that runs anywhere, without a pickle

PUBLISHED = ROOT.parent / "shared" / "weights" / "resnet56-cifar10.th"

MAKE = (
    FORBIDDEN
    + """
import sys
from hfp import compact
raise SystemExit(compact.main(sys.argv[1:]))
"""
)
READ = (
    FORBIDDEN
    + """
import sys, hfp
from safetensors.torch import load_file, save_file
file, model, exchange = sys.argv[1:]
if model:
    import models
    small = hfp.load(file, models.build(model)).eval()
else:
    small = hfp.load(file, trusted=True)
    assert "models" not in sys.modules
save_file({"y": small(load_file(exchange)["x"]).detach()}, exchange)
"""
)


@PROGRAMS
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_one_command_and_no_pickle_is_opened(name: str, dense: Path, tmp_path: Path) -> None:
    """Made, read with the constructor alone, and read without it, each in a process that cannot unpickle."""
    if name == "resnet56" and not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED} is not there; the same is tested with weights of our own")
    source = PUBLISHED if name == "resnet56" else dense
    given = [source, "--model", name, "--target-macs", "0.4", "--output", tmp_path / "small.safetensors"]
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []

    def run(code: str, *arguments: Any) -> None:
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run(MAKE, *given, "--format", "safetensors,pt2")
    for suffix, model in (("safetensors", name), ("pt2", "")):
        save_file({"x": x}, tmp_path / "exchange")
        run(READ, tmp_path / f"small.{suffix}", model, tmp_path / "exchange")
        outputs.append(load_file(tmp_path / "exchange")["y"])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)

    network = models.build(name)
    foreign.fill(network, foreign.read(source), source=str(source))
    record = checkpoint.record_of(hfp.load(tmp_path / "small.safetensors", network))
    gated = hfp.wrap(network, target_macs=0.4, method="pag").eval()
    gated.keep = record.keep
    torch.testing.assert_close(outputs[0], gated(x), rtol=1e-4, atol=1e-4)
    assert 0.39 * record.dense_macs < record.macs <= 0.4 * record.dense_macs


def test_files_of_any_format_are_compared_as_tensors(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program or ONNX has more in it than the weights of the dense network beside it."""
    given = [dense, "--model", "resnet20", "--target-macs", "0.4", "--output"]
    found = compacted(capsys, *given, tmp_path / "small.safetensors")["file_bytes"]
    before, after = compacted(capsys, *given, tmp_path / "small.pt2")["file_bytes"]
    assert before == found[0] and after == pytest.approx(found[1], rel=0.02)


def test_inputs_that_say_a_size_are_given_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise in their place would be no size."""
    model = nets_of_mine.Resized()
    small = hfp.wrap(model, (torch.zeros(1, 3, 8, 8), torch.tensor([6.0, 6.0])), target_macs=0.6).compact()
    hfp.save(small, tmp_path / "small.safetensors")
    given = [tmp_path / "small.safetensors", "--model", "nets_of_mine:Resized", "--input-shape", "1,3,8,8"]
    given += ["--input-shape", "2", "--output", tmp_path / "less.safetensors"]
    assert compacted(capsys, *given)["written"]["safetensors"]["difference"] == 0.0
    assert compacted(capsys, *given, "--target-macs", "0.4")["gated_difference"] < 1e-5
