"""Files of torch.save that are small and would fill the memory, or never end, are refused before they are read."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch

from hfp.deploy import foreign, pickled

MANY = b"\x8a\x05" + (10**10).to_bytes(5, "little")  # the number 10,000,000,000 as a pickle has it


def archived(content: bytes, packing: int = zipfile.ZIP_STORED, name: str = "weights/data.pkl") -> bytes:
    """As torch.save packs a pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        archive.writestr(name, content)
        archive.writestr("weights/version", "3")
    return made.getvalue()


def called(module: str, name: str) -> bytes:
    """A pickle that is what this makes of the number."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + MANY + b"\x85R."


def nested(depth: int) -> bytes:
    """A dict with one key: a pair of twice the same pair of twice the same pair ..."""
    return b"\x80\x02}K\x01" + b"2\x86" * depth + b"K\x01s."


HOSTILE = {
    "bytes": (called("builtins", "bytearray"), "it asks for a 'builtins bytearray'"),
    "by an old name": (called("__builtin__", "bytearray"), "it asks for a '__builtin__ bytearray'"),
    "a tensor": (called("torch", "Tensor"), "it asks for a 'torch Tensor'"),
    "by a path": (b"\x80\x04\x8c\x08builtins\x8c\tbytearray\x93" + MANY + b"\x85R.", "it asks for a None"),
    "a key without end": (nested(60), "it nests tuples more than 16 deep"),
    "no pickle": (b"noise", "is damaged, or holds more than tensors"),
    "half a pickle": (b"\x80\x02}K", "is damaged, or holds more than tensors"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_asks_for_too_much_is_refused(name: str, packed: bool, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    (tmp_path / "x.pt").write_bytes(archived(content) if packed else content)
    with pytest.raises(ValueError, match=message):
        foreign.read(tmp_path / "x.pt")


def test_a_pickle_that_is_an_archive_as_well_is_read_as_pytorch_reads_it(tmp_path: Path) -> None:
    """A zip file is known by its end, a pickle by its beginning."""
    (tmp_path / "x.pt").write_bytes(HOSTILE["bytes"][0] + archived(pickle.dumps({}, 2)))
    with pytest.raises(ValueError, match="it asks for a 'builtins bytearray'"):
        foreign.read(tmp_path / "x.pt")


def test_pytorch_does_not_look_at_the_case_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(archived(nested(24), name="weights/data.PKL"))
    with pytest.raises(ValueError, match="it nests tuples more than 16 deep"):
        foreign.read(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_entries_of_a_name_pytorch_may_read_the_other(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for content in (pickle.dumps({}, 2), pickle.dumps({}, 2)):
            archive.writestr("weights/data.pkl", content)
        archive.writestr("weights/version", "3")
    with pytest.raises(ValueError, match="its entry 'weights/data.pkl' is there twice"):
        foreign.read(tmp_path / "x.pt")


@pytest.mark.parametrize("number", range(5))
def test_every_pickle_of_the_old_format_is_looked_at(number: int, tmp_path: Path) -> None:
    """It begins with five: a number, a version, the machine, the content, the names of the storages."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole, ends = (tmp_path / "x.pt").read_bytes(), [0]
    file = io.BytesIO(whole)
    for _ in range(5):
        assert list(pickletools.genops(file))
        ends.append(file.tell())
    (tmp_path / "x.pt").write_bytes(whole[: ends[number]] + nested(20) + whole[ends[number + 1] :])
    with pytest.raises(ValueError, match="it nests tuples more than 16 deep"):
        foreign.read(tmp_path / "x.pt")


def test_keys_of_any_size_are_told_in_short(tmp_path: Path) -> None:
    torch.save({("a",) * 10**6: torch.zeros(2), "b" * 10**6: torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"it holds a tuple, b{40}$"):
        foreign.read(tmp_path / "x.pt")


def test_entries_that_expand_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(archived(bytes(10**7), zipfile.ZIP_DEFLATED))
    assert (tmp_path / "x.pt").stat().st_size < 20_000
    with pytest.raises(ValueError, match="its entry 'weights/data.pkl' is compressed"):
        foreign.read(tmp_path / "x.pt")


def test_a_tensor_that_is_larger_than_its_file_is_not_touched(tmp_path: Path) -> None:
    """A stride of zero: one number in the file, and a million millions in the tensor."""
    torch.save({"weight": torch.zeros(1).expand(10**12), "bias": torch.zeros(2)}, tmp_path / "x.pt")
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"weight is \(1000000000000,\) float32, the network has \(2, 3\)"):
        foreign.fill(model, foreign.read(tmp_path / "x.pt"), source="x.pt")


@pytest.mark.parametrize("new", [True, False])
def test_what_training_scripts_keep_passes(new: bool, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7])
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    more = {"half": torch.zeros(2, dtype=torch.bfloat16), "size": torch.Size([2]), "rng": torch.get_rng_state()}
    torch.save(state | more, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    pickled.check(tmp_path / "x.pt")
    assert foreign.read(tmp_path / "x.pt").keys() == model.state_dict().keys()
