"""Channels that nothing has read, in a model whose values decide what runs.

The head of an early exit may have been asked how sure it is, and no more: on other inputs it is the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hfp.labels import Ledger, Place
from hfp.tracing.operands import Operand

_READING = {"zero", "again", "root", "mean"}
"""How operands are hidden from functions that compute further values of all channels, and not the largest of them."""


def pin_unread(ledger: Ledger, operands: Sequence[Operand]) -> None:
    """Pin what layers make and no weight, normaliser or product of activations has read."""
    root = ledger.roots()
    known = torch.zeros(ledger.size, dtype=torch.bool)

    def note(vectors: Iterable[Tensor]) -> None:
        for ids in vectors:
            known[root[ids[ids >= 0]]] = True

    note(ledger.axes[name][dim] for name, dims in ledger.readers.items() for dim in dims)
    note(operand.channels for operand in operands if operand.how in _READING)
    note(ids.flatten() for record in ledger.products for ids in record)  # read in parts
    for ids in ledger.produced:
        unread = ids[~known[root[ids]]]
        ledger.pin(unread, "is read by nothing on the example inputs, whose values decide what runs", Place("", "", ""))
