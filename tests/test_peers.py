"""Torch-Pruning in the accuracy benchmark: it meets the budget by its own means, on train.py's recipe."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hfp
import models
import train
from hfp.cutting import surgery
from hfp.deploy import comparison
from hfp.experiment import data, lab
from hfp.experiment.run import RunFolder

pytest.importorskip("torch_pruning", reason='Torch-Pruning is an extra: pip install -e ".[bench]"')
peers: Any = importlib.import_module("peers")


def resnet() -> nn.Module:
    """With scales that differ, as training leaves them."""
    torch.manual_seed(0)
    model = models.build("resnet20", shortcut="B")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.5)
    return model


# --- the cut


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("target", [0.4, 0.1])
def test_the_cut_meets_the_target_and_not_by_much(name: str, target: float) -> None:
    model = resnet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = torch.zeros(1, 3, 32, 32)
    table = hfp.trace(model, image)
    dense = comparison.count_macs(model, ((image,), {}))
    keep = peers.cut(peers.PEERS[name], model, table, int(target * dense))
    small = surgery.compact(model, table, keep)
    assert target - 0.015 < comparison.count_macs(small, ((image,), {})) / dense <= target
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "STEPS", 20)
    model = resnet()
    with pytest.raises(ValueError, match="MagnitudePruner stops at .* MACs, above 1,000"):
        peers.cut(peers.PEERS["tp-group-norm"], model, hfp.trace(model, torch.zeros(1, 3, 32, 32)), 1000)


def test_another_cut_than_ours_is_found_out() -> None:
    model = resnet()
    table = hfp.trace(model, torch.zeros(1, 3, 32, 32))
    keep = torch.ones(table.channels, dtype=torch.bool)
    keep[table.groups[1].channels[0]] = False
    ours = surgery.compact(model, table, keep)
    peers.check_same(ours, ours)
    with pytest.raises(RuntimeError, match="is not cut alike"):
        peers.check_same(model, ours)


# --- sparse training


@pytest.mark.parametrize("name", [name for name, peer in peers.PEERS.items() if peer.sparse])
def test_sparse_training_pulls_weights_towards_zero(name: str) -> None:
    model = resnet()
    net = peers.Sparse(model, peers.PEERS[name], scale=1.0, update_every=1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net.pull()
    pulled = model.layer1[0].bn1.weight if name == "tp-bn-scale" else model.layer1[0].conv1.weight
    assert (pulled.grad * pulled > 0).all()


def test_growing_strengths_grow_and_are_in_the_state() -> None:
    peer = peers.PEERS["tp-growing-reg"]
    first, second = (peers.Sparse(resnet(), peer, scale=2.0, update_every=1) for _ in range(2))
    for parameter in first.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first.pull()
    assert first.strength0.min() == pytest.approx(1e-3) and first.strength0.max() == pytest.approx(1.2e-3, rel=1e-3)
    second.load_state_dict(first.state_dict())
    for net in (first, second):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        net.pull()
    assert torch.equal(first.strength0, second.strength0)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_short_phase_has_the_dose_of_a_long_one() -> None:
    assert peers.strength_scale(0.01, 60, 10**6) == pytest.approx(peers.DOSE / 0.6)
    assert peers.strength_scale(0.05, 10, 10) == pytest.approx(peers.DOSE / 0.25)  # a whole cosine averages a half


# --- a run

RUN = [
    "--target-macs",
    "0.4",
    "--dense-epochs",
    "1",
    "--prune-epochs",
    "2",
    "--finetune-epochs",
    "2",
    "--distill",
    "0.5",
]


METHODS = ("hfp", "tp-group-norm", "tp-growing-reg")


def finish(method: str, *files: str) -> int:
    main = peers.main if method in peers.PEERS else train.main
    return main([*RUN, "--method", method, *files])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """Method -> folder of a run on the digits, and what it was given to train on, epoch by epoch."""
    runs: dict[str, tuple[Path, list[Any]]] = {}
    batches = data.Split.batches

    def watched(self: data.Split, size: int, **options: Any) -> Any:
        if options.get("augment"):
            runs[method][1].append((size, options["seed"], options["drop_last"]))
        return batches(self, size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Split, "batches", watched)
        for method in METHODS:
            runs[method] = (tmp_path_factory.mktemp("runs") / method, [])
            assert finish(method, "--output", str(runs[method][0])) == 0
    return runs


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_peer_trains_on_the_same_batches_at_the_same_rates(method: str, finished: Any) -> None:
    (_, ours), (folder, theirs) = finished["hfp"], finished[method]
    assert len(ours) == 5 and ours == theirs
    lines = [RunFolder(finished[name][0], {}).lines() for name in ("hfp", method)]
    rates = [[(line["phase"], line["epoch"], line["lr"]) for line in each] for each in lines]
    assert rates[0] == rates[1]
    result = json.loads((folder / "result.json").read_text())
    assert result["config"]["method"] == method
    assert 0.35 < result["finetuned"]["macs_share"] <= 0.4
    assert result["gated"]["accuracy"] == result["compacted"]["accuracy"]


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("epochs", [2, 4])  # the first epoch of pruning is done, or of fine-tuning
def test_stopped_after_so_many_epochs_it_ends_the_same(
    method: str, epochs: int, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [epochs]
    train_epoch = lab.train_epoch

    def stopped(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return train_epoch(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lab, "train_epoch", stopped)
        assert finish(method, "--output", str(tmp_path)) == 130
    assert finish(method, "--resume", str(tmp_path)) == 0
    wanted, found = (load_file(folder / "small.safetensors") for folder in (finished[method][0], tmp_path))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
