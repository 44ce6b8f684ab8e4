"""Sums over tokens as draws: the sequences are independent, the tokens of one sequence are not.

Every error bar of a policy divergence is one over sequences. `ratios_of_rows` makes their sums the
features that `kullback.sampled` estimates from, with its best λ and its doubts; `mean_over` is the
plain mean of one number a sequence. A mean per token over sequences of unequal length is a ratio of
two means, with the delta method's error.
"""

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.sampled import LogRatios, trust
from kullback.sampled.forms import WEIGHT
from kullback.sampled.moments import Moments
from kullback.sampled.seen import Seen
from kullback.sampled.tails import Tails
from kullback.sampled.terms import Estimator

__all__ = ["estimate_over", "mean_over", "ratios_of_rows"]


def ratios_of_rows(rows: Tensor, lengths: Tensor | None = None) -> LogRatios:
    """Return the state of draws whose features are sums over a sequence, `[F, sequences]`.

    rows: sums of `log r`, `r − 1 − log r`, `½ log² r`, then of control variates, float64. lengths:
    `[sequences]`, what the mean is divided by the mean of, when it is a ratio.

    >>> ratios_of_rows(torch.ones(3, 4, dtype=torch.float64)).draws
    4
    """
    rows = rows if lengths is None else torch.cat([rows[:WEIGHT], lengths[None], rows[WEIGHT:]])
    halves, zero = (_seen(rows[:, ::2]), _seen(rows[:, 1::2])), rows.new_zeros(())
    return LogRatios(halves, zero, rows.new_zeros(2), lengths is not None)


def _seen(rows: Tensor) -> Seen:
    """Remember moments and extremes: by −log r, by r − 1 − log r and by every further feature."""
    keys = torch.stack([(-rows[0]).clamp_min(0.0), rows[1].abs(), *rows[WEIGHT:].abs()]).log()
    places = torch.arange(rows.shape[-1], device=rows.device)
    return Seen(Moments.of(rows), Tails.of(keys, places, rows, rows.shape[-1]))


def estimate_over(rows: Tensor, lengths: Tensor, estimator: Estimator, normalise: str) -> Estimate:
    """Estimate by features `[F, sequences]` as `ratios_of_rows` takes them, per token or not.

    lengths: `[sequences]`, tokens of each. Errors: as `LogRatios.estimate`.

    >>> rows = torch.tensor([[-2.0, -1, -3, -2], [2, 1, 3, 2], [0, 0, 0, 0]], dtype=torch.float64)
    >>> estimate_over(rows, torch.full((4,), 2.0), "k1", "token").value
    1.0
    """
    if _a_ratio(lengths, normalise):
        state = ratios_of_rows(rows, lengths / lengths.mean())
        return state.averaged(estimator, self_normalise=True) / float(lengths.mean())
    return ratios_of_rows(_each(rows, lengths, normalise)).averaged(estimator)


def mean_over(rows: Tensor, lengths: Tensor, normalise: str) -> Estimate:
    """Estimate the mean of one number a sequence `[sequences]`, per token or not.

    Errors: `ValueError` below 2 sequences.

    >>> mean_over(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 2.0]), "token").value
    1.5
    """
    require(len(rows) >= 2, "mask", "at least 2 sequences with a token that counts", len(rows))
    if _a_ratio(lengths, normalise):
        value = rows.sum() / lengths.sum()
        error, doubts, k_hat = trust.mean_of((rows - value * lengths) / lengths.mean(), value)
        why = "a ratio of two means: bias of order 1/sequences"
        return trust.judged(value, error, len(rows), k_hat, doubts, "unknown", why)
    rows = _each(rows, lengths, normalise)
    value = rows.mean()
    error, doubts, k_hat = trust.mean_of(rows - value, value)
    return trust.judged(value, error, len(rows), k_hat, doubts, "none", "")


def _each(rows: Tensor, lengths: Tensor, normalise: str) -> Tensor:
    return rows / lengths if normalise in ("token", "sequence_mean") else rows


def _a_ratio(lengths: Tensor, normalise: str) -> bool:
    return normalise == "token" and not bool((lengths == lengths[:1]).all())
