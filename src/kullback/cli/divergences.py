"""`kullback entropy`: mean code length of data from P.

`kullback cross-entropy`: mean code length of Q for data from P.

`kullback js`: Jensen-Shannon divergence.

`kullback kl`: mean extra code length of Q for data from P.
"""

from typing import Annotated

from cyclopts import Parameter

from .measure import answer
from .options import Options, P, Q

__all__ = ["cross_entropy", "entropy", "js", "kl"]


def entropy(p: P, /, *, options: Options = None) -> None:
    """Entropy H(P) = Σ p log 1/p: mean code length of data from P in the best code for P.

    Differential entropy −∫ p log p where P has a density. Exact where there is a closed form or a
    table to sum over; else estimated from samples, with a standard error.
    """
    answer("entropy", p, None, options)


def cross_entropy(p: P, q: Q, /, *, options: Options = None) -> None:
    """Cross-entropy H(P, Q) = Σ p log 1/q: mean code length when data from P are coded for Q.

    Exact where there is a closed form or a table to sum over; else estimated from samples, with a
    standard error.
    """
    answer("cross-entropy", p, q, options)


def js(p: P, q: Q, /, *, options: Options = None) -> None:
    """Jensen-Shannon divergence JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M), M = ½P + ½Q.

    Symmetric, between 0 and ln 2 nats (1 bit). Exact for tables; else estimated from samples, with
    a standard error.
    """
    answer("js", p, q, options)


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
