"""Writing files: the whole new one or the whole old one, whatever happens."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hfp import files


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.atomic_write(path, b"old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        files.atomic_write(path, b"new" * 1000)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            files.atomic_write(tmp_path / "a", bytes([number]) * 100_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    files.atomic_write(tmp_path / "folder" / "file", b"")
    assert (tmp_path / "folder" / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_was_read_is_no_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    files.write(path, files.WEIGHTS, {}, {"a": torch.arange(100_000.0)})
    _, tensors = files.read(path, files.WEIGHTS)
    with path.open("r+b") as file:  # not as we write
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["a"], torch.arange(100_000.0))


def test_what_is_conjugated_by_a_mark_is_stored_as_the_numbers_that_it_is() -> None:
    z = torch.randn(3, dtype=torch.cfloat)
    stored, aliases = files._deduplicate({"z": z, "conjugate": z.conj(), "imaginary": z.conj().imag})
    assert not aliases
    assert stored["z"].equal(z) and stored["conjugate"].equal(z.conj()) and stored["imaginary"].equal(-z.imag)
    assert not stored["conjugate"].is_conj() and not stored["imaginary"].is_neg()
