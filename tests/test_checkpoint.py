"""Files: what comes back is what was written, and what is damaged, foreign or newer is refused in words."""

import copy
import json
import os
import pickle
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hfp
from hfp import checkpoint, files, trace
from hfp.cutting import surgery

EXAMPLE = torch.zeros(1, 3, 8, 8)
FILES = Path(__file__).parent / "files"


class Tied(nn.Module):
    """Two layers that share one weight, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def network(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3))


def compacted(model: nn.Module, example: Tensor = EXAMPLE) -> Any:
    """Every second channel of a model, with the record that `hfp.save` wants."""
    table = trace(model, example)
    keep = torch.arange(table.channels) % 2 == 0
    small: Any = surgery.compact(model, table, keep)
    counts = table.macs.dense(), table.params.dense(), table.macs.count(keep), table.params.count(keep)
    small.hfp_record = surgery.Record(keep, table.fingerprint(), table.inputs, *counts, targets={"macs": 0.5})
    return small


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(compacted(network()), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_a_compact_network_comes_back_with_values_record_and_buffers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    small = compacted(network())
    small.train()(torch.randn(4, 3, 8, 8))  # moves the running statistics
    checkpoint.save(small, tmp_path / "small.safetensors")
    loaded: Any = checkpoint.load(tmp_path / "small.safetensors", network())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), small.eval()(x))
    assert loaded[0].out_channels == 4
    record, expected = checkpoint.record_of(loaded), checkpoint.record_of(small)
    assert torch.equal(record.keep, expected.keep)
    assert (record.macs, record.dense_params, record.targets) == (expected.macs, expected.dense_params, {"macs": 0.5})


class OnGraph(nn.Module):
    """Convolves nodes (N, C) along a sparse matrix (N, N), whose entries it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        matrix = matrix.coalesce()
        return torch.sparse.mm(matrix, self.second(torch.sparse.mm(matrix, self.first(x)).relu()))


def test_a_network_that_is_given_a_sparse_matrix(tmp_path: Path) -> None:
    torch.manual_seed(1)
    matrix = torch.rand(5, 5).clamp_min(0.5).sub(0.5).to_sparse()
    net = hfp.wrap(OnGraph(), (torch.randn(5, 6), matrix), target_macs=0.5, verify=True)
    small = net.compact()
    hfp.save(small, tmp_path / "small.safetensors")
    loaded = hfp.load(tmp_path / "small.safetensors", OnGraph())
    x, other = torch.randn(7, 6), torch.eye(7).to_sparse()
    assert loaded.first.out_features < 8 and torch.equal(loaded(x, other), small(x, other))


def test_a_sparse_buffer_is_not_written(tmp_path: Path) -> None:
    small = compacted(network())
    small[1].register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(
        ValueError, match=r"1.graph is a sparse tensor.*register_buffer\('graph', ..., persistent=False"
    ):
        hfp.save(small, tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_was_loaded_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(saved, network()), tmp_path / "again.safetensors")
    first, again = load_file(saved), load_file(tmp_path / "again.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_a_compiled_compact_network_is_saved_under_its_own_names(tmp_path: Path) -> None:
    small = compacted(network())
    compiled: Any = torch.compile(small)
    checkpoint.save(compiled, tmp_path / "small.safetensors")
    assert set(load_file(tmp_path / "small.safetensors")) == set(small.state_dict())
    loaded = checkpoint.load(tmp_path / "small.safetensors", torch.compile(network()))  # type: ignore[arg-type]
    assert same(dict(loaded.state_dict()), dict(small.state_dict()))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    table = trace(model, torch.zeros(1, 6))
    keep = torch.ones(table.channels, dtype=torch.bool)
    small: Any = surgery.compact(model, table, keep)
    small.hfp_record = surgery.Record(keep, table.fingerprint(), table.inputs, 72, 48, 72, 48, {})
    checkpoint.save(small, tmp_path / "tied.safetensors")
    assert set(load_file(tmp_path / "tied.safetensors")) == {"first.weight", "first.bias", "second.bias"}
    loaded: Any = checkpoint.load(tmp_path / "tied.safetensors", Tied())
    x = torch.randn(3, 6)
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded(x), small(x))


def test_loading_changes_nothing_in_the_model_given(saved: Path) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    checkpoint.load(saved, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model, "hfp_record")


def test_only_compact_networks_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Sequential is not a compact network.*hfp\.save\(net\.compact\(\), path\)"):
        checkpoint.save(network(), tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_header_tells_what_the_file_is(tmp_path: Path) -> None:
    torch.manual_seed(7)
    checkpoint.save(compacted(network()), tmp_path / "small.safetensors", recipe={"epochs": 3})
    header = checkpoint.header(tmp_path / "small.safetensors")
    assert header["model"] == {"class": "torch.nn.modules.container.Sequential"}
    assert header["widths"] == {"0": 4, "3": 4} and header["notes"] == {"recipe": {"epochs": 3}}
    assert header["record"]["keep"] == "10101010" and header["record"]["targets"] == {"macs": 0.5}
    assert header["provenance"]["torch"] == torch.__version__ and header["provenance"]["seed"] == 7
    assert set(header["provenance"]) >= {"hfp", "torchvision", "safetensors", "python", "written"}


def test_widths_are_those_of_layers_with_weights() -> None:
    found = checkpoint.widths(torchvision.models.mobilenet_v3_small())
    assert found["features.0.0"] == 16 and found["classifier.3"] == 1000
    assert not any("1.block.0.1" in name for name in found)  # a batch norm


def test_any_reader_of_safetensors_fills_a_compact_network(saved: Path) -> None:
    """The names are the model's own: `load_state_dict` takes them."""
    small = compacted(network())
    small.load_state_dict(load_file(saved))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(small.eval()(x), checkpoint.load(saved, network()).eval()(x))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_of_every_format_keep_loading(version: int) -> None:
    """Written when the format was new, and never again; what they compute was noted down then."""
    small = checkpoint.load(FILES / f"compact-{version}.safetensors", network()).eval()
    expected = torch.tensor([-0.090315, -0.027405, 0.002030, -0.033400])
    torch.testing.assert_close(small(torch.ones(1, 3, 8, 8))[0, :, 0, 0], expected, rtol=0, atol=1e-5)
    state = checkpoint.load_training(FILES / f"training-{version}.safetensors")
    assert state["epoch"] == 3 and state["optimizer"]["param_groups"][0]["momentum"] == 0.9
    assert state["net"].keys() == small.state_dict().keys()
    dense = network()
    checkpoint.load_weights(FILES / f"weights-{version}.safetensors", dense)
    keep = checkpoint.record_of(small).keep
    assert torch.equal(dense[0].weight[keep], small[0].weight)  # type: ignore[index]
    assert checkpoint.weights_notes(FILES / f"weights-{version}.safetensors") == {"statistics": "data"}
    newest = files.FORMAT
    assert (FILES / f"compact-{newest}.safetensors").is_file(), "a new format needs a file of its own here"


# --- files that are not what they should be


def rewritten(
    path: Path, header: dict[str, Any] | str | None = None, tensors: Mapping[str, Tensor | None] = MappingProxyType({})
) -> None:
    """Change the header and some tensors of a file (None: remove it) behind hfp's back; its seal is renewed."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    content: dict[str, Any] = load_file(path) | dict(tensors)
    if isinstance(header, dict):
        metadata["hfp"] = json.dumps(json.loads(metadata["hfp"]) | header)
    elif header is not None:
        metadata["hfp"] = header
    stored = {name: tensor for name, tensor in content.items() if tensor is not None}
    save_file(stored, path, metadata=metadata | {files.SEAL: files.seal(metadata["hfp"], stored)})


def record_of(path: Path, **changes: Any) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return {"record": json.loads(file.metadata()["hfp"])["record"] | changes}


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
    "noise": (lambda path: path.write_bytes(os.urandom(4096)), "is not a whole safetensors file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is not a whole safetensors file"),
    "huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "is not a whole safetensors file"),
    "not ours": (lambda path: save_file({"a": torch.zeros(1)}, path), "was not written by hfp"),
    "header no JSON": (lambda path: rewritten(path, "{"), "header is not JSON"),
    "header too deep": (lambda path: rewritten(path, "[" * 100_000), "header is not JSON"),
    "header a list": (lambda path: rewritten(path, "[]"), "was not written by hfp"),
    "newer": (lambda path: rewritten(path, {"format": 99}), "newer hfp: it has format 99.* reads up to format 3"),
    "format a bool": (lambda path: rewritten(path, {"format": True}), "was not written by hfp"),
    "no record": (lambda path: rewritten(path, {"record": None}), "no record of how its network was cut"),
    "keep no bits": (lambda path: rewritten(path, record_of(path, keep="012")), r"does not make sense \(wrong: keep"),
    "count a string": (lambda path: rewritten(path, record_of(path, macs="9")), r"does not make sense \(wrong: macs"),
    "keep too short": (lambda path: rewritten(path, record_of(path, keep="10")), "does not make sense: keep is"),
    "keep nothing": (
        lambda path: rewritten(path, record_of(path, keep="0" * 8)),
        "does not make sense: keep ",
    ),
    "inputs": (lambda path: rewritten(path, record_of(path, inputs=7)), "does not fit this.*description of example"),
    "aliases": (lambda path: rewritten(path, {"aliases": {"a": "b"}}), "names tensors that it does not hold"),
    "missing": (
        lambda path: rewritten(path, tensors={"0.bias": None}),
        r"does not fit this Sequential: 0\.bias is missing",
    ),
    "extra": (lambda path: rewritten(path, tensors={"more": torch.zeros(1)}), "more is not in the network"),
    "misshapen": (
        lambda path: rewritten(path, tensors={"0.bias": torch.zeros(5)}),
        r"0\.bias is \(5,\) float32, the network has \(4,\) float32",
    ),
    "another dtype": (
        lambda path: rewritten(path, tensors={"0.bias": torch.zeros(4, dtype=torch.float16)}),
        r"0\.bias is \(4,\) float16, the network has \(4,\) float32",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_words(damage: str, saved: Path) -> None:
    spoil, message = DAMAGE[damage]
    spoil(saved)
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load(saved, model)
    assert str(saved) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_cut_short_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in [*range(0, 16), *range(16, len(whole), 97), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file.*cut short"):
            checkpoint.load(saved, network())


def test_a_bit_that_flips_anywhere_is_noticed(saved: Path) -> None:
    """Or it changes nothing: one of the words of the format that we do not read."""
    whole, state = saved.read_bytes(), checkpoint.load(saved, network()).state_dict()
    for place in range(0, 8 * len(whole), 41):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        saved.write_bytes(flipped)
        try:
            loaded = checkpoint.load(saved, network())
        except files.Damaged:
            continue
        assert same(dict(loaded.state_dict()), dict(state)), place


def test_a_seal_cannot_be_left_out(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != files.SEAL}
    save_file(load_file(saved), saved, metadata=metadata)
    with pytest.raises(files.Damaged, match="it has no seal, which files of format 3 have"):
        checkpoint.load(saved, network())


class Counting(nn.Linear):
    """Its state has more in it than tensors."""

    calls = 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


def test_what_is_no_tensor_stays_with_the_model(tmp_path: Path) -> None:
    def net(calls: int) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Counting(8, 4))
        model[2].calls = calls
        return model

    x = torch.randn(2, 6)
    small = hfp.wrap(net(3), x, target_macs=0.5).compact()
    with pytest.warns(UserWarning, match="2._extra_state of this Sequential's state_dict are no tensors"):
        hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", net(5))
    assert again[2].calls == 5 and torch.equal(again(x), small(x))


def test_another_precision_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"is of float32, and this Sequential of float64: load it into"):
        checkpoint.load(saved, network().double())


def test_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="cut from another network than this Sequential.*fingerprint"):
        checkpoint.load(saved, network(width=16))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match="There is no file"):
            checkpoint.load(path, network())


def test_the_kinds_of_files_are_told_apart(saved: Path, tmp_path: Path) -> None:
    checkpoint.save_training(tmp_path / "training", {"epoch": 1})
    checkpoint.save_weights(network(), tmp_path / "weights")
    with pytest.raises(
        ValueError, match=r"training checkpoint, and a compact network is wanted.*python -m hfp\.compact"
    ):
        checkpoint.load(tmp_path / "training", network())
    with pytest.raises(ValueError, match=r"compact network, and a training checkpoint is wanted.*hfp\.load"):
        checkpoint.load_training(saved)
    with pytest.raises(ValueError, match=r"dense weights, and a compact network is wanted.*--weights"):
        checkpoint.load(tmp_path / "weights", network())


# --- training states


def same(a: Any, b: Any) -> bool:
    """Equal in types, structure and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


STATES: dict[str, dict[str, Any]] = {
    "scalars": {"a": 1, "b": 0.1 + 0.2, "c": "text", "d": None, "e": True, "f": float("inf"), "g": 10**30},
    "nesting": {"a": [1, (2, [3.0, ()])], "b": {}, "c": {"d": {"e": []}}},
    "integer keys": {"state": {0: {"step": 1}, 1: {}, -3: None}, "0": "a string key"},
    "same place twice": {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}},
    "dtypes": {
        str(kind): torch.ones(2, dtype=kind) for kind in (torch.bool, torch.int64, torch.bfloat16, torch.float64)
    },
    "forms": {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "strided": torch.arange(12).view(3, 4).t()},
    "views of one buffer": {"whole": (base := torch.arange(6.0)), "part": base[2:4], "again": base},
    "not finite": {"x": torch.tensor([float("inf"), -0.0])},
}


@pytest.mark.parametrize("name", STATES)
def test_a_training_state_comes_back_exactly(name: str, tmp_path: Path) -> None:
    checkpoint.save_training(tmp_path / "state", STATES[name])
    assert same(checkpoint.load_training(tmp_path / "state"), STATES[name])


def test_training_goes_on_as_if_it_had_not_been_saved(tmp_path: Path) -> None:
    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()

    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    step(net, optimizer, 0)
    checkpoint.save_training(tmp_path / "state", {"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    state = checkpoint.load_training(tmp_path / "state")
    other = network()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    other.load_state_dict(state["net"])
    other_optimizer.load_state_dict(state["optimizer"])
    for seed in (1, 2):
        step(net, optimizer, seed)
        step(other, other_optimizer, seed)
    assert same(dict(net.state_dict()), dict(other.state_dict()))


def test_generators_schedulers_and_scalers_come_back(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(network().parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 9), torch.optim.lr_scheduler.StepLR(optimizer, 3)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    state = {
        "schedulers": [{key: x for key, x in each.state_dict().items() if not callable(x)} for each in schedulers],
        "scaler": scaler.state_dict(),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    drawn = random.random(), torch.rand(3)
    checkpoint.save_training(tmp_path / "state", state)
    loaded = checkpoint.load_training(tmp_path / "state")
    assert same(loaded, state)
    random.setstate(loaded["python"]), torch.set_rng_state(loaded["torch"])
    assert random.random() == drawn[0] and torch.equal(torch.rand(3), drawn[1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": {1, 2}}}, "cannot hold the set at a/b"),
        ({"a": [0, object()]}, "cannot hold the object at a/1"),
        ({"a": {1.5: 0}}, "a key at a that is neither a string nor an integer"),
        ({"a": {True: 0}}, "a key at a that is neither a string nor an integer"),
    ],
)
def test_what_cannot_be_written_is_named(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.save_training(tmp_path / "state", state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "state",
    [{"tensor": "none"}, {"tensor": 3}, {"dict": [[1]]}, {"dict": 1}, {"what": 1}, {}, 7, None, {"dict": [[[], 1]]}],
)
def test_a_header_that_makes_no_sense_is_refused(state: Any, tmp_path: Path) -> None:
    checkpoint.save_training(tmp_path / "state", {"x": torch.zeros(1)})
    rewritten(tmp_path / "state", {"state": state})
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load_training(tmp_path / "state")


def test_dense_weights_are_plain_safetensors_with_notes(tmp_path: Path) -> None:
    net = network()
    checkpoint.save_weights(net, tmp_path / "dense", statistics="data")
    assert set(load_file(tmp_path / "dense")) == set(net.state_dict())
    assert checkpoint.weights_notes(tmp_path / "dense") == {"statistics": "data"}
    other = network()
    checkpoint.load_weights(tmp_path / "dense", other)
    assert same(dict(other.state_dict()), dict(net.state_dict()))
    (tmp_path / "foreign").write_bytes(pickle.dumps(0))
    assert checkpoint.weights_notes(tmp_path / "foreign") == {}


def test_notes_that_are_no_json_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    small = compacted(network())
    with pytest.raises(ValueError, match="Object of type Tensor is not JSON serializable.*float"):
        hfp.save(small, tmp_path / "small", accuracy=torch.tensor(0.9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pth", ".ckpt", ".bin", ".torchscript"])
def test_a_name_of_another_format_is_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hfp.save writes .safetensors and .pt2"):
        hfp.save(compacted(network()), tmp_path / f"small{suffix}")
    assert not list(tmp_path.iterdir())
