"""What numbers that are no probability table look like, and what to do with them.

Which to use: `looks_like`. People give counts, percentages, logarithms of probabilities, logits, or
the raw observations themselves; only some of these become a table when divided by their sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MANY", "Kind", "looks_like"]

MANY = 20  # unnamed numbers from which a list may well be of observations
REPEATS = 2  # whole numbers that occur so often each, on average, are observations
NEAR_ONE = 0.02  # of the sum: probabilities printed with two or three decimals
NEAR_HUNDRED = 1.0  # of the sum: percentages printed without decimals

_DRAWS = (
    "for raw observations of a continuous quantity, in Python: x, y = "
    "(torch.from_numpy(numpy.loadtxt(f))[:, None] for f in ('p.csv', 'q.csv')); "
    "print(kullback.sampled.kl_from_draws(x, y))"
)
_TALLY = (
    "for raw observations of a discrete quantity, count each value first and give names and "
    "counts (value,count) with --normalise"
)
_LOG_RATIO = (
    "for the log-probabilities of drawn items (tokens) under P and under Q, in Python: "
    "print(kullback.sampled.log_ratio(log_p, log_q))"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a list of numbers looks like, in words, what to try, and whether a sum may divide it.

    weights: False where dividing by the sum would give an exact number without a meaning.
    """

    words: str
    remedy: str
    weights: bool


def looks_like(values: Sequence[float], *, named: bool = False) -> Kind:
    """Say what finite numbers that do not sum to 1 look like.

    named: whether each number has the name of an outcome beside it: then it is no observation.

    >>> looks_like([3.0, 1.0, 0.0]).words
    'counts'
    >>> looks_like([math.log(0.25), math.log(0.75)]).words
    'natural logarithms of probabilities'
    """
    if min(values) < 0:
        return _with_negatives(values, named=named)
    total, whole = sum(values), all(value == int(value) for value in values)
    weights = "--normalise, which divides by the sum"
    if abs(total - 1) <= NEAR_ONE:
        return Kind("probabilities that were rounded", weights, weights=True)
    if abs(total - 100) <= NEAR_HUNDRED:
        return Kind("percentages", weights, weights=True)
    if not named and _observed(values, whole=whole):
        words = f"raw observations, or weights of outcomes ({len(values)} numbers without names)"
        other = "--weights, if each is the count or weight of one outcome"
        return Kind(words, f"{other}; {_TALLY if whole else _DRAWS}", weights=False)
    if len(values) == 1:
        chance = (
            f"bernoulli({values[0]:g}), if it is a chance"
            if values[0] <= 1
            else "two numbers or more"
        )
        return Kind("one number alone", chance, weights=True)
    return Kind("counts" if whole else "weights", weights, weights=True)


def _with_negatives(values: Sequence[float], *, named: bool) -> Kind:
    most = max(values)
    total = most + math.log(math.fsum(math.exp(value - most) for value in values))
    many = len(values) >= MANY and not named
    if most <= 0 and abs(total) <= NEAR_ONE:
        return Kind("natural logarithms of probabilities", "--log", weights=False)
    if most <= 0:
        other = f"; {_LOG_RATIO}" if many else ""
        words = "logarithms of probabilities that do not sum to 1"
        return Kind(words, f"--log --normalise, if there is one per outcome{other}", weights=False)
    if many:
        words = "raw observations or logits (numbers of both signs)"
        return Kind(words, f"{_DRAWS}; for logits: --log --normalise", weights=False)
    return Kind("logits or differences", "for logits: --log --normalise", weights=False)


def _observed(values: Sequence[float], *, whole: bool) -> bool:
    """Say whether many numbers are more like observations than like one count per outcome.

    Numbers that are not whole are no counts. Whole ones that repeat (zeros apart, which a sparse
    histogram has many of) are throws of a die rather than counts of many outcomes.
    """
    if len(values) < MANY:
        return False
    if not whole:
        return True
    positive = [value for value in values if value > 0]
    return len(positive) >= MANY and REPEATS * len(set(positive)) <= len(positive)
