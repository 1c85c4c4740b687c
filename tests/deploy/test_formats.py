"""Every format computes what the network does; what a format needs and lacks is told."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from unpickling import PROGRAMS

import hfp
import models
from hfp import files
from hfp.deploy import formats
from hfp.deploy.origin import Outcome

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    torch.manual_seed(0)
    dense = models.build("lenet5").eval()
    return Outcome("a test", dense, None, hfp.wrap(dense, target_macs=0.4).compact().eval())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=PROGRAMS if name == "pt2" else ()) for name in formats.FORMATS]
)
def test_what_is_written_computes_the_same_for_a_batch(name: str, outcome: Outcome, tmp_path: Path) -> None:
    if missing := [package for package in formats.FORMATS[name].needs if importlib.util.find_spec(package) is None]:
        pytest.skip(f"{missing} not installed")
    path = tmp_path / f"small{formats.FORMATS[name].suffix}"
    assert formats.write(outcome, name, path) <= formats.FORMATS[name].apart
    x = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        found = formats.FORMATS[name].read(outcome, path)(x)
        expected = outcome.small(x)
    torch.testing.assert_close(found[0] if isinstance(found, list) else found, expected, rtol=1e-4, atol=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["safetensors", "torchscript"])
def test_what_computes_something_else_does_not_stay(
    name: str, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfp.model.outputs.difference", lambda *given: 1.0)
    with pytest.raises(ValueError, match="does not hold what was written to it: outputs differ by 1.0e"):
        formats.write(outcome, name, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_what_another_runtime_cannot_run_is_told(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("no kernel for this operator\nand more")

    form = dataclasses.replace(formats.FORMATS["torchscript"], read=lambda *given: fail)
    monkeypatch.setitem(formats.FORMATS, "torchscript", form)
    with pytest.raises(ValueError, match="as torchscript cannot be run: RuntimeError: no kernel for this operator$"):
        formats.write(outcome, "torchscript", tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_names_are_made_of_the_output() -> None:
    given = Path("runs/small.v2.safetensors")
    assert formats.paths(given, ["onnx"]) == {"onnx": given}
    found = formats.paths(given, ["safetensors", "pt2"])
    assert found == {"safetensors": given, "pt2": Path("runs/small.v2.pt2")}
    assert formats.paths(Path("small"), ["pt2", "onnx"])["onnx"] == Path("small.onnx")
    assert formats.of_suffix(Path("a.torchscript")) == "torchscript"


def test_a_name_that_says_another_format_is_refused() -> None:
    with pytest.raises(
        ValueError, match="named as pt2, and --format says safetensors; give --output a.safetensors, or"
    ):
        formats.check(["safetensors"], Path("a.pt2"))
    for names, output in ((["pt2", "safetensors"], "a.pt2"), (["pt2"], "a.bin"), (["pt2"], "a.pt2")):
        formats.check(names, Path(output))


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ts"])
def test_a_name_that_promises_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--output {name}: expected one of a.safetensors, a.pt2"):
        formats.of_suffix(Path(name))


def test_only_onnx_is_timed_in_onnxruntime(outcome: Outcome) -> None:
    for names in (["safetensors"], ["pt2", "onnx"]):
        assert formats.runs(outcome, names) is outcome.small
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    x = torch.randn(2, 1, 28, 28)
    (found,) = formats.runs(outcome, ["onnx"])(x)
    torch.testing.assert_close(found, outcome.small(x).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_not_there_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--format onnx needs onnx, .*: pip install onnx onnxscript onnxruntime"):
        formats.check(["safetensors", "onnx"], Path("small"))
    with pytest.raises(ValueError, match="--format pickle: expected some of safetensors,pt2"):
        formats.check(["pickle"], Path("small"))


@pytest.mark.parametrize("name", ["safetensors", "torchscript", pytest.param("pt2", marks=PROGRAMS)])
def test_a_disk_that_is_full_leaves_nothing(
    name: str, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        formats.write(outcome, name, tmp_path / "small")
    assert not list(tmp_path.iterdir())
