"""`kullback cross-entropy`: what the code made for Q costs when the truth is P."""

from .measure import answer
from .measure_options import Options, P, Q

__all__ = ["cross_entropy"]


def cross_entropy(p: P, q: Q, /, *, options: Options = None) -> None:
    """Average surprise H(P, Q) = Σ p log 1/q of one who believes Q when P is true.

    Exact where there is a closed form or a table to sum over; else from draws, with an error bar.
    """
    answer("cross-entropy", p, q, options)
