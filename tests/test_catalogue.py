"""Networks by name: every list that is known, with inputs that they run on; wrong names are told the right ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from hfp import catalogue


def shapes(network: catalogue.Network) -> list[tuple[int, ...]]:
    (first, *_) = network.inputs
    return [tuple(x.shape) for x in (first if isinstance(first, list) else network.inputs)]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("squeezenet1_1", [], [(1, 3, 224, 224)]),
        ("mnasnet0_5", [(2, 3, 64, 64)], [(2, 3, 64, 64)]),
        ("lraspp_mobilenet_v3_large", [], [(1, 3, 520, 520)]),
        ("r3d_18", [], [(1, 3, 16, 112, 112)]),
        ("r3d_18", [(1, 3, 2, 32, 32)], [(1, 3, 2, 32, 32)]),
        ("raft_small", [], [(1, 3, 256, 256)] * 2),
        ("ssdlite320_mobilenet_v3_large", [], [(3, 160, 160)]),
        ("fasterrcnn_mobilenet_v3_large_fpn", [(2, 3, 64, 96)], [(3, 64, 96)] * 2),
        ("fasterrcnn_mobilenet_v3_large_fpn", [(3, 64, 96)], [(3, 64, 96)]),
        ("quantized_shufflenet_v2_x0_5", [], [(1, 3, 224, 224)]),
        ("vit_b_32", [(1, 3, 64, 64)], [(1, 3, 64, 64)]),
        ("lenet5", [], [(1, 1, 28, 28)]),
        ("resnet20", [], [(1, 3, 32, 32)]),
    ],
)
def test_every_kind_of_network_gets_inputs_that_suit_it(
    name: str, given: list[tuple[int, ...]], expected: list[tuple[int, ...]]
) -> None:
    """All run on them, of detectors it is not asked: they look at values."""
    with torch.device("meta"):
        network = catalogue.build(name, given)
        assert shapes(network) == expected
        detector = "rcnn" in name or "ssd" in name
        assert detector or network.model.eval()(*network.inputs) is not None
    assert bool(network.note) == detector


def test_the_size_of_every_classifier_and_video_network_is_known() -> None:
    """That of its published weights: the smallest, where there are several."""
    for name in torchvision.models.list_models():
        kind = torchvision.models.get_model_builder(name).__module__.split(".")[2]
        if kind not in catalogue.DEFAULT_SHAPES:
            batch, colours, *size = catalogue._published(name, kind)
            assert (batch, colours) == (1, 3) and len(size) == (3 if kind == "video" else 2) and min(size[-2:]) >= 112
    assert catalogue._published("inception_v3", "inception") == (1, 3, 299, 299)
    assert catalogue._published("vit_h_14", "vision_transformer") == (1, 3, 224, 224)


def test_networks_of_timm() -> None:
    pytest.importorskip("timm")
    network = catalogue.build("resnet10t")  # torchvision has none of that name
    assert shapes(network) == [(1, 3, *network.model.default_cfg["input_size"][1:])]  # type: ignore[union-attr,index]
    assert type(catalogue.build("timm.models:test_resnet").model).__module__.startswith("timm.")


def test_names_that_both_have_mean_torchvision() -> None:
    assert type(catalogue.build("resnet18", [(1, 3, 32, 32)]).model) is torchvision.models.ResNet


def test_functions_of_ones_own() -> None:
    network = catalogue.build("nets_of_mine:build", [(2, 5)], [torch.int64])
    (tokens,) = network.inputs
    assert tokens.dtype == torch.int64 and network.model(tokens).shape == (2, 5, 4)
    assert shapes(catalogue.build("nets_of_mine:sized")) == [(1, 3, 8, 8)]
    assert isinstance(catalogue.build("nets_of_mine:net", [(1, 2)]).model, nn.Linear)
    two: tuple[Tensor, ...] = catalogue.build("nets_of_mine:build", [(1, 2), (3,)], [torch.bool]).inputs
    assert [x.dtype for x in two] == [torch.bool, torch.float32]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet55", "unknown model 'resnet55'; did you mean .*resnet5"),
        ("mobilenet", "did you mean .*mobilenet"),
        ("", "unknown model ''; see torchvision.models.list_models"),
        ("nowhere:build", "nowhere:build: the module 'nowhere' cannot be imported .ModuleNotFoundError: No module"),
        (":build", "the module '' cannot be imported"),
        (
            "../nets.py:net",
            r"../nets.py:net is the path of a file; expected module:function, such as package.nets:buil",
        ),
        ("nets_of_mine.py:build", "is the path of a file"),
        ("nets_of_mine:bild", "nets_of_mine has no 'bild'; did you mean build"),
        ("nets_of_mine:", "nets_of_mine has no ''; expected module:function"),
        ("nets_of_mine:needy", r"needy\(\) fails .TypeError: .*'width'.; give a function that needs no arguments"),
        ("nets_of_mine:string", "nets_of_mine:string is a str; expected a function that returns an nn.Module"),
        ("nets_of_mine:text", "nets_of_mine:text is a str; expected a function"),
        ("nets_of_mine:build", "nets_of_mine:build does not tell what it takes; .*--input-shape 1,3,224,224"),
    ],
)
def test_wrong_names_are_told_the_right_ones(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        catalogue.build(name)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "lenet5", "fcn_resnet50", "timm.resnet10t"])
def test_another_number_of_classes(name: str) -> None:
    if name.startswith("timm."):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = catalogue.build(name.removeprefix("timm."), num_classes=7).model.eval()
        sizes = [len(parameter) for parameter in model.parameters()]
    assert sizes[-1] == 7


def test_what_a_network_is_not_built_for() -> None:
    with pytest.raises(ValueError, match="there is no vit_b_16 with .'image_size': 65. .AssertionError: Input shape"):
        catalogue.build("vit_b_16", [(1, 3, 65, 65)])
    with pytest.raises(ValueError, match="there is no raft_small with .'num_classes': 7. .TypeError"):
        catalogue.build("raft_small", num_classes=7)
    with pytest.raises(ValueError, match="nets_of_mine:sized decides on its classes itself; give a function that mak"):
        catalogue.build("nets_of_mine:sized", num_classes=7)


def test_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_that_fail.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'nets_that_fail' cannot be imported .ZeroDivisionError"):
        catalogue.build("nets_that_fail:build")


def test_without_timm_it_is_said_that_timm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="unknown model 'resnet10t'.*timm, which has many more, is not installed"):
        catalogue.build("resnet10t")
    assert shapes(catalogue.build("mnasnet0_5", [(1, 3, 32, 32)])) == [(1, 3, 32, 32)]


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large", "squeezenet1_1"])
def test_nothing_is_downloaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the weights of a backbone, which are published ones by default."""
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("a download"))
    catalogue.build(name)
    if name.startswith("lraspp"):
        with pytest.raises(pytest.fail.Exception, match="a download"):
            torchvision.models.get_model(name, weights=None)
