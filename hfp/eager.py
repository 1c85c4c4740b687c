"""`eagerly`: parts of a model that are compiled run as they are written.

What watches a model, or gates it, looks at its functions one by one, and `torch.compile` would compile that as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch


@contextmanager
def eagerly() -> Iterator[None]:
    """Nothing in here is compiled by itself; all of it may be part of what is being compiled."""
    with ExitStack() as stack:
        # Only where something has been compiled: to import torch._dynamo takes seconds.
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            with suppress(RuntimeError):  # "attempted to set_stance in a torch.compile region"
                stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
