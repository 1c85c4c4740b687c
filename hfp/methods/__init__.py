"""Ways to learn which channels matter, one file each."""

from hfp.methods import hfp as hfp
