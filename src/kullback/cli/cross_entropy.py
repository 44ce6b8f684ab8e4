"""`kullback cross-entropy`: mean code length of Q for data from P."""

from .measure import answer
from .measure_options import Options, P, Q

__all__ = ["cross_entropy"]


def cross_entropy(p: P, q: Q, /, *, options: Options = None) -> None:
    """Cross-entropy H(P, Q) = Σ p log 1/q: mean code length when data from P are coded for Q.

    Exact where there is a closed form or a table to sum over; else estimated from samples, with a
    standard error.
    """
    answer("cross-entropy", p, q, options)
