"""`kullback kl`: the extra cost of the wrong belief, exact or from draws."""

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
        str | None, Parameter(help="Draw, and use k1, k2, k3, best or a number λ (MATH 5).")
    ] = None,
    options: Options = None,
) -> None:
    """Divergence KL(P‖Q) = Σ p log p/q: the extra surprise of believing Q when P is true.

    Exact where there is a closed form or a table to sum over; else from draws by the best λ, with
    an error bar. With --estimator always from draws.
    """
    answer("kl", p, q, options, estimator=estimator)
