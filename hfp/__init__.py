"""Holistic filter pruning: one number in, a smaller dense network out."""

from hfp.channels import ChannelTable
from hfp.checkpoint import load, save
from hfp.gated import GatedModel
from hfp.methods import Method
from hfp.proof.verify import Disagreement, verify
from hfp.rules.own import OwnCall, rule
from hfp.trace import trace
from hfp.wrap import wrap

__all__ = [
    "ChannelTable", "Disagreement", "GatedModel", "Method", "OwnCall",
    "load", "rule", "save", "trace", "verify", "wrap",
]  # fmt: skip
__version__ = "0.1.0"
