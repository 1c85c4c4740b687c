"""Where a compact network comes from: a training checkpoint, a compact file, or anybody's dense weights.

    outcome = compact("resnet56-cifar10.th", Wanted(model="resnet56", target_macs=0.4))

What a file says is data: of the networks that it names only those are built that `models`, torchvision or timm list
themselves, with values of the right kind, and nothing that a file names is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._pytree import tree_leaves

from hfp import catalogue, checkpoint, files, methods
from hfp.budget import Target
from hfp.cutting import surgery
from hfp.deploy import foreign
from hfp.deploy.recut import recut
from hfp.experiment.run import PHASES
from hfp.gated import GatedModel
from hfp.methods.method import at_once
from hfp.model import inputs, outputs
from hfp.model.inputs import Arguments
from hfp.proof.verify import Unsuited, suited
from hfp.wrap import wrap

BUILD = {
    "name": (str,),
    "num_classes": (int,),
    "image_size": (int, None),
    "in_channels": (int, None),
    "shortcut": (str, None),
}
WRAP = {
    "target_macs": (float, int, None),
    "target_params": (float, int, None),
    "ignore": (list,),
    "round_to": (int,),
    "counter": (str,),
    "method": (str,),
    "steps": (int,),
}
LARGEST = 10**5  # of any integer in BUILD,
WIDEST = 2**12  # pixels a side of its images, and
MOST = 2**30  # parameters of a network that a file asks for: it must not make us allocate without bound

WHERE = {
    "dense": "pruning has not begun, the gates have learnt nothing: channels are removed by untrained scores",
    "prune": "pruning: the gates as they are now, cut to the target (with an accuracy floor: where they stand)",
    "finetune": "compacted, fine-tuning",
    "control": "compacted and fine-tuned, training the control",
}
RESULTS = ("small.safetensors", "checkpoint.safetensors")
"""What to take of the folder of a run."""
ONE_SHOT = tuple(name for name, method in methods.METHODS.items() if method.schedule is at_once)
"""Methods that need no training."""
USUAL = "magnitude"
"""What is left without training is right on the most images, see docs/tried.md; pag may leave a layer one channel."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the file; what is left out is as the file has it."""

    model: str | None = None
    """A name of `hfp.catalogue`, or module:function."""
    num_classes: int | None = None
    """Of the network that is named; as many as the file says, or else as it usually has, if left out."""
    shapes: Sequence[tuple[catalogue.Shape, torch.dtype]] = ()
    """Of the example inputs; those that the network usually takes if left out."""
    target_macs: Target | None = None
    target_params: Target | None = None
    round_to: int | None = None
    method: str | None = None
    ignore: tuple[str, ...] = ()
    use_ema: bool = False
    seed: int = 0

    @property
    def cuts(self) -> bool:
        """Whether a compact network has to be cut further."""
        return any(value is not None for value in (self.target_macs, self.target_params, self.round_to))


@dataclass(frozen=True)
class Outcome:
    """A compact network, and what it is compared with."""

    said: str
    """What the file is."""
    dense: nn.Module
    gated: GatedModel | None
    """The gated network with the same channels live; None once the run has left it behind."""
    small: nn.Module
    notes: dict[str, Any] = field(default_factory=dict)
    """For the header of the new file: how the dense network is built."""

    @property
    def inputs(self) -> Arguments:
        """Zeros that the networks run on, or the values that are told."""
        return inputs.example_for(checkpoint.record_of(self.small).inputs, self.small)

    def apart(self, a: Callable[..., Any], b: Callable[..., Any], chance: bool = True) -> float:
        """`outputs.difference` of two forms of the network, on inputs that suit it."""
        as_given = inputs.tells_values(checkpoint.record_of(self.small).inputs)
        try:
            error = outputs.difference(suited(a), b, self.inputs, as_given, chance)
        except Unsuited:
            error = math.nan
        return outputs.difference(a, b, self.inputs, True, chance) if math.isnan(error) else error


def compact(path: str | Path, wanted: Wanted = Wanted()) -> Outcome:  # noqa: B008  # frozen
    """The compact network that the file `path` amounts to.

    Raises:
        ValueError: the file is damaged, or not one that a network can be made of; or what is wanted does not suit it.
    """
    if wanted.method is not None and wanted.method not in ONE_SHOT:
        methods.find(wanted.method)
        raise ValueError(
            f"--method {wanted.method} needs training, which train.py --method {wanted.method} does; "
            f"without it: {', '.join(ONE_SHOT)}"
        )
    if wanted.num_classes is not None and wanted.model is None:
        raise ValueError(
            f"--num-classes {wanted.num_classes} is for the network that --model names; a file that tells its network "
            "tells its classes, too"
        )
    if Path(path).is_dir():
        inside = [str(file) for name in RESULTS if (file := Path(path) / name).is_file()]
        raise ValueError(f"{path} is a folder; give the name of a file{', ' * bool(inside)}{' or '.join(inside)}")
    kind = files.kind_of(path) if Path(path).is_file() else None
    if kind not in (files.TRAINING, files.COMPACT):
        return of_dense(path, wanted, kind)
    outcome = (of_training if kind == files.TRAINING else of_compact)(path, wanted)
    check_shapes(wanted, outcome.small, path)
    if wanted.use_ema or wanted.ignore:
        raise ValueError(f"--use-ema and --ignore are for dense weights, and {outcome.said}")
    if not wanted.cuts:
        if wanted.method is not None:
            raise ValueError("--method cuts a network further; say how far: --target-macs, --target-params, --round-to")
        return outcome
    method = wanted.method or USUAL
    torch.manual_seed(wanted.seed)
    gated, small = recut(
        outcome.dense,
        outcome.small,
        target_macs=wanted.target_macs,
        target_params=wanted.target_params,
        round_to=wanted.round_to or 1,
        method=method,
    )
    if torch.equal(checkpoint.record_of(small).keep, checkpoint.record_of(outcome.small).keep):
        return outcome  # the gates of a run have met all that is wanted
    said = f"{outcome.said}; cut further by {method}{_too_narrow(gated, wanted.round_to or 1)}"
    return dataclasses.replace(outcome, said=said, gated=gated, small=small.eval())


def _too_narrow(gated: GatedModel, size: int) -> str:
    """Why widths may be no multiples of `size`: the first cut has left fewer channels of a group."""
    groups = gated.table.groups
    count = sum(group.width < size for group in groups)
    return f"; {count} of {len(groups)} channel groups had fewer than {size} channels left, and keep them" * (count > 0)


def of_training(path: str | Path, wanted: Wanted) -> Outcome:
    """From a checkpoint of train.py, taken at any moment of a run."""
    if wanted.model is not None:
        raise ValueError(f"{path} is a training checkpoint, which says its network; leave out --model {wanted.model}")
    state = checkpoint.load_training(path)
    if state.get("phase") not in PHASES or not isinstance(state.get("net"), dict):
        raise ValueError(f"{path} is not a checkpoint of train.py: it names no phase of a run and no network.")
    phase = state["phase"]
    if type(state.get("epoch", 0)) is not int:
        raise ValueError(f"{path} is not a checkpoint of train.py: its number of epochs is {state['epoch']!r:.80}.")
    said = f"phase {phase!r}, {state.get('epoch', 0)} epochs done; {WHERE[phase]}"
    dense = of_models(state.get("build"), path)
    notes = {"build": state["build"]}
    if phase in ("finetune", "control"):
        record = checkpoint.record_from_json(state.get("record"), source=str(path))
        small = checkpoint.rebuild(dense, record, source=str(path))
        checkpoint.fill(small, state["net"] if phase == "finetune" else state.get("small") or {}, source=str(path))
        return Outcome(said, dense, None, small.eval(), notes)
    gated = gates_of(state, dense, path, wanted)
    small = gated.eval().compact()
    gated.keep = checkpoint.record_of(small).keep
    return Outcome(said, dense, gated, small.eval(), notes)


def gates_of(state: Mapping[str, Any], dense: nn.Module, path: str | Path, wanted: Wanted) -> GatedModel:
    """The gated network of a training checkpoint, as it stood, with what is wanted instead; `dense` is filled."""
    options = checked(state.get("wrap"), WRAP, path, "wrap")
    instead = {name: getattr(wanted, name) for name in ("target_macs", "target_params", "round_to")}
    options |= {name: value for name, value in instead.items() if value is not None}
    if state["phase"] == "dense":
        checkpoint.fill(dense, state["net"], source=str(path))
    try:
        gated = wrap(dense, **options)
    except ValueError as error:
        raise ValueError(f"{path} was made with settings that this hfp does not take: {error}") from error
    if state["phase"] == "prune":
        checkpoint.fill(gated, state["net"], source=str(path))
        config = state.get("config")
        if isinstance(config, dict) and config.get("accuracy_floor") is not None:
            gated.stop()  # there, the target is only the end of the road
    return gated


def of_compact(path: str | Path, wanted: Wanted) -> Outcome:
    """From a compact file, whose dense network the file or --model tells."""
    header = checkpoint.header(path)
    notes = header.get("notes")
    notes = notes if isinstance(notes, dict) else {}
    name = wanted.model or notes.get("model")
    if wanted.model is None and "build" in notes:
        dense = of_models(notes["build"], path)
    elif isinstance(name, str) and (wanted.model is not None or ":" not in name):
        classes = wanted.num_classes or _noted_classes(notes, name, path)
        record = checkpoint.record_from_json(header.get("record"), source=str(path))
        first = [shape for shape, _ in shapes_of(record)[:1]]  # what networks for one size are built for
        if ":" not in name and any(max(shape[-2:], default=0) > WIDEST for shape in first):
            raise ValueError(f"{path} asks for a network for images of an impossible size: {first[0]}.")
        make = partial(catalogue.build, name, first, num_classes=classes)
        dense = make().model if wanted.model else bounded(lambda: make().model, path, name)
        others = {key: value for key, value in notes.items() if key not in ("build", "num_classes")}
        notes = others | _named(name, classes)
    else:
        raise ValueError(f"{path} is a compact network; give the dense one that it was cut from: --model NAME")
    return Outcome("a compact network", dense, None, checkpoint.load(path, dense).eval(), notes)


def _named(name: str, classes: int | None) -> dict[str, Any]:
    """What a file notes of the network that --model names."""
    return {"model": name} | ({} if classes is None else {"num_classes": classes})


def _noted_classes(notes: Mapping[str, Any], name: str, path: str | Path) -> int | None:
    """What `_named` has noted, if it is of the same network."""
    classes = notes.get("num_classes") if notes.get("model") == name and ":" not in name else None
    if classes is not None and not (type(classes) is int and 0 < classes <= LARGEST):
        raise ValueError(f"{path} asks for a network of {classes!r:.80} classes.")
    return classes


def of_dense(path: str | Path, wanted: Wanted, kind: str | None) -> Outcome:
    """From dense weights of whatever origin, by a method that needs no training."""
    own = kind == files.WEIGHTS
    if own and wanted.use_ema:
        raise ValueError(f"{path} holds no averaged weights beside the others; leave out --use-ema")
    header, found = files.read(path, files.WEIGHTS) if own else ({}, foreign.read(path, use_ema=wanted.use_ema))
    notes = header.get("notes")
    build: Any = notes.get("build") if isinstance(notes, dict) else None
    if wanted.model is None and build is None:
        raise ValueError(
            f"{path} holds dense weights; say of which network: --model NAME (of torchvision, timm or this checkout), "
            "or --model module:function for one of your own"
        )
    if wanted.target_macs is None and wanted.target_params is None:
        raise ValueError(
            f"{path} holds dense weights; say how much may stay: --target-macs 0.4, --target-params 0.5, or both"
        )
    if wanted.model is None:
        model, given, made = of_models(build, path), None, {"build": build}
    else:
        network = catalogue.build(wanted.model, *_unzipped(wanted.shapes), num_classes=wanted.num_classes)
        model, given, made = network.model, network.inputs, _named(wanted.model, wanted.num_classes)
    foreign.fill(model.eval(), found, source=str(path))
    method = wanted.method or USUAL
    torch.manual_seed(wanted.seed)
    gated = wrap(
        model, given, target_macs=wanted.target_macs, target_params=wanted.target_params, steps=1,
        ignore=wanted.ignore, round_to=wanted.round_to or 1, method=method,
    )  # fmt: skip
    small = gated.eval().compact()
    if wanted.model is None:
        check_shapes(wanted, small, path)
    gated.keep = checkpoint.record_of(small).keep
    notes = made | {"seed": wanted.seed, "weights": Path(path).name}
    of = f"{'averaged ' if wanted.use_ema else ''}dense weights of {wanted.model or build['name']}"
    return Outcome(f"{of}; cut by {method}", model, gated, small, notes)


def _unzipped(shapes: Sequence[tuple[catalogue.Shape, torch.dtype]]) -> tuple[list[catalogue.Shape], list[torch.dtype]]:
    return [shape for shape, _ in shapes], [dtype for _, dtype in shapes]


def check_shapes(wanted: Wanted, small: nn.Module, path: str | Path) -> None:
    """
    Raises:
        ValueError: --input-shape is given, and the file, which tells the inputs of its network, tells others.
    """
    told = shapes_of(checkpoint.record_of(small))
    if wanted.shapes and list(wanted.shapes) != told:
        raise ValueError(
            f"--input-shape {_in_words(wanted.shapes)}: {path} is of a network that takes {_in_words(told)}, as it "
            "says itself; leave --input-shape out"
        )


def shapes_of(record: surgery.Record) -> list[tuple[catalogue.Shape, torch.dtype]]:
    """Of the tensors among the inputs that a network was cut for."""
    leaves = tree_leaves(inputs.rebuild(record.inputs))
    return [(tuple(leaf.shape), leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]


def _in_words(shapes: Sequence[tuple[catalogue.Shape, torch.dtype]]) -> str:
    """As --input-shape takes them.

    >>> _in_words([((1, 3, 8, 8), torch.float32), ((1, 12), torch.int64)])
    '1,3,8,8 and 1,12:int64'
    """
    dtypes = [str(dtype).removeprefix("torch.") for _, dtype in shapes]
    ends = ["" if dtype == "float32" else f":{dtype}" for dtype in dtypes]
    return " and ".join(",".join(map(str, shape)) + end for (shape, _), end in zip(shapes, ends, strict=True))


def of_models(build: Any, path: str | Path) -> nn.Module:
    """The dense network that a file of ours was made from, with fresh weights: `models.build` of checked arguments."""
    try:
        import models
    except ImportError as error:
        raise ValueError(
            "The package `models` is not here. Run `python -m hfp.compact` in the checkout that train.py was run in."
        ) from error
    options = checked(build, BUILD, path, "build")
    if any(isinstance(value, int) and not 0 < value <= LARGEST for value in options.values()):
        raise ValueError(f"{path} asks for a network of an impossible size: {options}.")
    return bounded(partial(models.build, **options), path, options)  # it takes only names that it lists itself


def bounded(make: Callable[[], nn.Module], path: str | Path, what: Any) -> nn.Module:
    """The network that `make` makes, as the file `path` asks; not if it is so large that it would fill the memory.

    Raises:
        ValueError: it is.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += 0 if parameter is None else parameter.numel()
        if made > MOST:
            raise ValueError(f"{path} asks for a network of more than {MOST:,} parameters: {what}.")

    handle = register_module_parameter_registration_hook(count)
    try:
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):  # some read numbers off tensors
            make()
        made = 0
        return make()
    finally:
        handle.remove()


def checked(options: Any, kinds: Mapping[str, tuple[type | None, ...]], path: str | Path, what: str) -> dict[str, Any]:
    """`options` if it has exactly the keys of `kinds`, each with a value of one of its kinds (a bool is no int)."""
    if not isinstance(options, dict) or options.keys() != kinds.keys():
        raise ValueError(
            f"{path} does not say how its network is made: its entry {what!r} should have {', '.join(kinds)}."
        )
    for name, value in options.items():
        if (None if value is None else type(value)) not in kinds[name]:
            raise ValueError(f"{path} has {name}={value!r} in its entry {what!r}, which is of the wrong kind.")
    if not all(isinstance(pattern, str) for pattern in options.get("ignore", ())):
        raise ValueError(f"{path} has something other than names in its list of ignored modules.")
    return dict(options)
