"""`python -m hfp.inspect`: the table of any network, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hfp
from hfp import catalogue, inspect
from hfp.explain import table_data
from hfp.rules import RULES
from hfp.rules.movers import same

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--model", "lenet5"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = inspect.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_what_is_printed_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SMALL)
    network = catalogue.build("lenet5")
    assert (code, err) == (0, "")
    assert out == f"lenet5: LeNet5, 1 x 1 x 28 x 28\n{hfp.trace(network.model, network.inputs)}\n"


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SMALL, "--json")
    network = catalogue.build("lenet5")
    expected = {"model": "lenet5", "class": "LeNet5", "note": ""}
    assert (code, err) == (0, "")
    assert json.loads(out) == expected | table_data(hfp.trace(network.model, network.inputs))


def test_several_inputs_of_several_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["--input-shape", "2,7:int64", "--input-shape", "2,7,5"]
    code, out, _ = run(capsys, "--model", "nets_of_mine:Two", *shapes, "--verify")
    assert code == 0 and out.startswith(
        "nets_of_mine:Two: Two, 2 x 7, 2 x 7 x 5\n6 channels in 1 groups can be pruned\n"
    )
    assert "verify: gated and compact outputs differ by " in out


def test_the_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *SMALL, "--verify")
    assert code == 0 and out.splitlines()[-1].startswith("verify: gated and compact outputs differ by ")
    code, out, _ = run(capsys, *SMALL, "--verify", "--json")
    found = json.loads(out)["verified"]
    assert code == 0 and found["holds"] and found["cuts"] == inspect.CUTS and 0 <= found["difference"] < 1e-5


def test_the_check_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong: the group behind it is named, the other is not."""
    given = ["--model", "nets_of_mine:Flipped", "--input-shape", "1,3,8,8", "--verify"]
    assert run(capsys, *given)[0] == 0
    monkeypatch.setitem(RULES, "flip", same)
    code, out, _ = run(capsys, *given)
    assert code == 1 and "To blame: group 1 (6 channels made by 1, read by 2). To leave that whole" in out
    assert "6 channels" in out and "5 channels made" not in out
    code, out, _ = run(capsys, *given, "--json")
    found = json.loads(out)["verified"]
    assert code == 1 and not found["holds"] and found["groups"] == [1] and "made by 1, read by 2" in found["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet55"], "error: unknown model 'resnet55'; did you mean "),
        (["--model", "nets_of_mine:needy"], "give a function that needs no arguments"),
        (["--model", "nets_of_mine:build"], "give the shape of each input: --input-shape 1,3,224,224"),
        ([*SMALL, "--input-shape", "1,3,28,28"], "does not run on the example inputs, which are (1, 3, 28, 28): "),
        ([*SMALL, "--input-shape", "1,3,28,28", "--verify"], "does not run on the example inputs"),
        ([*SMALL, "--input-shape", "1,1,28,28:int64"], "does not run on the example inputs"),
        ([*SMALL, "--input-shape", "1,1,28,28", "--input-shape", "1"], "which are (1, 1, 28, 28), (1,): TypeError"),
        (["--model", "ssdlite320_mobilenet_v3_large", "--input-shape", "1,4,32,32"], "which are [(4, 32, 32)]: "),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_words(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and words in err
    assert "Traceback" not in err and err.count("\n") == 1


@pytest.mark.parametrize("shape", ["", "1,x", "1,0,3", "1,-1", "1,3:", "1,3:float", "1,3:tensor", "1,3:float31", "1.5"])
def test_shapes_that_are_none(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    if shape in ("1,3:", "1,3:float"):  # no dtype, and torch's own second name of float32
        assert inspect.shape_and_dtype(shape) == ((1, 3), torch.float32)
        return
    with pytest.raises(SystemExit) as stopped:
        inspect.main([*SMALL, f"--input-shape={shape}"])
    assert stopped.value.code == 2
    assert f"argument --input-shape: {shape!r} is no shape; expected such as 1,3,224,224" in capsys.readouterr().err


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "hfp.inspect", *SMALL, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["params"]["dense"] == 431_080
