"""Devices other than the CPU: see `far.py`. In processes of their own, since a device cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from far import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="PyTorch has no backends that are written in Python")
ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_networks_are_pruned_on_another_device() -> None:
    assert " passed" in run("tests/on_far.py", "-o", "addopts=")


def test_train_on_another_device(tmp_path: Path) -> None:
    epochs = [f"--{phase}-epochs=1" for phase in ("dense", "prune", "finetune")]
    told = run(
        "tests/far.py",
        "train.py",
        "--target-macs=0.4",
        "--device=far",
        "--distill=0.5",
        f"--output={tmp_path}",
        *epochs,
    )
    assert "on far" in told and "0.3999" in told
