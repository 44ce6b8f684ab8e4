"""`kullback js`: Jensen-Shannon divergence."""

from .measure import answer
from .measure_options import Options, P, Q

__all__ = ["js"]


def js(p: P, q: Q, /, *, options: Options = None) -> None:
    """Jensen-Shannon divergence JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M), M = ½P + ½Q.

    Symmetric, between 0 and ln 2 nats (1 bit). Exact for tables; else estimated from samples, with
    a standard error.
    """
    answer("js", p, q, options)
