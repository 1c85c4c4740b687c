"""Published networks by name, and a user's own by `module:function`, with random weights and inputs that they run on.

>>> network = build("resnet18", shapes=[(1, 3, 64, 64)])
>>> type(network.model).__name__, [tuple(x.shape) for x in network.inputs]
('ResNet', [(1, 3, 64, 64)])
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from hfp.model.inputs import arguments
from hfp.words import first_line

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network with random weights, ready for `hfp.trace(network.model, network.inputs)`."""

    model: nn.Module
    inputs: Any
    note: str = ""
    """How it was built, where that is not as its name alone says."""


def build(
    name: str, shapes: Sequence[Shape] = (), dtypes: Sequence[torch.dtype] = (), num_classes: int | None = None
) -> Network:
    """The network that a name stands for: torchvision's, else one of the checkout's `models`, else timm's.

    Arguments:
        name: as torchvision, `models` or timm list it, or `module:function`, which is imported and called without
            arguments. `timm.models:resnet18` is timm's, where torchvision has the name as well.
        shapes: of the inputs, in their order; what the kind of network usually takes if left out.
        dtypes: of the inputs, float32 where there are no more.
        num_classes: that the network tells apart; its usual number if left out.

    Raises:
        ValueError: an unknown name (with the nearest), a function that gives no network, an unknown input size, sizes
            or classes that the network is not built for.
    """
    given = [_noise(shape, dtype) for shape, dtype in _paired(shapes, dtypes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constructors, about their own defaults
        if ":" in name:
            if num_classes is not None:
                raise ValueError(f"{name} decides on its classes itself; give a function that makes {num_classes}")
            return _with_inputs(name, _constructed(name), given)
        options = {} if num_classes is None else {"num_classes": num_classes}
        if name in torchvision.models.list_models():
            return _of_torchvision(name, shapes, given, options)
        own = _own_models()
        if name in own:
            return _with_inputs(name, own[name](**options), given)
        timm = _timm()
        if timm is not None and timm.is_model(name):
            return _with_inputs(name, timm.create_model(name, pretrained=False, **options), given)
    raise ValueError(_unknown(name, own, timm))


def _paired(shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> list[tuple[Shape, torch.dtype]]:
    more = [torch.float32] * (len(shapes) - len(dtypes))
    return list(zip(shapes, [*dtypes, *more], strict=True))


def _noise(shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    """What pixels might be; of integers zeros, which are an index into any table."""
    return torch.rand(shape, dtype=dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)


def _with_inputs(name: str, model: nn.Module, given: Sequence[Tensor]) -> Network:
    """With the inputs that are given, or those that the model itself tells."""
    if given:
        return Network(model, tuple(given))
    try:
        (example,), _ = arguments(model)
    except ValueError:
        raise ValueError(
            f"{name} does not tell what it takes; give the shape of each input: --input-shape 1,3,224,224"
        ) from None
    return Network(model, (_noise(tuple(example.shape), example.dtype),))


# ---------------------------------------------------------------------------------------------------------------------
# torchvision

DEFAULT_SHAPES: dict[str, list[Shape]] = {
    "segmentation": [(1, 3, 520, 520)],
    "detection": [(1, 3, 160, 160)],
    "optical_flow": [(1, 3, 256, 256)] * 2,
}
"""Of the networks in these modules; others take what their published weights were made for."""
FRAMES = 16

PROPOSALS = {
    "rpn_post_nms_top_n_test": 20,
    "box_detections_per_img": 10,
    "box_score_thresh": -1.0,
    "rpn_nms_thresh": 1.0,
    "box_nms_thresh": 1.0,
    "bbox_reg_weights": (1000.0, 1000.0, 500.0, 500.0),
}
BEST = {"score_thresh": -1.0, "detections_per_img": 10}
DETECTORS: dict[str, dict[str, Any]] = {"*rcnn_*": PROPOSALS, "*": BEST}
"""With random weights no box scores high, and what comes after the boxes would not run: with these a fixed number does,
each near where it was proposed."""


def _of_torchvision(name: str, shapes: Sequence[Shape], given: Sequence[Tensor], options: dict[str, Any]) -> Network:
    builder = torchvision.models.get_model_builder(name)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    usual = [] if shapes else DEFAULT_SHAPES.get(kind) or [_published(name, kind)]
    shape = [*shapes, *usual][0]
    if len(shape) < 3:
        raise ValueError(f"{name} takes images, (1, 3, 224, 224) for one; got {shape}")
    options = dict(options)
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default is a slow initialisation and a warning that it will go
    if name.startswith("vit_"):
        options["image_size"] = shape[-1]  # the length of the position table
    if name == "maxvit_t":
        options["input_size"] = shape[-2:]
    inputs = tuple(given) or tuple(map(_noise, usual))
    if kind != "detection":
        return Network(_built(name, options), inputs)
    boxes = next(settings for pattern, settings in DETECTORS.items() if fnmatchcase(name, pattern))
    sized = {} if name.startswith("ssd") else {"min_size": min(shape[-2:]), "max_size": max(shape[-2:])}
    model = _built(name, options | boxes | sized)
    settings = ", ".join(f"{key}={value}" for key, value in (boxes | sized).items())
    pictures = [picture for batch in inputs for picture in (batch if batch.dim() == 4 else [batch])]
    return Network(model, (pictures,), f"built with {settings}: costs are for as many boxes")


def _built(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights=None, **options)
    except (ArithmeticError, AssertionError, TypeError) as error:  # patches that do not fit, an option that it has not
        raise ValueError(f"there is no {name} with {options} ({first_line(error)})") from error


def _published(name: str, kind: str) -> Shape:
    """One image, or one clip, of the smallest size that published weights are for."""
    sizes = [member.transforms().crop_size for member in torchvision.models.get_model_weights(name)]
    size = min(tuple(size) * (3 - len(size)) for size in sizes)  # (224,) is square
    return (1, 3, FRAMES, *size) if kind == "video" else (1, 3, *size)


# ---------------------------------------------------------------------------------------------------------------------
# Others


def _own_models() -> Mapping[str, Callable[..., nn.Module]]:
    """Those of the package `models` of this project's checkout, when that is where we are."""
    try:
        models = importlib.import_module("models")
        return {name: partial(models.build, name) for name in models.names()}
    except Exception:  # there is none, or it is somebody else's
        return {}


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        return None


def _unknown(name: str, own: Mapping[str, Any], timm: Any) -> str:
    known = {*torchvision.models.list_models(), *own, *(timm.list_models() if timm else ())}
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models()"
    words = f"unknown model {name!r}; {hint}"
    if timm is None:
        words += " timm, which has many more, is not installed (pip install timm)."
    return f"{words} A network of your own is given as module:function."


def _constructed(name: str) -> nn.Module:
    """What the user's own function gives; a network that is there already is taken as it is."""
    path, _, function = name.partition(":")
    if path.startswith(".") or path.endswith(".py") or "/" in path:
        raise ValueError(
            f"{name} is the path of a file; expected module:function, such as package.nets:build, the module by its "
            "name, with dots, as it is imported from here"
        )
    try:
        module = importlib.import_module(path)
    except Exception as error:  # it runs the user's code
        raise ValueError(
            f"{name}: the module {path!r} cannot be imported ({first_line(error)}); run this where it can be"
        ) from error
    made = getattr(module, function, None)
    if made is None:
        close = difflib.get_close_matches(function, [each for each in vars(module) if each[0] != "_"], n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "expected module:function"
        raise ValueError(f"{name}: {path} has no {function!r}; {hint}")
    if callable(made) and not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:
            raise ValueError(
                f"{name}: {function}() fails ({first_line(error)}); give a function that needs no arguments"
            ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} is a {type(made).__name__}; expected a function that returns an nn.Module")
    return made
