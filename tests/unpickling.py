"""Code for a process of its own, in which nothing can be unpickled: by no name that `pickle` has for it."""

import pytest
import torch

PROGRAMS = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="PyTorch before 2.9 pickles parts of programs"
)

FORBIDDEN = """
import _pickle, pickle


def fail(*args, **kwargs):
    raise AssertionError("a pickle was opened")


class Failing(pickle.Unpickler):  # a class, since others derive from it
    __init__ = load = fail


for module in (pickle, _pickle):
    module.load = module.loads = fail
    module.Unpickler = Failing
pickle._Unpickler = pickle._load = pickle._loads = Failing
"""
