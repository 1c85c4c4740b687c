"""What was cut is found again by its places, whatever numbers a table gives to channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generator import image, network
from promises import random_keep
from specimen import Net, conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval
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


def deep(hidden: int = 12) -> nn.Sequential:
    """With a head of two layers."""
    head = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return nn.Sequential(*classifier(10)[:5], head)


def fused(net: nn.Sequential, width: int) -> None:
    net[0], net[1] = fuse_conv_bn_eval(net[0].eval(), net[1].eval()), nn.Identity()


CHANGES: dict[str, Callable[[nn.Sequential, int], object]] = {
    "several layers": lambda net, width: net.__setitem__(5, nn.Sequential(nn.Dropout(), nn.Linear(width, 3))),
    "a norm": lambda net, width: net.__setitem__(5, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))),
    "as many features": lambda net, width: net.__setitem__(
        5, nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 3))
    ),
    "more features": lambda net, width: net.__setitem__(
        5, nn.Sequential(nn.Linear(width, 20), nn.Linear(20, 12), nn.Linear(12, 10))
    ),
    "fused": fused,
    "a learnt activation": lambda net, width: net.__setitem__(2, nn.PReLU(width)),
    "another norm": lambda net, width: net.__setitem__(1, nn.GroupNorm(1, width)),
    "a weight that is computed": lambda net, width: parametrizations.weight_norm(net[0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_parts(name: str, tmp_path: Path) -> None:
    """Places in what was replaced tell nothing any more, and those in what is new follow."""
    small = hfp.wrap(deep(), X, target_macs=0.5, method="uniform").compact()
    CHANGES[name](small, small[0].out_channels)
    like = deep()
    CHANGES[name](like, 8)
    for file in ("small", "again"):
        hfp.save(small, tmp_path / file)
        loaded = hfp.load(tmp_path / file, like)
        assert loaded[0].out_channels == small[0].out_channels < 8
        assert torch.equal(loaded.eval()(X), small.eval()(X))
        small = loaded
    with pytest.raises(ValueError, match="does not fit this Sequential|cannot be cut as it was|was cut from a length"):
        hfp.load(tmp_path / "again", deep())


def test_features_as_they_are(tmp_path: Path) -> None:
    """What comes out of a network has no channels that could be cut."""
    small, like = hfp.wrap(deep(), X, target_macs=0.5, method="uniform").compact(), deep()
    small[5], like[5] = nn.Identity(), nn.Identity()
    hfp.save(small, tmp_path / "small")
    with pytest.raises(ValueError, match="cannot be cut as it was: here they stay whole, as all do that come out of"):
        hfp.load(tmp_path / "small", like)


def test_what_was_not_replaced_has_to_be_as_it_was() -> None:
    table = hfp.trace(classifier(4), X)
    places = places_of(table, torch.arange(8) % 2 == 0)
    shapes = {name: value.shape for name, value in classifier(4, width=4).state_dict().items()}
    whole = {name: value.shape for name, value in classifier(4).state_dict().items()}
    assert keep_at(table, places, shapes).tolist() == 4 * [True, False]
    (bits,) = places
    assert keep_at(table, {bits: ["old.weight/0", *places[bits][:2]]}, shapes).tolist() == 4 * [True, False]
    with pytest.raises(ValueError, match="more.weight/0 .* here it has no such axis"):
        keep_at(table, {bits: ["more.weight/0"]}, shapes | {"more.weight": (4, 4)})
    with pytest.raises(ValueError, match="0.bias/0 .tensor/dim. cannot be cut as it was"):
        keep_at(table, {bits: places[bits][:1]}, shapes | {"0.bias": (8,)})
    assert keep_at(table, places, whole).all()  # every tensor was replaced; the tensors in the file have to fit then


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
