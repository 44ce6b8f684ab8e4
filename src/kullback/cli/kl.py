"""`kullback kl`: mean extra code length of Q for data from P."""

from typing import Annotated

from cyclopts import Parameter

from .measure import answer
from .measure_options import Options, P, Q

__all__ = ["kl"]


def kl(
    p: P,
    q: Q,
    /,
    *,
    estimator: Annotated[
        str | None,
        Parameter(
            help="Estimate from samples: k1, k2, k3, best or a number λ (docs/estimating_kl.md)."
        ),
    ] = None,
    options: Options = None,
) -> None:
    """Divergence KL(P‖Q) = Σ p log p/q: mean extra code length of Q's code for data from P.

    Exact where there is a closed form or a table to sum over; else estimated from samples, with a
    standard error, or without one and with the reason. In nats, or with --unit bits in bits.
    """
    answer("kl", p, q, options, estimator=estimator)
