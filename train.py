"""Prune a network while it trains: one number in, a smaller dense network out.

    python train.py --target-macs 0.4

The experiment, from `experiment` on, top to bottom: data, dense baseline, wrap, prune while training, compact,
fine-tune, evaluate, report. Everything lies in one folder (see hfp/experiment/run.py); a run that is stopped goes on
where it was or, if it was killed, from its last epoch. The settings are in hfp/experiment/settings.py,
`python train.py --help` explains them; what the phases share, the loop over epochs with its checkpoints, is in
hfp/experiment/lab.py.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import hfp
import models
from hfp import checkpoint, report
from hfp.deploy import foreign
from hfp.experiment import data, loop, stopping
from hfp.experiment.floor import Floor
from hfp.experiment.lab import Lab, batches, fit, live_counts, place, snapshot
from hfp.experiment.run import RunFolder
from hfp.experiment.settings import PUBLISHED, Config, open_run
from hfp.proof.ptflops_check import measured
from hfp.words import first_few, first_line

Pruned = tuple[hfp.GatedModel | None, torch.optim.Optimizer | None]
PrunePhase = Callable[[Lab, nn.Module], Pruned]


def experiment(run: RunFolder, prune: PrunePhase | None = None) -> dict[str, Any]:
    """The whole run, from where it stands; what result.json holds. `prune` takes the place of `prune_phase`."""
    with report.Display() as display:
        lab = set_up(run, display)
        baseline = dense_phase(lab)
        if lab.config.distill:
            lab.recipe = dataclasses.replace(lab.recipe, teacher=copy.deepcopy(baseline).eval().requires_grad_(False))
        if lab.config.control:
            untouched = copy.deepcopy(baseline)
        net, optimizer = (prune or prune_phase)(lab, baseline)
        small = finetune_phase(lab, net, optimizer)
        if lab.config.control:
            control_phase(lab, untouched, small)
        result = measure(lab)
    run.write_result(result)
    return result


def set_up(run: RunFolder, display: report.Display) -> Lab:
    """Data, and everything that the phases share."""
    config = Config(**run.config)
    torch.backends.cudnn.deterministic = True  # same seed, same result
    dataset = data.load(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        statistics=data.IMAGENET if config.statistics == "imagenet" else None,
    ).to(config.device)
    channels, size, width = dataset.input_size
    if width != size:
        raise ValueError(
            f"images of {size}x{width} are not square, as those of the networks here are; give --image-size "
            f"{min(size, width)}, which cuts them around their centre"
        )
    steps = dataset.train.num_batches(config.batch_size, drop_last=True)
    for sentence in run.mended:
        display.line(sentence)
    display.line(
        f"{config.model} on {config.dataset}: {len(dataset.train):,} training, {len(dataset.validation):,} validation, "
        f"{len(dataset.test):,} test images of {size}x{size}, {len(dataset.classes)} classes; "
        f"on {config.device}, in {run.path}"
    )
    build: dict[str, Any] = {
        "name": config.model,
        "num_classes": len(dataset.classes),
        "image_size": size,
        "in_channels": channels,
        "shortcut": config.shortcut,
    }
    wrapped = ("target_macs", "target_params", "ignore", "round_to", "counter", "method")
    wrap = {name: getattr(config, name) for name in wrapped} | {"steps": config.prune_epochs * steps}
    if config.target_macs is None and config.target_params is None:  # an accuracy floor alone decides
        wrap["target_macs"] = hfp.wrap(models.build(**build), **wrap | {"target_macs": 1.0}).least_macs
    gated = hfp.wrap(models.build(**build), **wrap)  # a target out of reach is told now, not after hours of training
    counts = gated.dense_macs, gated.dense_params
    check_trains(gated.model, dataset.input_size)
    return Lab(
        config=config,
        run=run,
        data=dataset,
        display=display,
        recipe=loop.Recipe(config.label_smoothing, config.distill, amp=config.amp, channels_last=config.channels_last),
        build=build,
        wrap=wrap,
        counts=counts,
        dense=partial(models.build, **build),
    )


def check_trains(net: nn.Module, size: tuple[int, int, int]) -> None:
    """On shapes alone, which leaves `net` without data: in training mode some networks need larger images.

    Raises:
        ValueError: it does not run.
    """
    try:
        net.train().to("meta")(torch.zeros(2, *size, device="meta"))
    except RuntimeError as error:
        raise ValueError(
            f"this {type(net).__name__} does not train on images of {size[1]}x{size[2]} pixels ({first_line(error)}); "
            "give a larger --image-size"
        ) from error


def dense_phase(lab: Lab) -> nn.Module:
    """The baseline: trained here, or loaded and, if asked, adapted to the data."""
    config, run = lab.config, lab.run
    torch.manual_seed(loop.epoch_seed(config.seed, "weights", 0))
    net = dense_network(lab.build, config.weights if run.state is None else None, lab.display.line)
    run.begin()
    if run.passed("dense"):
        checkpoint.load_weights(run.dense, net)
        return place(net, config)
    net = place(net, config)
    optimizer = loop.sgd([{"params": net.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}])
    fit(lab, "dense", net, optimizer, epochs=config.dense_epochs or 0, schedule=(0, config.dense_epochs or 1))
    checkpoint.save_weights(net, run.dense, statistics=config.statistics, build=lab.build)
    return net


def dense_network(build: dict[str, Any], weights: str | None, say: Callable[[str], None] = print) -> nn.Module:
    """With fresh weights, published ones, or those of a file: of those for other classes all but the head."""
    if weights in (None, PUBLISHED):
        return models.build(**build, weights=weights)
    net = models.build(**build)
    others = models.build(**build | {"num_classes": build.get("num_classes", 0) + 1})
    state, afresh = foreign.without_heads(foreign.read(weights), net, others)
    foreign.fill(net, state, source=weights)
    if afresh:
        say(f"{weights} is for another number of classes: {first_few(afresh)} start afresh")
    return net


def prune_phase(lab: Lab, baseline: nn.Module) -> Pruned:
    """Train the network and its gates; `baseline` is trained in place. (None, None) if the run is beyond this phase."""
    config, run = lab.config, lab.run
    if run.passed("prune"):
        return None, None
    net = hfp.wrap(baseline, **lab.wrap)
    optimizer = loop.sgd(net.param_groups(lr=config.lr, weight_decay=config.weight_decay))
    floor = None if config.accuracy_floor is None else Floor(config.accuracy_floor, net, optimizer, run.held)
    schedule = (0, lab.total)
    fit(
        lab,
        "prune",
        net,
        optimizer,
        epochs=config.prune_epochs,
        schedule=schedule,
        penalty=net.complexity_loss,
        floor=floor,
    )
    run.save(snapshot(lab, "prune", config.prune_epochs, net, optimizer), run.gated)
    return net, optimizer


def finetune_phase(lab: Lab, net: hfp.GatedModel | None, optimizer: torch.optim.Optimizer | None) -> nn.Module:
    """Compact, and train on: same learning-rate schedule, same momentum, fewer channels."""
    config, run = lab.config, lab.run
    if run.passed("finetune"):
        return place(hfp.load(run.small, lab.dense()), config)
    if net is not None and optimizer is not None:
        small = place(net.compact(optimizer=optimizer), config)
    else:
        record = checkpoint.record_from_json((run.state or {}).get("record"), source=str(run.checkpoint))
        small = place(checkpoint.rebuild(lab.dense(), record, source=str(run.checkpoint)), config)
        optimizer = loop.sgd([{"params": small.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}])
    also = {"record": checkpoint.record_to_json(checkpoint.record_of(small))}
    fit(
        lab,
        "finetune",
        small,
        optimizer,
        epochs=config.finetune_epochs,
        schedule=(config.prune_epochs, lab.total),
        also=also,
    )
    hfp.save(small, run.small, build=lab.build, seed=config.seed)
    return small


def control_phase(lab: Lab, net: nn.Module, small: nn.Module) -> None:
    """The unpruned baseline, trained on for as many epochs by the same recipe, with the same batches."""
    config = lab.config
    optimizer = loop.sgd([{"params": net.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}])
    also = {"record": checkpoint.record_to_json(checkpoint.record_of(small)), "small": small.state_dict()}
    fit(lab, "control", net, optimizer, epochs=lab.total, schedule=(0, lab.total), also=also)
    checkpoint.save_weights(net, lab.run.control, statistics=config.statistics, build=lab.build)


def measure(lab: Lab) -> dict[str, Any]:
    """Every network of the run, read back from its file, on the test images; what result.json holds."""
    config, run, (dense_macs, dense_params) = lab.config, lab.run, lab.counts
    nets = networks(lab)
    input_size = lab.data.input_size
    speed = loop.latency(nets, torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)))
    result: dict[str, Any] = {}
    for name, net in nets.items():
        macs, params = live_counts(lab, net)
        accuracy, loss = loop.evaluate(place(net, config), batches(lab, lab.data.test), lab.recipe)
        result[name] = {
            "accuracy": accuracy,
            "loss": loss,
            "params": params,
            "params_share": params / dense_params,
            "macs": macs,
            "macs_share": macs / dense_macs,
            "latency_ms": speed[name],
        }
    counted = {name: measured(nets[name], ((torch.zeros(1, *input_size),), {})) for name in ("baseline", "finetuned")}
    return result | {
        "ptflops": counted | {"share": counted["finetuned"] / counted["baseline"]},
        "widths": {"dense": checkpoint.widths(nets["baseline"]), "compact": checkpoint.widths(nets["finetuned"])},
        "config": dataclasses.asdict(config),
        "seed": config.seed,
        "train_seconds": sum(line["seconds"] for line in run.lines()),
        **report.circumstances(config.device),
    }


def networks(lab: Lab) -> dict[str, nn.Module]:
    """The networks of a finished run, from its files."""
    run = lab.run
    if run.held.exists():
        checkpoint.load_training(run.held)  # nothing else would notice that it is damaged
    baseline = lab.dense()
    checkpoint.load_weights(run.dense, baseline)
    gated = hfp.wrap(lab.dense(), **lab.wrap)
    gated.load_state_dict(checkpoint.load_training(run.gated)["net"])
    small = hfp.load(run.small, lab.dense())
    nets = {"baseline": baseline, "gated": gated, "compacted": gated.compact(), "finetuned": small}
    if lab.config.control:
        nets["control"] = lab.dense()
        checkpoint.load_weights(run.control, nets["control"])
    return nets


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(argv: list[str] | None = None, experiment: Callable[[RunFolder], dict[str, Any]] = experiment) -> int:
    """Exit codes: 0 done, 1 a file could not be written, 2 bad settings or data, 130 Ctrl-C, 143 SIGTERM."""
    run = None
    try:
        with stopping.handled_by(stopping.stop):
            run = open_run(argv)
            result = experiment(run)
    except KeyboardInterrupt as stopped:
        code, reason = (143, "SIGTERM") if isinstance(stopped, stopping.Terminated) else (130, "Ctrl-C")
        print(f"\nstopped by {reason}.{how_to_resume(run)}", file=sys.stderr)
        return code
    except OSError as error:
        print(f"\nerror: {error}.{how_to_resume(run)}", file=sys.stderr)
        return 1
    except (ValueError, hfp.Disagreement) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    out = report.console()
    out.print(f"\nmade in {run.path}: {run.small.name} (hfp.load reads it), {run.dense.name}, result.json")
    out.print(report.ptflops_line(result))
    out.print(report.result_table(result))
    return 0


def how_to_resume(run: RunFolder | None) -> str:
    """What to type after a run was stopped."""
    if run is None or not run.begun:
        return ""
    return f" What it has left in {run.path} is whole; go on with\n  {run.resume_command()}"


if __name__ == "__main__":
    sys.exit(main())
