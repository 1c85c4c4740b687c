"""torchvision's classifiers by name: their published weights, any number of classes, colour or grey images."""

from typing import Any
from urllib.error import URLError

import torchvision
from torch import nn
from torchvision.models import get_model_weights


def names() -> list[str]:
    """Names of torchvision's classifiers, all of which `build` takes."""
    return torchvision.models.list_models(module=torchvision.models)


def weight_names(name: str) -> list[str]:
    """Names of the published weights of one classifier; "DEFAULT" is the best of them."""
    return ["DEFAULT", *(member.name for member in get_model_weights(name))]


def build(
    name: str,
    num_classes: int,
    image_size: int | None = None,
    in_channels: int | None = None,
    weights: str | None = None,
) -> nn.Module:
    """A torchvision classifier with `input_size` = (C, H, W), with its published `weights` or with fresh ones.

    Published weights that are for another number of classes are kept, and every layer that depends on that number
    (the head, and auxiliary heads) starts afresh. For grey images (`in_channels=1`) the filters of the first
    convolution are summed over the colours, which equals showing it the grey image three times.
    """
    if in_channels not in (None, 1, 3):
        raise ValueError(f"torchvision's {name} takes colour (3) or grey (1) images, got in_channels={in_channels}")
    model = construct(name, weights, image_size, None if weights else num_classes)
    if weights:
        replace_heads(model, construct(name, None, image_size, num_classes))
    if in_channels == 1:
        make_grey(model)
    size = image_size or default_image_size(name, weights)
    setattr(model, "input_size", (in_channels or 3, size, size))  # noqa: B010 (mypy knows no such attribute)
    return model


def construct(name: str, weights: str | None, image_size: int | None, num_classes: int | None) -> nn.Module:
    """Call torchvision's own constructor with the options that this network needs."""
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default is a slow initialisation and a warning that it will go
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size  # the length of the position table
    if image_size is not None and name == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    try:
        return torchvision.models.get_model(name, weights=weights, **options)
    except (URLError, TimeoutError) as error:
        raise ValueError(
            f"the weights {weights} of {name} could not be downloaded ({error}); load a file of them that you have "
            "(train.py --weights FILE), or start from fresh ones"
        ) from error
    except (AssertionError, ValueError) as error:  # patches, or windows, that do not fit
        if "image_size" not in options and "input_size" not in options:
            raise
        said = " ".join(str(error).split())
        usual = default_image_size(name, None)
        raise ValueError(
            f"there is no {name} for images of {image_size}x{image_size} pixels ({said}); its usual size is {usual}"
        ) from error


def default_image_size(name: str, weights: str | None) -> int:
    """Side in pixels of the images that the given weights, or else the smallest published variant, are for."""
    published = get_model_weights(name)
    chosen = [published[weights]] if weights else list(published)
    return min(member.transforms().crop_size[0] for member in chosen)


def replace_heads(model: nn.Module, fresh: nn.Module) -> None:
    """Put the layers of `fresh` whose shapes differ, because their classes do, in the place of `model`'s."""
    own = dict(model.named_modules())
    for path, layer in list(fresh.named_modules()):
        old = own.get(path)
        if old is None or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if layer.weight.shape != old.weight.shape:
            model.set_submodule(path, layer)


def make_grey(model: nn.Module) -> None:
    """Let the network take one channel instead of three, with the same result for grey images."""
    path, stem = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    stem.in_channels = 1
    if getattr(model, "transform_input", False):  # googlenet, inception_v3: would index the three colours
        setattr(model, "transform_input", False)  # noqa: B010
