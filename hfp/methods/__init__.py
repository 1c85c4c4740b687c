"""Ways to learn which channels matter, one file each."""

from hfp.methods import hfp, magnitude

__all__ = ["hfp", "magnitude"]
