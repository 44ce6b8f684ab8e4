"""`kullback entropy`: the average surprise of a distribution."""

from typing import Annotated

from cyclopts import Parameter

from .measure import answer
from .measure_options import MeasureOptions, P

__all__ = ["entropy"]


def entropy(
    p: P,
    /,
    *,
    options: Annotated[MeasureOptions | None, Parameter(name="*")] = None,
) -> None:
    """Average surprise H(P) = Σ p log 1/p: the length of the best code for P.

    Exact where there is a closed form or a table to sum over; else from draws, with an error bar.
    """
    answer("entropy", p, None, options)
