"""Channels that nothing has read, in a model whose values decide what runs.

The head of an early exit may have been asked how sure it is, and no more: on other inputs it is the output.
"""

from __future__ import annotations

from collections.abc import Sequence

from hfp.labels import Ledger, Place
from hfp.tracing.operands import Operand

_READING = {"zero", "again", "root", "mean"}
"""How operands are hidden from functions that compute further values of all channels, and not the largest of them."""


def pin_unread(ledger: Ledger, operands: Sequence[Operand]) -> None:
    """Pin what layers make and no weight, normaliser or product of activations has read."""
    known = ledger.among(ledger.axes[name][dim] for name, dims in ledger.readers.items() for dim in dims)
    known |= ledger.among(operand.channels for operand in operands if operand.how in _READING)
    known |= ledger.among(ids for record in ledger.products for ids in record)  # read in parts
    for ids in ledger.produced:
        unread = ids[~known[ids]]
        ledger.pin(unread, "is read by nothing on the example inputs, whose values decide what runs", Place("", "", ""))
