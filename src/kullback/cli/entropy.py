"""`kullback entropy`: mean code length of data from P."""

from .measure import answer
from .measure_options import Options, P

__all__ = ["entropy"]


def entropy(p: P, /, *, options: Options = None) -> None:
    """Entropy H(P) = Σ p log 1/p: mean code length of data from P in the best code for P.

    Differential entropy −∫ p log p where P has a density. Exact where there is a closed form or a
    table to sum over; else estimated from samples, with a standard error.
    """
    answer("entropy", p, None, options)
