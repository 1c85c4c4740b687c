"""What was cut is found again by its places, whatever numbers a table gives to channels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generator import image, network
from promises import random_keep
from specimen import Net, conv
from torch import Tensor, nn
from zoo import ZOO

import hfp
from hfp.cutting.places import are_places, keep_at, places_of


@pytest.mark.parametrize("name", ZOO)
def test_places_tell_channels(name: str) -> None:
    model, generator = ZOO[name].model(), torch.Generator().manual_seed(0)
    table = hfp.trace(model, ZOO[name].inputs())
    for density in (0.0, 0.5, 1.0):
        keep = random_keep(table, density, generator)
        places = places_of(table, keep)
        assert are_places(places) and (density < 1.0 or not places)
        assert torch.equal(keep_at(table, json.loads(json.dumps(places))), keep)


def test_places_tell_channels_of_random_networks() -> None:
    for seed in range(60):
        table = hfp.trace(network(seed)[0], image(seed))
        keep = random_keep(table, 0.5, torch.Generator().manual_seed(seed))
        assert torch.equal(keep_at(table, places_of(table, keep)), keep), seed


def classifier(classes: int, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )  # fmt: skip


X = torch.randn(2, 3, 8, 8)


def test_another_head(tmp_path: Path) -> None:
    """A compact network is taken to another task, with as many classes as that has."""
    small = hfp.wrap(classifier(10), X, target_macs=0.5).compact()
    small[5] = nn.Linear(small[5].in_features, 3)
    hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", classifier(3))
    assert torch.equal(again.eval()(X), small.eval()(X)) and again[0].out_channels == small[0].out_channels < 8
    hfp.save(again, tmp_path / "again.safetensors")
    assert torch.equal(hfp.load(tmp_path / "again.safetensors", classifier(3)).eval()(X), small(X))
    with pytest.raises(ValueError, match=r"5.weight is \(3, 4\) float32, the network has \(10, 4\) float32"):
        hfp.load(tmp_path / "small.safetensors", classifier(10))


def test_a_table_that_knows_more_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a version that left more whole."""

    def net() -> Net:
        torch.manual_seed(0)
        return Net(lambda n, x: n.c(n.b(n.a(x)).softmax(1)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))

    whole = hfp.wrap(net(), X, target_macs=0.7, ignore=["b"])
    small = whole.compact()
    whole.targets["ignore"] = None
    small.hfp_record = whole.compact().hfp_record
    hfp.save(small, tmp_path / "small.safetensors")
    again = hfp.load(tmp_path / "small.safetensors", net())
    assert hfp.trace(net(), X).channels > whole.table.channels
    assert torch.equal(again.eval()(X), small.eval()(X)) and again.b.out_channels == 8 > again.a.out_channels


def test_what_stands_elsewhere() -> None:
    table = hfp.trace(classifier(4), X)

    def told(places: object) -> Tensor:
        assert are_places(places)
        return keep_at(table, places)  # type: ignore[arg-type]

    every = ["0.weight/0", "0.bias/0", *(f"1.{key}/0" for key in ("weight", "bias", "running_mean", "running_var"))]
    every.append("5.weight/1")
    assert told({"10101010": every}).tolist() == 4 * [True, False]
    with pytest.raises(ValueError, match=r"0.weight/0 \(tensor/dim\) was cut from a length of 4, .* a length of 8"):
        told({"1010": every})
    for axis in ("more.weight/0", "0.weight/7", "0.weight/-1", "0.weight", "0.weight/0/0", "0.weight/" + "0" * 99):
        with pytest.raises(ValueError, match="here it has no such axis"):
            told({"10101010": [axis]})
    with pytest.raises(ValueError, match=r"0.bias/0 \(tensor/dim\) cannot be cut as it was"):
        told({"10101010": every[:1]})
    with pytest.raises(ValueError, match="cannot be cut as it was"):
        told({"10101010": every[1:], "11111100": every[:1]})
    with pytest.raises(ValueError, match="told to be cut in two ways"):
        told({"10101010": every, "11111100": every[:1]})
    with pytest.raises(ValueError, match="cannot be cut as it was"):
        told({"1000": ["5.weight/0"], "10101010": every})  # outputs


@pytest.mark.parametrize("wrong", [None, [], {"12": []}, {"10": "0.weight/0"}, {"10": [3]}, {"": [None]}])
def test_no_places(wrong: object) -> None:
    assert not are_places(wrong)
