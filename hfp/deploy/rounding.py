"""`--round-to auto`: which multiple widths should be of, measured on this machine.

A processor computes widths in vectors of 4, 8 or 16 numbers; a layer of 13 channels can take as long as one of 16.
Which multiple pays depends on the processor, the library and the shapes of the network. So it is cut to the same
targets with several roundings, and the compact networks are timed side by side, turn by turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfp import checkpoint
from hfp.deploy.origin import Outcome
from hfp.experiment import loop
from hfp.model import inputs
from hfp.model.inputs import Arguments

ROUNDINGS = (1, 4, 8, 16, 32)
LOSS = 0.1
"""A rounding that takes more than this share of the multiply-adds away besides is left out: that is pruning. It happens
where a compact network is rounded, whose widths can only go down."""
NOISE = 0.01
"""Turns on a machine that does nothing else agree to about this share: what is within it of the fastest counts as fast,
and of those the finest rounding is taken, which is free to choose the most."""
SECONDS = 10.0
"""Of measuring, unless five turns take longer."""


def choose(
    cut: Callable[[int], Outcome],
    batch: int,
    runs: Callable[[Outcome], Callable[..., Any]] = lambda outcome: outcome.small,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of the rounding that is the fastest on this machine at this batch size, and what was measured.

    `cut` makes the outcome of a rounding, or raises ValueError where the targets cannot be reached with it; made twice,
    it is the same. `runs` gives what is timed of it, `tell` is told what is being done: it can take a minute.

    Raises:
        ValueError: none of the roundings reaches the targets.
    """
    nets: dict[int, Callable[..., Any]] = {}  # all that is kept of the outcomes: each has a dense network, too
    finest = 0
    example: Arguments | None = None
    refused: ValueError | None = None
    for rounding in ROUNDINGS:
        tell(f"cutting to widths in multiples of {rounding}")
        try:
            outcome = cut(rounding)
        except ValueError as error:
            refused = refused or error
            continue
        macs = checkpoint.record_of(outcome.small).macs
        finest = finest or macs
        if macs >= (1 - LOSS) * finest:
            nets[rounding], example = runs(outcome), outcome.inputs
    if example is None:
        assert refused is not None
        raise refused
    tell(f"timing {len(nets)} networks at batch {batch}")
    times = measured(nets, example, batch)
    chosen = fastest(times)
    said = {"chosen": chosen, "batch": batch, "latency_ms": {str(rounding): ms for rounding, ms in times.items()}}
    return cut(chosen), said


def measured(nets: Mapping[int, Callable[..., Any]], example: Arguments, batch: int) -> dict[int, float]:
    """Milliseconds of a pass of each network.

    Raises:
        ValueError: they do not run on so many examples.
    """
    given = inputs.batched(example, batch)
    try:
        if given is None:
            raise ValueError("the example inputs are not for one example each")
        turns = loop.turns({str(rounding): net for rounding, net in nets.items()}, given, SECONDS)
    except Exception as error:  # whatever a network says that is made for one example at a time
        raise ValueError(
            f"--round-to auto: the network does not run on {batch} examples at once; give --batch 1"
        ) from error
    return paired({int(rounding): times for rounding, times in turns.items()})


def paired(turns: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Times that can be compared although the machine was now busy, now idle: the first one's median, and for the
    others the median of what they took in the same turn, relative to it.

    >>> paired({1: [2.0, 2.0, 8.0], 8: [1.0, 1.0, 4.0]})
    {1: 2.0, 8: 1.0}
    """
    first = next(iter(turns.values()))
    whole = statistics.median(first)
    shares = {
        rounding: statistics.median(own / base for own, base in zip(times, first, strict=True))
        for rounding, times in turns.items()
    }
    return {rounding: whole * share for rounding, share in shares.items()}


def fastest(times: Mapping[int, float]) -> int:
    """The finest rounding of those that are as fast as the fastest, but for noise.

    >>> fastest({1: 3.0, 8: 2.02, 16: 2.0})
    8
    """
    limit = (1 + NOISE) * min(times.values())
    return min(rounding for rounding, time in times.items() if time <= limit)


def sentence(said: dict[str, Any]) -> str:
    """
    >>> sentence({"chosen": 8, "batch": 4, "latency_ms": {"1": 3.0, "8": 2.02}})
    'widths in multiples of 8, the fastest here at batch 4: 1: 3.000 ms, 8: 2.020 ms'
    """
    times = ", ".join(f"{rounding}: {ms:.3f} ms" for rounding, ms in said["latency_ms"].items())
    return f"widths in multiples of {said['chosen']}, the fastest here at batch {said['batch']}: {times}"
