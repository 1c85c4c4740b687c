"""The networks of models/: their sizes, their published weights, and what a wrong call is told."""

from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models.alexnet import AlexNet
from models.pretrained import default_image_size, make_grey, replace_heads
from models.resnet import PaddedShortcut


def macs(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.to("meta").eval()(torch.zeros(1, *model.input_size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name, options, parameters, multiply_adds",
    [
        ("lenet5", {}, 431_080, 2_293_000),
        ("resnet20", {}, 269_722, 40_551_040),
        ("resnet56", {}, 853_018, 125_485_696),
        ("resnet56", {"shortcut": "B"}, 853_018 + 32 * (16 + 2) + 64 * (32 + 2), 125_485_696 + 2 * 16 * 32 * 16 * 16),
        ("resnet110", {}, 1_727_962, 252_887_680),
        ("vgg16_bn", {}, 14_724_042, 313_201_664),
        ("resnet50", {"num_classes": 1000}, 25_557_032, 4_089_184_256),
        ("alexnet", {"image_size": 224, "num_classes": 1000}, 61_100_840, 714_188_480),
    ],
)
def test_published_sizes(name: str, options: dict, parameters: int, multiply_adds: int) -> None:
    model = models.build(name, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model) == multiply_adds


@pytest.mark.parametrize("name", [*models.names(), "squeezenet1_1", "googlenet"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_forward_takes_the_input_size_and_gives_the_classes(name: str, in_channels: int) -> None:
    model = models.build(name, num_classes=7, in_channels=in_channels).eval()
    assert model.input_size[0] == in_channels
    assert model(torch.zeros(2, *model.input_size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "resnet20"])
def test_small_networks_take_28_pixels(name: str) -> None:
    model = models.build(name, image_size=28, in_channels=1).eval()
    assert model.input_size == (1, 28, 28)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_alexnet_at_224_has_the_form_of_torchvision() -> None:
    with torch.device("meta"):
        ours = AlexNet(num_classes=1000, image_size=224).state_dict()
        theirs = models.build("alexnet", num_classes=1000, image_size=224).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name, kind", [("inception_v3", "Inception3"), ("googlenet", "GoogLeNet")])
def test_auxiliary_heads_are_there_in_training(name: str, kind: str) -> None:
    with torch.device("meta"):
        model = models.build(name, num_classes=5)
        assert type(model).__name__ == kind
        outputs = model.train()(torch.zeros(2, *model.input_size))
    assert {tuple(x.shape) for x in outputs} == {(2, 5)}


# ---- option A


def padded_by_numbers(x: Tensor, missing: int) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))


@pytest.mark.parametrize("channels, wider", [(16, 32), (3, 8), (4, 5), (4, 4)])
def test_padded_shortcut_is_option_a(channels: int, wider: int) -> None:
    x = torch.randn(2, channels, 7, 8)
    assert torch.equal(PaddedShortcut(channels, wider)(x), padded_by_numbers(x, wider - channels))


def test_paddings_of_the_shortcut_can_be_cut() -> None:
    shortcut = PaddedShortcut(4, 8)
    shortcut.before = shortcut.before[:, :0]
    shortcut.after = shortcut.after[:, :1]
    x = torch.randn(2, 3, 6, 6)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 1, 3, 3)], 1)
    assert torch.equal(shortcut(x), expected)


def test_shortcut_keeps_the_precision_of_autocast() -> None:
    x = torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PaddedShortcut(4, 8)(x).dtype == torch.bfloat16


def test_paddings_are_in_no_checkpoint_and_follow_the_module() -> None:
    model = models.build("resnet20")
    assert not [name for name in model.state_dict() if "shortcut" in name]
    assert model.double()(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


# ---- weights


def test_replace_heads_keeps_everything_but_the_heads() -> None:
    trained = models.build("inception_v3", num_classes=1000)
    before = dict(trained.named_parameters())
    replace_heads(trained, models.build("inception_v3", num_classes=7))
    changed = {name for name, p in trained.named_parameters() if p is not before[name]}
    assert changed == {"fc.weight", "fc.bias", "AuxLogits.fc.weight", "AuxLogits.fc.bias"}
    assert trained.fc.out_features == 7


def test_make_grey_sees_grey_as_colour_did() -> None:
    model = models.build("squeezenet1_1").eval()
    grey = torch.rand(1, 1, 64, 64)
    expected = model(grey.expand(-1, 3, -1, -1))
    make_grey(model)
    torch.testing.assert_close(model(grey), expected)


@pytest.mark.parametrize(
    "name, weights, size",
    [
        ("resnet50", None, 224),
        ("inception_v3", None, 299),
        ("vit_h_14", None, 224),
        ("vit_h_14", "DEFAULT", 518),
        ("efficientnet_v2_s", "DEFAULT", 384),
    ],
)
def test_default_image_size(name: str, weights: str | None, size: int) -> None:
    assert default_image_size(name, weights) == size


def test_published_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(ValueError, match=r"DEFAULT of resnet18 could not be downloaded .*no route.*--weights FILE"):
        models.build("resnet18", weights="DEFAULT")


def test_published_weights_are_kept_except_in_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.resnet18()  # stands in for the download
    original = torchvision.models.get_model

    def get_model(name: str, weights: str | None = None, **options: object) -> nn.Module:
        return published if weights else original(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    head = published.fc
    model = models.build("resnet18", num_classes=1000, weights="DEFAULT")
    assert model is published and model.fc is head
    model = models.build("resnet18", num_classes=7, weights="DEFAULT")
    assert model is published and model.fc.out_features == 7


# ---- wrong calls


@pytest.mark.parametrize(
    "call, message",
    [
        ({"name": "resnet57"}, "unknown model 'resnet57'; did you mean .*resnet56"),
        ({"name": "qqq"}, "unknown model 'qqq'; ours are alexnet, lenet5, resnet20"),
        ({"name": "resnet20", "shortcut": "C"}, 'shortcut is "A" .* or "B" .*, got \'C\''),
        ({"name": "resnet50", "shortcut": "A"}, "shortcut='A' is an option of the CIFAR ResNets, and resnet50 is none"),
        ({"name": "vgg16_bn", "image_size": 28}, "needs 32x32 or more, got image_size=28"),
        ({"name": "lenet5", "image_size": 12}, "needs images of 16x16 or more, got image_size=12"),
        ({"name": "resnet50", "in_channels": 4}, r"takes colour \(3\) or grey \(1\) images, got in_channels=4"),
        ({"name": "resnet20", "weights": "DEFAULT"}, "resnet20 has no published weights 'DEFAULT': give a file"),
        ({"name": "vgg16_bn", "weights": "DEFAULT"}, "image_size=224 gives torchvision's vgg16_bn, which has"),
        ({"name": "resnet18", "weights": "DEFALT"}, "no published weights 'DEFALT': it has DEFAULT, IMAGENET1K_V1"),
    ],
)
def test_wrong_calls_are_told_what_would_do(call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(**call)


def test_cifar_resnet_depth() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2 .*, got 21"):
        models.CifarResNet(21)


@pytest.mark.parametrize("name, usual", [("vit_b_32", 224), ("maxvit_t", 224)])
def test_a_size_that_patches_do_not_fit(name: str, usual: int) -> None:
    with pytest.raises(
        ValueError, match=f"there is no {name} for images of 41x41 pixels .*; its usual size is {usual}"
    ):
        models.build(name, image_size=41)
