"""`kullback entropy`: the average surprise of a distribution."""

from .measure import answer
from .measure_options import Options, P

__all__ = ["entropy"]


def entropy(p: P, /, *, options: Options = None) -> None:
    """Average surprise H(P) = Σ p log 1/p: the length of the best code for P.

    Exact where there is a closed form or a table to sum over; else from draws, with an error bar.
    """
    answer("entropy", p, None, options)
