"""The README's own code runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hfp.methods import METHODS

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_custom_loop_gives_a_network_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    model, small = names["model"], names["small"]
    assert type(small) is type(model)
    macs = []
    for net in (model, small):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.zeros(1, 3, 64, 64))  # type: ignore[attr-defined]
        macs.append(counter.get_total_flops())
    assert 0.39 < macs[1] / macs[0] <= 0.4


def test_a_trace_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[1], {})
    assert "is an output of the network" in capsys.readouterr().out


def test_operators_and_modules_of_ones_own_are_pruned() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[2], names)
    net, small = names["net"], names["small"]
    assert net.dense_macs == 16 * 32 + 32 * 24 + 24 * 10
    rows, columns = small.weight.shape
    assert small.hfp_record.macs == 16 * columns + columns * rows + rows * 10 <= net.dense_macs / 2
    assert small.scale.factor.shape == (columns,) and rows < 24 and columns < 32


def test_a_method_of_ones_own_prunes() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[3], names)
    weight = names["model"][0].weight.detach().flatten(1)
    keep = names["small"].hfp_record.keep
    spread = weight.square().mean(1).sqrt() / weight.abs().mean(1)
    assert 0 < int(keep.sum()) <= 16 and bool(keep[spread.argmax()])
    assert float(spread[keep].min()) >= float(spread[~keep].max())


def test_the_readme_lists_every_method() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \| .*", README.read_text(), re.MULTILINE)
    assert {*rows, "pag-rounds"} == set(METHODS)


def test_every_file_that_the_readme_names_is_there() -> None:
    root = README.parent
    for name in re.findall(r"`((?:hfp|benchmarks|models)/[\w/]+\.py)`", README.read_text()):
        assert (root / name).is_file(), name
