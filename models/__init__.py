"""The networks of the papers, and torchvision's classifiers, by name. Plain PyTorch: nothing here knows of pruning.

>>> import models
>>> models.names()[:3]
['alexnet', 'lenet5', 'resnet20']
>>> model = models.build("resnet56", num_classes=10)
>>> model.input_size
(3, 32, 32)
"""

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from models import pretrained
from models.alexnet import AlexNet
from models.lenet import LeNet5
from models.resnet import DEPTHS, CifarResNet
from models.vgg import VGG16BN

__all__ = ["AlexNet", "CifarResNet", "LeNet5", "VGG16BN", "build", "names"]

OWN: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "lenet5": LeNet5,
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in DEPTHS},
    "vgg16_bn": VGG16BN,
}
LARGE = 64  # pixels; from here on a name that torchvision has as well means torchvision's network


def names() -> list[str]:
    """Names of this package's own networks; `build` takes those of torchvision's classifiers as well."""
    return list(OWN)


def build(
    name: str,
    *,
    num_classes: int = 10,
    image_size: int | None = None,
    in_channels: int | None = None,
    shortcut: str | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Build a network by name; its attribute `input_size` is (C, H, W).

    >>> build("lenet5").input_size
    (1, 28, 28)
    >>> build("resnet20", num_classes=100, shortcut="B").linear.out_features
    100
    >>> build("mobilenet_v2").input_size
    (3, 224, 224)

    Arguments:
        name: one of `names()`, or a torchvision classifier. "alexnet" and "vgg16_bn" are both: they mean the small
            network of the papers up to 63 pixels (the default), and torchvision's from 64 on.
        image_size: side of the square images, in pixels; the network's usual size if left out.
        in_channels: 1 for grey, 3 for colour images; the network's usual number if left out.
        shortcut: "A" or "B", for the CIFAR ResNets only.
        weights: for torchvision's networks, the name of published weights such as "DEFAULT". Weights for another
            number of classes are kept except in the head, which starts afresh.

    Raises ValueError, naming what was given and what would do, for each of these that does not fit.
    """
    if name not in OWN and name not in pretrained.names():
        close = difflib.get_close_matches(name, {*OWN, *pretrained.names()}, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"ours are {', '.join(OWN)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    if shortcut is not None and not is_own_resnet(name):
        raise ValueError(f"shortcut={shortcut!r} is an option of the CIFAR ResNets, and {name} is none")

    small = name in OWN and not (name in pretrained.names() and (image_size or 0) >= LARGE)
    published = [] if small else pretrained.weight_names(name)
    if weights is not None and weights not in published:
        raise ValueError(f"{name} has no published weights {weights!r}: {other_weights(name, published)}")
    if not small:
        return pretrained.build(name, num_classes, image_size, in_channels, weights)
    given = {"image_size": image_size, "in_channels": in_channels, "shortcut": shortcut}
    return OWN[name](num_classes=num_classes, **{key: value for key, value in given.items() if value is not None})


def is_own_resnet(name: str) -> bool:
    """Whether the name is one of the CIFAR ResNets (torchvision's are resnet18, 34, 50, 101 and 152)."""
    return isinstance(OWN.get(name), partial)


def other_weights(name: str, published: list[str]) -> str:
    """What there is instead of weights that there are none of, for an error message."""
    if published:
        return f"it has {', '.join(published)}"
    return f"image_size=224 gives torchvision's {name}, which has" if name in pretrained.names() else "give a file"
