"""Ways to learn which channels matter, one file each."""

from hfp.methods import ggp, hfp, magnitude, pag, prunenet, random, slimming, taylor, uniform
from hfp.methods.magnitude import filter_sizes, relative_magnitude
from hfp.methods.method import Method, after, at_once, rounds, steadily

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        hfp.METHOD, pag.METHOD, pag.IN_ROUNDS, ggp.METHOD, prunenet.METHOD,
        uniform.METHOD, random.METHOD, magnitude.METHOD, slimming.METHOD, taylor.METHOD,
    )
}  # fmt: skip
"""By their names, as `hfp.wrap(..., method=...)` and `train.py --method` take them."""

__all__ = ["METHODS", "Method", "after", "at_once", "filter_sizes", "relative_magnitude", "rounds", "steadily"]


def find(method: str | Method) -> Method:
    """The method of that name, or `method` itself.

    Raises:
        ValueError: there is none.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}, or an hfp.Method of your own")
    return METHODS[method]
