"""`--round-to auto`: which multiple widths should be of, measured on this machine.

A processor computes widths in vectors of 4, 8 or 16 numbers; a layer of 13 channels can take as long as one of 16.
Which multiple pays depends on the processor, the library and the shapes of the network. So it is cut to the same
targets with several roundings, and the compact networks are timed side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hfp import checkpoint
from hfp.comparison import latency
from hfp.origin import Outcome

ROUNDINGS = (1, 4, 8, 16, 32)
LOSS = 0.1
"""A rounding that takes more than this share of the multiply-adds away besides is left out: that is pruning. It happens
where a compact network is rounded, whose widths can only go down."""
NOISE = 0.03
"""What is slower than the fastest by no more than this share counts as fast: of those the finest rounding is taken,
which is free to choose the most."""


def choose(cut: Callable[[int], Outcome], batch: int) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of the rounding that is the fastest on this machine at this batch size, and what was measured.

    `cut` makes the outcome of a rounding, or raises ValueError where the targets cannot be reached with it.

    Raises:
        ValueError: none of the roundings reaches the targets.
    """
    outcomes: dict[int, Outcome] = {}
    finest = 0
    refused: ValueError | None = None
    for rounding in ROUNDINGS:
        try:
            outcome = cut(rounding)
        except ValueError as error:
            refused = refused or error
            continue
        macs = checkpoint.record_of(outcome.small).macs
        finest = finest or macs
        if macs >= (1 - LOSS) * finest:
            outcomes[rounding] = outcome
    if not outcomes:
        assert refused is not None
        raise refused
    nets = tuple(outcome.small for outcome in outcomes.values())
    times = latency(nets, next(iter(outcomes.values())).inputs, batch)
    if times is None:
        raise ValueError(f"--round-to auto: the network does not run on {batch} examples at once; give --batch 1")
    measured = dict(zip(outcomes, times, strict=True))
    chosen = fastest(measured)  # type: ignore[arg-type]
    said = {"chosen": chosen, "batch": batch, "latency_ms": {str(rounding): ms for rounding, ms in measured.items()}}
    return outcomes[chosen], said


def fastest(times: dict[int, float]) -> int:
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
