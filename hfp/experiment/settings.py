"""The settings of train.py: every flag with its default, and what the command line asks for, checked."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import torch

from hfp import checkpoint
from hfp.experiment import data
from hfp.experiment.options import amount, flag, fraction, nonnegative, option, parser_for, weight, whole
from hfp.experiment.run import RunFolder
from hfp.methods import METHODS

USUAL_MODEL = {"digits": "lenet5", "mnist": "lenet5", "fashionmnist": "lenet5", "imagefolder": "resnet18"}
PUBLISHED = "DEFAULT"  # torchvision's own weights
DESCRIPTION = "Prune a network while it trains: one number in, a smaller dense network out."
EPILOG = """
examples:
  python train.py --target-macs 0.4
      handwritten digits, LeNet-5, under two minutes: 40 % of the multiply-adds stay
  python train.py --target-macs 0.4 --dataset cifar10 --model resnet56 --dense-epochs 160
      trains ResNet-56 first, then prunes it
  python train.py --target-macs 0.4 --dataset cifar10 --model resnet56 --weights runs/a/dense.safetensors
      starts from a baseline that is already there
  python train.py --target-params 500k --dataset imagefolder --data-dir ~/photos --model resnet50 --weights DEFAULT
      a folder of class folders, torchvision's own weights, an absolute target
  python train.py --resume runs/a
      goes on with a run that was stopped, to the very same result
"""


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag, `--target-macs` for `target_macs`."""

    target_macs: float | int | None = option(
        None,
        "multiply-adds that may stay: a share of the dense network (0.4), or a count (50M)",
        "what to reach",
        type=amount,
        metavar="SHARE|COUNT",
    )
    target_params: float | int | None = option(
        None,
        "parameters that may stay, likewise; both targets may be given",
        "what to reach",
        type=amount,
        metavar="SHARE|COUNT",
    )
    accuracy_floor: float | None = option(
        None,
        "stop pruning at the thinnest network that has this accuracy on the validation images, as a share (0.92); "
        "the targets may then be left out",
        "what to reach",
        type=fraction,
        metavar="SHARE",
    )
    round_to: int = option(
        1, "make every width a multiple of this; the targets still hold", "what to reach", type=whole(1)
    )
    ignore: list[str] = option(
        [],
        "modules to keep whole, by name or pattern ('layer1.*' fc)",
        "what to reach",
        nargs="*",
        action="extend",
        metavar="PATTERN",
    )
    counter: str = option(
        "macs", "whose multiply-adds: PyTorch's FlopCounterMode, or the ones ptflops prints", "what to reach",
        choices=("macs", "ptflops"),
    )  # fmt: skip
    method: str = option("hfp", "the pruning method", "what to reach", choices=METHODS)

    dataset: str = option("digits", "what to train on", "network and data", choices=data.NAMES)
    data_dir: str = option("data", "where the data set is, or is downloaded to", "network and data", metavar="DIR")
    image_size: int | None = option(None, "resize images to this many pixels a side", "network and data", type=whole(1))
    statistics: str = option(
        "auto",
        "normalise by the statistics of the training data, or of ImageNet; auto: as the weights were trained",
        "network and data",
        choices=("auto", "data", "imagenet"),
    )
    model: str | None = option(
        None,
        "lenet5, alexnet, vgg16_bn, resnet20 ... resnet110, or any torchvision classifier (default: by data set)",
        "network and data",
        metavar="NAME",
    )
    shortcut: str | None = option(
        None, "shortcuts of the CIFAR ResNets (default: A)", "network and data", choices=("A", "B")
    )
    weights: str | None = option(
        None,
        "start from these weights: a file, or DEFAULT for torchvision's own; the head starts afresh where they are for "
        "another number of classes",
        "network and data",
        metavar="FILE|DEFAULT",
    )

    dense_epochs: int | None = option(
        None, "train the dense baseline for so many epochs (default: 20, or 0 with --weights)", "recipe", type=whole(0)
    )
    prune_epochs: int = option(10, "then prune while training", "recipe", type=whole(1))
    finetune_epochs: int = option(20, "then train the compact network on", "recipe", type=whole(0))
    batch_size: int = option(64, "images a step", "recipe", type=whole(2))
    lr: float = option(
        0.05,
        "learning rate where each of the two cosines starts: dense training, pruning with fine-tuning",
        "recipe",
        type=nonnegative,
    )
    weight_decay: float = option(5e-4, "of the network's parameters; gates have none", "recipe", type=nonnegative)
    label_smoothing: float = option(0.0, "of the cross-entropy", "recipe", type=fraction)
    augment: bool = option(
        True, "random crops and flips, where they suit the data", "recipe", action=argparse.BooleanOptionalAction
    )
    distill: float = option(
        0.0, "weight of the dense baseline as a teacher, from 0 (no teacher) up to 1", "recipe", type=weight
    )
    control: bool = option(
        False,
        "also train the unpruned network on for as many epochs, for a fair comparison",
        "recipe",
        action="store_true",
    )
    seed: int = option(
        0, "of initial weights and the order of images; same seed, same machine: same result", "recipe", type=whole(0)
    )

    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", "machine", metavar="NAME")
    amp: bool = option(False, "forward passes in bfloat16", "machine", action="store_true")
    channels_last: bool = option(
        False, "images and filters in the channels-last layout", "machine", action="store_true"
    )


DEFAULTS = {setting.name: setting.default_factory() for setting in dataclasses.fields(Config)}  # type: ignore[operator]
LATER = {"accuracy_floor"}  # settings that the first runs did not know; they were at their defaults
MAY_CHANGE = ("data_dir", "device")  # on --resume: where things are, not what is computed


def parse(argv: list[str] | None) -> tuple[dict[str, Any], str | None, str | None]:
    """The settings given on the command line (and only these), the output folder, the run to resume."""
    parser = parser_for(Config, description=DESCRIPTION, epilog=EPILOG)
    files = parser.add_argument_group("files")
    files.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/DATASET-MODEL-TIME)")
    files.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    given = vars(parser.parse_args(argv))
    return given, given.pop("output", None), given.pop("resume", None)


def complete(given: dict[str, Any]) -> Config:
    """Settings with every default filled in.

    Raises:
        ValueError: no target, or settings that do not go together.
    """
    config = Config(**given)
    if (config.target_macs, config.target_params, config.accuracy_floor) == (None, None, None):
        raise ValueError(
            "Give a target: --target-macs 0.4 keeps 40 % of the multiply-adds, --target-params likewise; "
            "--accuracy-floor 0.92 prunes as far as that accuracy is held."
        )
    if config.accuracy_floor is not None and not METHODS[config.method].gradual:
        gradual = ", ".join(name for name, method in METHODS.items() if method.gradual)
        raise ValueError(
            f"--accuracy-floor stops a method that prunes little by little ({gradual}); {config.method} cuts once."
        )
    if config.weights not in (None, PUBLISHED) and not Path(str(config.weights)).is_file():
        raise ValueError(
            f"--weights {config.weights}: there is no such file (and DEFAULT means torchvision's own weights)."
        )
    if config.dense_epochs == 0 and config.weights is None:
        raise ValueError(
            "--dense-epochs 0 without --weights would prune an untrained network; leave one out, or give weights."
        )
    check_device(config.device)
    filled: dict[str, Any] = {}
    if config.model is None:
        filled["model"] = USUAL_MODEL.get(config.dataset, "resnet20")
    if config.dense_epochs is None:
        filled["dense_epochs"] = 20 if config.weights is None else 0
    if config.device == "auto":
        filled["device"] = usual_device()
    if config.statistics == "auto":
        filled["statistics"] = statistics_of(config.weights)
    return dataclasses.replace(config, **filled)


def usual_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """
    Raises:
        ValueError: there is no such device here.
    """
    try:
        if device != "auto":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # PyTorch goes on to name all that there is
        raise ValueError(f"--device {device} cannot be used here: {reason}") from error


def statistics_of(weights: str | None) -> str:
    """What images must be normalised by for these weights: baselines of ours say so, published ones want ImageNet's."""
    if weights is None:
        return "data"
    notes = {} if weights == PUBLISHED else checkpoint.weights_notes(weights)
    return str(notes.get("statistics", "imagenet"))


def open_run(argv: list[str] | None) -> RunFolder:
    """The run that the command line asks for: a new one, or one to go on with.

    Raises:
        ValueError: settings that make no sense, a folder that is taken, or another target, model ... than resumed.
    """
    given, output, resume = parse(argv)
    if resume is None:
        config = complete(given)
        folder = output or f"runs/{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
        return RunFolder.create(folder, dataclasses.asdict(config))
    run = RunFolder.resume(resume)
    for name in LATER & (DEFAULTS.keys() - run.config.keys()):
        run.config[name] = DEFAULTS[name]
    for name, value in given.items():
        if name in MAY_CHANGE:
            run.config[name] = usual_device() if value == "auto" else value
        elif value == "auto":
            continue
        elif run.config.get(name) != value:
            raise ValueError(
                f"The run in {run.path} was started with {flag(name)} {run.config.get(name)}, and {flag(name)} {value} "
                f"is given now. Leave {flag(name)} out to go on with it, or start a new run with another --output."
            )
    if output is not None and Path(output).resolve() != run.path.resolve():
        raise ValueError(
            f"--output {output} is another folder than --resume {run.path}; a resumed run stays where it is."
        )
    unknown = run.config.keys() ^ DEFAULTS.keys()
    if unknown:
        raise ValueError(
            f"{run.path / 'config.json'} was written by another version of train.py "
            f"(settings: {', '.join(sorted(unknown))})."
        )
    check_kinds(run.config, source=str(run.settings))
    check_same_run(run)
    check_device(run.config["device"])
    return run


def check_kinds(config: Mapping[str, Any], *, source: str) -> None:
    """
    Raises:
        ValueError: a setting is of a kind that no flag gives.
    """
    for name, hint in get_type_hints(Config).items():
        value, kinds = config[name], get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if isinstance(value, list):
            fits = list[str] in kinds and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) in kinds or (type(value) is int and float in kinds)
        if not fits:
            raise ValueError(f"{source} has {name}={value!r:.80}, which is of the wrong kind.")


def check_same_run(run: RunFolder) -> None:
    """
    Raises:
        ValueError: the checkpoint in the folder was made with other settings than config.json there says.
    """
    theirs = run.config if run.state is None else run.state.get("config")
    if not isinstance(theirs, dict):
        raise ValueError(f"{run.checkpoint} is not the checkpoint of a run: it does not tell its settings.")
    for name, value in run.config.items():
        if name not in MAY_CHANGE and theirs.get(name) != value:
            raise ValueError(
                f"{run.checkpoint} belongs to another run: it was made with {flag(name)} {theirs.get(name)}, "
                f"and {run.settings} beside it says {flag(name)} {value}."
            )
