"""One thread (the networks are tiny), a fixed seed for every test, no rules left behind, and a Ctrl-C that works."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from hfp.rules.own import OWN

torch.set_num_threads(1)
torch.ones((), requires_grad=True).backward()  # a first one after torch.export starts threads, which no fork survives
os.environ["OMP_NUM_THREADS"] = "1"  # of subprocesses too: other sums of a product are other last bits


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_rules_are_forgotten() -> Iterator[None]:
    before = dict(OWN)
    yield
    OWN.clear()
    OWN.update(before)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """A shell that runs the tests in the background has switched Ctrl-C off, for them and their subprocesses."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
