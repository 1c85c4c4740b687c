"""train.py from the outside: what a run leaves behind, how it stops, how it goes on, what it refuses."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import hfp
import models
import train
from benchmarks import training_runs as runs
from hfp import checkpoint
from hfp.experiment import loop
from hfp.experiment.run import PHASES, RunFolder
from hfp.experiment.settings import check_device, open_run, parse

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--target-macs", "0.4", "--dense-epochs", "2", "--prune-epochs", "2", "--finetune-epochs", "2"]
ROWS = ("baseline", "gated", "compacted", "finetuned")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run left in peace, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "peaceful"
    return folder, runs.finish(runs.start(folder, TINY))


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    for file in finished[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# --- what a run leaves behind


def test_the_run_folder_holds_everything(finished: tuple[Path, str]) -> None:
    names = {"config.json", "metrics.jsonl", "result.json"}
    files = {"dense", "gated", "small", "checkpoint", "previous"}
    assert {path.name for path in finished[0].iterdir()} == names | {f"{name}.safetensors" for name in files}


def test_the_result_says_what_was_reached(finished: tuple[Path, str]) -> None:
    result = json.loads((finished[0] / "result.json").read_text())
    for row in ROWS:
        assert {"accuracy", "params", "params_share", "macs", "macs_share", "latency_ms"} <= result[row].keys()
    assert result["gated"]["accuracy"] == result["compacted"]["accuracy"]
    assert result["baseline"]["macs_share"] == 1
    for row in ROWS[1:]:
        assert 0.39 < result[row]["macs_share"] <= 0.4
        assert result[row]["params"] == result["compacted"]["params"] < result["baseline"]["params"]
    assert result["widths"]["dense"] == {"conv1": 20, "conv2": 50, "fc1": 500, "fc2": 10}
    assert result["ptflops"]["baseline"] == 2_338_170


def test_the_figures_are_those_of_the_file(finished: tuple[Path, str]) -> None:
    result = json.loads((finished[0] / "result.json").read_text())
    small = hfp.load(finished[0] / "small.safetensors", models.build("lenet5"))
    accuracy, _ = loop.evaluate(small, hfp.experiment.data.load("digits").test.batches(100))
    assert accuracy == result["finetuned"]["accuracy"]
    assert sum(parameter.numel() for parameter in small.parameters()) == result["finetuned"]["params"]


def test_every_epoch_has_its_line(finished: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [(phase, n) for phase in PHASES[:3] for n in (1, 2)]
    assert [line["lr"] for line in lines if line["phase"] != "dense"] == pytest.approx(
        [0.05, 0.05 * 0.853553, 0.05 * 0.5, 0.05 * 0.146447], rel=1e-4
    )


def test_plain_lines_go_into_a_file_and_the_table_comes_last(finished: tuple[Path, str]) -> None:
    printed = finished[1]
    assert "\x1b" not in printed and "\r" not in printed
    assert all(f"{phase:8}   2/2  loss" in printed for phase in PHASES[:3])
    table = printed[printed.index("lenet5 on digits\n") :].splitlines()
    assert [line.split()[1] for line in table if line.startswith("│")] == list(ROWS)


def test_an_existing_baseline_and_a_control(finished: tuple[Path, str], tmp_path: Path) -> None:
    settings = ["--weights", str(finished[0] / "dense.safetensors"), "--prune-epochs", "2", "--finetune-epochs", "0"]
    more = [
        "--control",
        "--distill",
        "0.5",
        "--target-params",
        "0.5",
        "--amp",
        "--channels-last",
        "--label-smoothing",
        "0.1",
    ]
    assert train.main([*settings, *more, "--output", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    before = json.loads((finished[0] / "result.json").read_text())
    assert result["config"]["statistics"] == "data"
    assert result["baseline"]["params"] == result["control"]["params"] == before["baseline"]["params"]
    assert result["finetuned"]["params_share"] <= 0.5
    assert result["finetuned"]["accuracy"] == result["compacted"]["accuracy"]


# --- stopping and going on


def test_killed_at_random_moments_it_ends_the_same(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "hunted"
    process = runs.start(folder, TINY)
    wait_for(lambda: (folder / "checkpoint.safetensors").exists(), process)
    process.kill()
    process.communicate()
    runs.kill_and_resume(folder, TINY, kills=2, window=(2, 8), generator=random.Random(0))
    assert runs.differences(finished[0], folder) == []


@pytest.mark.parametrize(("sent", "code", "said"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_stopped_run_says_how_to_go_on(sent: int, code: int, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    process = runs.start(folder, [*TINY, "--dense-epochs", "1000"])
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(RunFolder(folder, {}).lines()) > 1, process)
    process.send_signal(sent)
    printed, _ = process.communicate()
    assert process.returncode == code
    assert f"stopped by {said}." in printed
    assert f"python train.py --resume '{folder}'" in printed
    state = checkpoint.load_training(folder / "checkpoint.safetensors")
    assert state["phase"] == "dense" and state["epoch"] >= 1
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 40, 110])  # of 120: 20 an epoch, two epochs each of dense, pruned, fine-tuned
def test_a_signal_costs_not_a_step(
    sent: int, step: int, finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run_epoch = loop.train_epoch

    def interrupted(*args: Any, on_step: Any, **options: Any) -> loop.Running:
        def on_step_too(running: loop.Running) -> None:
            seen.append(running.steps)
            if len(seen) == step:
                os.kill(os.getpid(), sent)
            on_step(running)

        return run_epoch(*args, on_step=on_step_too, **options)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    assert train.main([*TINY, "--output", str(tmp_path / "run")]) == 128 + sent
    state = checkpoint.load_training(tmp_path / "run" / "checkpoint.safetensors")
    assert state["amid"]["steps"] == seen[-1] == (step - 1) % 20 + 1
    assert len(seen) == step  # not another one was made
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert len(seen) == 120
    assert runs.differences(finished[0], tmp_path / "run") == []


@pytest.mark.parametrize(
    "amid", [None, {}, {"steps": "1"}, {"steps": -1}, {"chance": {}}, {"chance": {"cpu": torch.zeros(3)}}]
)
def test_a_checkpoint_amid_an_epoch_that_makes_no_sense_is_refused(
    amid: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"images": 100, "steps": 1, "seconds": 1.0, "sums": {}, "chance": {"cpu": torch.get_rng_state()}}
    state = checkpoint.load_training(copied / "previous.safetensors")
    checkpoint.save_training(copied / "checkpoint.safetensors", state | {"amid": amid and whole | amid})
    assert train.main(["--resume", str(copied)]) == 2
    assert "was saved amid an epoch, and does not say how far it was" in capsys.readouterr().err


def test_a_full_disk_keeps_the_checkpoint_before(copied: Path) -> None:
    """Files may not grow beyond a limit below the size of a checkpoint, which fails as a full disk does."""
    state = checkpoint.load_training(copied / "gated.safetensors")
    checkpoint.save_training(copied / "checkpoint.safetensors", state | {"epoch": 1})
    before = (copied / "checkpoint.safetensors").read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    command = [sys.executable, "train.py", "--resume", str(copied)]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: [Errno 27] File too large" in done.stderr
    assert f"python train.py --resume {copied}" in done.stderr
    assert (copied / "checkpoint.safetensors").read_bytes() == before
    assert not list(copied.glob(".*"))


def test_lines_past_the_checkpoint_and_half_lines_are_dropped(copied: Path) -> None:
    state = checkpoint.load_training(copied / "gated.safetensors")
    checkpoint.save_training(copied / "checkpoint.safetensors", state)
    with open(copied / "metrics.jsonl", "a") as file:
        file.write('{"phase": "finetune", "epo')
    (copied / ".checkpoint.safetensors.1.tmp").write_bytes(b"left by a kill")
    run = RunFolder.resume(copied)
    run.begin()
    assert [(line["phase"], line["epoch"]) for line in run.lines()][-1] == ("prune", 2)
    assert (copied / "metrics.jsonl").read_text().endswith("}\n")
    assert not list(copied.glob(".*"))


def test_a_finished_run_shows_its_table_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((copied / "result.json").read_text())
    assert train.main(["--resume", str(copied)]) == 0
    after = json.loads((copied / "result.json").read_text())
    assert [after[row]["accuracy"] for row in ROWS] == [before[row]["accuracy"] for row in ROWS]
    assert "finetuned" in capsys.readouterr().out


def test_a_run_of_the_first_version_goes_on(copied: Path) -> None:
    """It was started before there was an accuracy floor."""
    config = json.loads((copied / "config.json").read_text())
    del config["accuracy_floor"]
    (copied / "config.json").write_text(json.dumps(config))
    assert train.main(["--resume", str(copied)]) == 0


def spoilt(path: Path) -> None:
    """One bit of it flips."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [spoilt, cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.jsonl", "config.json"])
def test_what_is_damaged_is_put_right_from_what_is_not(
    name: str, harm: Any, finished: tuple[Path, str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (copied / name).read_bytes()
    if name == "config.json" and harm is spoilt:
        (copied / name).write_bytes(whole.replace(b":", b";"))  # one that stays JSON is another setting, and refused
    else:
        harm(copied / name)
    harmed = (copied / name).read_bytes() if (copied / name).exists() else b""
    assert train.main(["--resume", str(copied)]) == 0
    assert runs.differences(finished[0], copied) == []
    assert not list(copied.glob(".*"))
    said = capsys.readouterr().out
    if name == "checkpoint.safetensors" and harmed:
        assert "The one before" in said and "has 1 epochs of phase 'finetune': from there it goes on." in said
        assert (copied / "damaged.safetensors").read_bytes() == harmed
    if name == "config.json":
        assert "The checkpoint has the settings as well" in said and (copied / name).read_bytes() == whole


@pytest.mark.parametrize("name", ["dense", "gated", "small"])
def test_a_network_that_is_damaged_is_refused(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt(copied / f"{name}.safetensors")
    harmed = (copied / f"{name}.safetensors").read_bytes()
    if train.main(["--resume", str(copied)]):
        assert f"{name}.safetensors is damaged: it does not hold what was written to it" in capsys.readouterr().err
        assert (copied / f"{name}.safetensors").read_bytes() == harmed
    else:
        assert name == "small"  # which a run in its last phase writes anew


def test_of_two_runs_that_looked_at_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    first, second = (RunFolder.create(tmp_path / "run", {"seed": seed}) for seed in (1, 2))
    first.begin()
    (first.path / ".checkpoint.safetensors.1.1.tmp").touch()  # it is writing
    with pytest.raises(ValueError, match="already holds a run. Continue it with --resume"):
        second.begin()
    assert json.loads(first.settings.read_text()) == {"seed": 1}
    assert sorted(path.name for path in first.path.iterdir()) == [".checkpoint.safetensors.1.1.tmp", "config.json"]


def test_a_run_begins_where_a_file_has_one_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", refuse)
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    run.begin()
    assert json.loads(run.settings.read_text()) == {"seed": 1}
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_a_device_that_is_chosen_anew(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"device": "cuda:7"}))
    assert open_run(["--resume", str(copied), "--device", "auto"]).config["device"] in ("cpu", "cuda")


def test_weights_of_ours_that_are_damaged_are_refused(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They might be taken for weights from elsewhere, which want other statistics."""
    shutil.copyfile(finished[0] / "dense.safetensors", tmp_path / "dense.safetensors")
    spoilt(tmp_path / "dense.safetensors")
    given = ["--target-macs", "0.4", "--weights", str(tmp_path / "dense.safetensors")]
    assert "is damaged: it does not hold what was written to it" in refused(given, capsys)


def test_weights_of_other_training_scripts(tmp_path: Path) -> None:
    theirs = models.build("lenet5")
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.th")
    ours = train.dense_network({"name": "lenet5"}, str(tmp_path / "theirs.th"))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_weights_for_other_classes(tmp_path: Path) -> None:
    """Layers that depend on their number start afresh, which is said; everything else has to fit."""
    theirs, said = models.build("lenet5", num_classes=1000).state_dict(), list[str]()
    torch.save(theirs, tmp_path / "theirs.pt")
    build = {"name": "lenet5", "num_classes": 7}
    ours = train.dense_network(build, str(tmp_path / "theirs.pt"), said.append).state_dict()
    assert said == [f"{tmp_path / 'theirs.pt'} is for another number of classes: fc2.weight, fc2.bias start afresh"]
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == ["fc2.weight", "fc2.bias"]
    torch.save(theirs | {"fc1.bias": torch.zeros(3)}, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"fc1.bias is \(3,\) float32, the network has \(500,\)"):
        train.dense_network(build, str(tmp_path / "theirs.pt"), said.append)
    assert len(said) == 1


def test_patterns_add_up() -> None:
    assert parse(["--target-macs", "0.4", "--ignore", "a", "b", "--ignore", "c"])[0]["ignore"] == ["a", "b", "c"]


def test_a_folder_without_settings_still_holds_a_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "config.json").unlink()
    assert "already holds a run" in refused([*TINY, "--output", str(copied)], capsys)


# --- what is refused


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that makes no sense is answered."""
    try:
        assert train.main(arguments) == 2
    except SystemExit as stop:  # of argparse
        assert stop.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--target-macs", "0.3"], "started with --target-macs 0.4, and --target-macs 0.3 is given now. Leave"),
        (["--target-params", "500k"], "started with --target-params None, and --target-params 500000 is given now"),
        (["--model", "resnet20"], "started with --model lenet5, and --model resnet20 is given now"),
        (["--dataset", "cifar10"], "started with --dataset digits, and --dataset cifar10 is given now"),
        (["--seed", "1"], "started with --seed 0, and --seed 1 is given now"),
        (["--output", "elsewhere"], "--output elsewhere is another folder than --resume"),
    ],
)
def test_another_run_is_not_a_resumed_one(
    given: list[str], message: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert message in refused(["--resume", str(copied), *given], capsys)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Give a target: --target-macs 0.4"),
        (["--target-macs", "half"], "'half' is neither a share such as 0.4 nor a count such as 500k"),
        (["--target-macs", "nan"], "'nan' is neither a share"),
        (["--target-macs", "-0.4"], "argument"),
        (["--target-macs", "1.5"], "target_macs=1.5"),
        (["--target-macs", "0.0"], "target_macs=0.0"),
        (["--target-macs", "7"], "target_macs=7"),
        (["--target-params", "99M"], "is above the 431,080 of the dense model"),
        (["--target-macs", "0.4", "--model", "resnt20"], "did you mean resnet20"),
        (["--target-macs", "0.4", "--dense-epochs", "0"], "would prune an untrained network"),
        (["--target-macs", "0.4", "--weights", "none.th"], "--weights none.th: there is no such file"),
        (["--target-macs", "0.4", "--prune-epochs", "0"], "'0' is not an integer of 1 or more"),
        (["--target-macs", "0.4", "--lr", "inf"], "'inf' is not a number of zero or more"),
        (["--target-macs", "0.4", "--distill", "1.5"], "'1.5' is above 1"),
        (["--target-macs", "0.4", "--device", "abacus"], "--device abacus cannot be used here"),
        (["--target-macs", "0.4", "--dataset", "imagefolder", "--data-dir", "nowhere"], "nowhere"),
        (["--target-macs", "0.4", "--ignore", "conv9"], "matches no module of the network"),
        (["--resume", "nowhere"], "There is no run in nowhere (no config.json)"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = [] if "--resume" in given else ["--output", "run"]
    assert message in refused([*given, *output], capsys)
    assert not list(tmp_path.iterdir())


def test_what_a_device_lacks_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*size: int, device: str) -> None:
        raise RuntimeError(f"There is no {device}. These there are: {1000 * 'cpu, '}.\nAnd more")

    monkeypatch.setattr(torch, "empty", fails)
    with pytest.raises(ValueError, match=r"^--device mps cannot be used here: There is no mps$"):
        check_device("mps")


def test_images_that_are_too_small_to_train_on() -> None:
    """What a network has for training alone may need more pixels than the rest of it."""
    net = models.build("inception_v3", image_size=80)
    with pytest.raises(ValueError, match="this Inception3 does not train on images of 80x80 pixels .RuntimeErr"):
        train.check_trains(net, (3, 80, 80))
    train.check_trains(models.build("inception_v3"), (3, 299, 299))


def test_a_folder_that_holds_a_run_is_not_written_over(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"already holds a run. Continue it with --resume {copied}" in refused(
        [*TINY, "--output", str(copied)], capsys
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[]", "it holds no settings"),
        ("config.json", b'{"lr": 1}', "was written by another version of train.py"),
        ("device", 0.5, "config.json has device=0.5, which is of the wrong kind"),
        ("ignore", [1], "config.json has ignore=[1], which is of the wrong kind"),
        ("seed", True, "config.json has seed=True, which is of the wrong kind"),
        ("checkpoint.safetensors", b"cut", "is not a whole safetensors file"),
    ],
)
def test_a_damaged_run_is_refused(
    name: str, content: Any, message: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(content, bytes):
        config = json.loads((copied / "config.json").read_text()) | {name: content}
        name, content = "config.json", json.dumps(config).encode()
    if name == "config.json" and content != b'{"lr": 1}':
        (copied / "checkpoint.safetensors").unlink()  # which has the settings, too
        (copied / "metrics.jsonl").unlink()  # which tells that there was one
    (copied / "previous.safetensors").unlink()
    (copied / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert message in refused(["--resume", str(copied)], capsys)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_diverging_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "training diverged. Lower the learning rate" in refused(
        [*TINY, "--lr", "1e6", "--output", str(tmp_path / "run")], capsys
    )


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    printed = capsys.readouterr().out
    for flag in ("--target-macs", "--weights", "--resume", "--round-to", "--distill"):
        assert flag in printed
    assert "python train.py --target-macs 0.4\n" in printed


def test_a_network_that_cannot_be_gated_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagrees(*_: Any, **__: Any) -> None:
        raise hfp.Disagreement("gating is not removing", ())

    monkeypatch.setattr(hfp, "wrap", disagrees)
    assert "error: gating is not removing" in refused(["--target-macs", "0.4", "--output", str(tmp_path / "x")], capsys)


def test_a_checkpoint_that_is_gone_is_told(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    run.begin()
    for epoch in (1, 2):
        run.save({"phase": "dense", "epoch": epoch, "config": {}})
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    resumed = RunFolder.resume(tmp_path / "run")
    assert resumed.state is not None and resumed.state["epoch"] == 1
    assert "checkpoint.safetensors is missing. The one before" in resumed.mended[0]
