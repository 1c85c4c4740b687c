"""Programs: .pt2 files run without a class, are read only if trusted, and never unpickled."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unpickling import FORBIDDEN, PROGRAMS

import hfp
import models
from hfp import program

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter

FRESH_PROCESS = (
    FORBIDDEN
    + """
import sys, torch, hfp
small = hfp.load(sys.argv[1], trusted=True)
assert "models" not in sys.modules
print(small(torch.arange(2 * 784.0).reshape(2, 1, 28, 28).div(784)).tolist())
"""
)


pytestmark = PROGRAMS


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return hfp.wrap(models.build("lenet5"), target_macs=0.4).compact().eval()


@pytest.fixture
def saved(small: nn.Module, tmp_path: Path) -> Path:
    hfp.save(small, tmp_path / "small.pt2")
    return tmp_path / "small.pt2"


def test_it_computes_the_same_for_any_batch(small: nn.Module, saved: Path) -> None:
    loaded: Any = hfp.load(saved, trusted=True)
    for images in (1, 2, 7):
        x = torch.randn(images, 1, 28, 28)
        torch.testing.assert_close(loaded(x), small(x), rtol=1e-6, atol=1e-6)
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert torch.equal(loaded.hfp_record.keep, small.hfp_record.keep)  # type: ignore[union-attr, arg-type]


def test_the_network_that_is_saved_stays_as_it_is(small: nn.Module, tmp_path: Path) -> None:
    small.train()
    hfp.save(small, tmp_path / "small.pt2")
    assert small.training
    small.eval()


def test_a_fresh_process_needs_no_class_and_no_pickle(small: nn.Module, saved: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(Path(hfp.__file__).parent.parent), "PATH": ""}
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(saved)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = small(torch.arange(2 * 784.0).reshape(2, 1, 28, 28).div(784))
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=1e-5, atol=1e-6)


def test_it_tells_nothing_of_the_machine(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        for name in archive.namelist():
            assert str(Path(torch.__file__).parent).encode() not in archive.read(name), name


def test_a_program_is_read_only_if_trusted(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"is a program.*hfp\.load\(path, trusted=True\)"):
        hfp.load(saved)
    with pytest.raises(ValueError, match="needs no model"):
        hfp.load(saved, models.build("lenet5"), trusted=True)


def test_tensors_alone_need_a_model(small: nn.Module, tmp_path: Path) -> None:
    hfp.save(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"holds tensors and no code.*hfp\.load\(path, model\)"):
        hfp.load(tmp_path / "small.safetensors")


class Fixed(nn.Module):
    """Its code writes the size of the batch out."""

    input_size = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).reshape(1, 4 * 16)


def test_a_network_for_one_example_is_exported_for_one(tmp_path: Path) -> None:
    small = hfp.wrap(Fixed(), target_macs=0.5).compact().eval()
    hfp.save(small, tmp_path / "small.pt2")
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(hfp.load(tmp_path / "small.pt2", trusted=True)(x), small(x))
    assert not program.any_batch(program.exported(small, ((x,), {})))


def test_a_version_that_pickles_programs_writes_none(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(program: Any, file: io.BytesIO, **_: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("small/archive_format", "pt2")
            archive.writestr("small/data/weights/model.pt", pickled())

    monkeypatch.setattr(torch.export, "save", old)
    with pytest.raises(ValueError, match="would have pickled parts.*before 2.9 weights too .pip install -U torch"):
        hfp.save(small, tmp_path / "small.pt2")
    assert not list(tmp_path.iterdir())


class Print:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return pytest.fail, ("code was run",)


def replaced(path: Path, end: str, data: bytes) -> None:
    """Put `data` in the place of the entry of an archive whose name ends so, or add it."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next((name for name in content if name.endswith(end)), f"small/{end}")
    with zipfile.ZipFile(path, "w") as archive:
        for each, old in (content | {name: data}).items():
            archive.writestr(each, data if each == name else old)


def pickled() -> bytes:
    data = io.BytesIO()
    torch.save({"x": Print()}, data)
    return data.getvalue()


CONFIG = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "inputs": ("sample_inputs/model.pt", pickled(), "holds pickled objects"),
    "inputs, bare": ("sample_inputs/model.pt", pickle.dumps(Print()), "holds pickled objects"),
    "weights": ("model_weights_config.json", json.dumps({"config": {"w": CONFIG}}).encode(), r"pickled objects \(w\)"),
    "objects": (
        "model_constants_config.json",
        json.dumps({"config": {"c": CONFIG | {"path_name": "opaque_obj_0", "use_pickle": False}}}).encode(),
        r"pickled objects \(c\)",
    ),
    "old weights": ("data/weights/model.pt", pickled(), "holds pickled objects"),
    "a config that is none": ("model_weights_config.json", b"[]", "is not a whole .pt2 file"),
    "a graph that is none": ("models/model.json", b"{", "is not a whole .pt2 file"),
    "no header": ("extra/hfp.json", b"{}", "was not written by hfp"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_unpickled_even_if_trusted(name: str, saved: Path) -> None:
    end, data, message = HOSTILE[name]
    replaced(saved, end, data)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as caught:
        warnings.simplefilter("ignore")
        hfp.load(saved, trusted=True)
    assert str(saved) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["same", "in capitals"])
def test_an_entry_that_is_there_twice_is_refused(name: str, saved: Path) -> None:
    """PyTorch may read another one than was looked at."""
    with zipfile.ZipFile(saved) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in content if name.endswith("model_weights_config.json"))
    hostile = json.dumps({"config": {"w": CONFIG}}).encode()
    with zipfile.ZipFile(saved, "w") as archive:
        for each, data in [(config if name == "same" else config.upper(), hostile)] * 3 + [*content.items()]:
            archive.writestr(each, data)
    with pytest.raises(ValueError, match="model_weights_config.json' is there twice"):
        hfp.load(saved, trusted=True)


def test_damaged_files_are_refused_in_words(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a whole .pt2 file"):
            hfp.load(saved, trusted=True)
    with pytest.raises(ValueError, match="There is no file"):
        hfp.load(tmp_path / "none.pt2", trusted=True)
