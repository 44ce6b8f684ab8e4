"""Student's law: how many standard errors hold the truth when the error is itself estimated."""

import math
from statistics import NormalDist

__all__ = ["two_sided"]


def two_sided(level: float, freedom: int) -> float:
    """Return t with `P(|T| ≤ t) = level`, T of Student's law with `freedom` ≥ 1 degrees.

    One and two degrees in closed form, more by the series in 1/freedom: within 0.2 % at a level of
    0.95, 1 % at 0.99, and rapidly better with more degrees.
    Reference: Abramowitz and Stegun (1964), "Handbook of Mathematical Functions", 26.7.5.

    >>> round(two_sided(0.95, 9), 3), round(two_sided(0.95, 10_000), 3)
    (2.262, 1.96)
    """
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return level * math.sqrt(2 / (1 - level**2))
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** order for order, term in enumerate(terms))
