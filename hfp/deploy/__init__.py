"""From a checkpoint, a compact file or anybody's weights to a small network, and to the formats that devices run.

`hfp/compact.py` is the command made of this.
"""
