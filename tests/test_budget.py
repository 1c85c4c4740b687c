"""Targets and the gap."""

from __future__ import annotations

import re

import pytest
import torch

from hfp.budget import Budget, absolute
from hfp.cost import Factor, build


@pytest.mark.parametrize(
    "target, count",
    [(0.4, 400), (1.0, 1000), (0.29, 290), (0.0105, 10), (123, 123), (1000, 1000), (10, 10), (0.57, 570)],
)
def test_a_target_is_a_share_or_a_count(target: float, count: int) -> None:
    assert absolute(target, "target_macs", dense=1000, least=10) == count


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_a_share_is_met_as_it_is_written(hundredths: int) -> None:
    assert absolute(hundredths / 100, "target_macs", dense=100, least=1) == hundredths


@pytest.mark.parametrize("dense", [84, 2_293_000, 10**12 + 1])
def test_the_share_of_a_count_asks_for_that_count(dense: int) -> None:
    for count in range(1, dense, max(1, dense // 997)):
        assert absolute(count / dense, "target_macs", dense=dense, least=1) == count


@pytest.mark.parametrize(
    "target, words",
    [
        (0.0, "above 0 and at most at 1"),
        (-0.1, "above 0 and at most at 1"),
        (1.5, "above 0 and at most at 1"),
        (float("nan"), "above 0"),
        (float("inf"), "above 0"),
        (True, "expected a share"),
        ("0.4", "expected a share"),
        (1001, "above the 1,000 of the dense model"),
        (9, "smallest reachable target is target_macs=10"),
        (0.001, "smallest reachable target is target_macs=10"),
        (0, "a count is a whole number from 10 on"),
        (-5, "a count is a whole number from 10 on"),
        (1, "the whole network is target_macs=1.0"),
    ],
)
def test_a_wrong_target_is_told_what_would_be_right(target: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        absolute(target, "target_macs", dense=1000, least=10)  # type: ignore[arg-type]
    assert str(error.value).startswith("target_macs=")


def budget() -> Budget:
    return Budget(
        "macs",
        build(4, [(10, (Factor.of(torch.arange(4)),))], torch.empty(0, 0, dtype=torch.long)),
        dense=40,
        target=20,
    )


def test_a_budget_falls_from_dense_to_target_and_never_rises() -> None:
    values = [budget().at(step / 50) for step in range(-5, 60)]
    assert values[0] == 40 and values[-1] == 20
    assert values == sorted(values, reverse=True)


def test_the_gap_pulls_until_the_target_is_met() -> None:
    for live, gap in ((4, 0.5), (3, 0.25), (2, 0.0), (1, 0.0)):
        gates = (torch.arange(4) < live).double().requires_grad_()
        value = budget().gap(gates)
        value.backward()
        assert float(value.detach()) == gap
        assert gates.grad.tolist() == [10 / 40 if gap else 0.0] * 4
