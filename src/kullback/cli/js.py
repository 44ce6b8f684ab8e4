"""`kullback js`: the divergence that is symmetric and always finite."""

from .measure import answer
from .measure_options import Options, P, Q

__all__ = ["js"]


def js(p: P, q: Q, /, *, options: Options = None) -> None:
    """Jensen-Shannon JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M), M = ½P + ½Q: symmetric, finite.

    Exact where there is a closed form or a table to sum over; else from draws, with an error bar.
    """
    answer("js", p, q, options)
