"""Bounds on the errors of means and standard deviations, from everything the draws know.

Which to use: `bounds_on`, through `diagnose`. The limits below were chosen on the targets of
benchmarks/verdicts.py drawn with seeds 1 and 2; what it reports is counted with another.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from kullback.sampled import effective_sample_size, pareto_k

from .corrections import Moved, Shift, by_scores, by_weights, shift_between
from .probe import Probed

__all__ = ["bounds_on", "spread", "widened"]

_MISS = 0.01  # the chance that any of the normal error bars, two a function, fails
_FEW = 50.0  # effective draws below which reweighing says nothing
_LIGHT, _HEAVY = 0.2, 0.5  # k̂ at which the scores begin to count, and count in full
_MISLED = 0.7  # k̂ from which weights tell nothing of what they miss

Pair = tuple[Tensor, Tensor]


def spread(log_weights: Tensor) -> float:
    """Return the standard deviation of log weights `[n]` in nats, inf when one of them is −inf.

    >>> spread(torch.tensor([0.0, 0.0, 3.0]))
    1.732...
    """
    return math.inf if bool((log_weights == -math.inf).any()) else float(log_weights.std())


def bounds_on(
    draws: Tensor,
    values: Tensor,
    log_weights: Tensor,
    scores: Pair | None,
    of: Callable[[Tensor], Tensor],
) -> tuple[Shift, Pair, float | None]:
    """Return the likely shift of the moments, bounds on it, and the residual of the scores.

    draws: `[n, d]`; values: `of(draws)`, `[n, m]`; log_weights: `[n]`; scores: `[n, d]` each. A
    bound is |shift| plus its error bar, the larger of weights' and scores' where k̂ is above 1/2
    (between 0.2 and 1/2 in part), plus the residual squared: what a tilt of that size that is not
    quadratic moves, to second order, while to first order it moves nothing. The residual counts as
    at most twice the sd of the log weights, which it is for a smooth tilt along one axis, and by
    less than its square where k̂ is below 0.7 and the weights have seen most of that themselves; nor
    is it more than Cauchy and Schwarz allow, `|E_p f − E_q f| ≤ sd_q(f) √χ²`, χ² = n/ESS − 1.

    >>> z = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None]
    >>> shift, (mean, log_sd), _ = bounds_on(z, z, 0.1 * z[:, 0], None, lambda z: z)
    >>> bool(shift.mean < mean), round(float(shift.mean), 2)
    (True, 0.12)
    """
    weighed = by_weights(values, log_weights)
    tail, effective = float(pareto_k(log_weights)), float(effective_sample_size(log_weights))
    heavy = min(1.0, max(0.0, (tail - _LIGHT) / (_HEAVY - _LIGHT)))
    moved = _moved(draws, log_weights, scores)
    residual = None if moved is None else moved.residual
    slack = heavy * _second_order(residual, spread(log_weights), tail)
    slack = min(slack, math.sqrt(max(0.0, len(draws) / effective - 1.0)))
    by_tail = _reach(weighed)
    if moved is None or not moved.bounded:
        lost = effective < _FEW or (moved is not None and heavy > 0)
        lost_or = math.inf if lost else slack
        return weighed, (by_tail[0] + lost_or, by_tail[1] + lost_or), residual
    pushed = shift_between(values, of(moved.draws))
    by_push = _reach(pushed)
    if effective < _FEW:
        return pushed, (by_push[0] + slack, by_push[1] + slack), residual
    mean, log_sd = (
        a + heavy * (b - a).clamp_min(0.0) + slack for a, b in zip(by_tail, by_push, strict=True)
    )
    return weighed, (mean, log_sd), residual


def widened(bounds: Pair, values: Tensor, far: Tensor, probed: Probed) -> Pair:
    """Add to bounds what the mass found elsewhere would do to means and standard deviations.

    values: `[n, m]` at q's draws; far: `[k, m]` at the draws of the peak that was found.

    >>> zero, far = torch.zeros(1), torch.full((4, 1), 3.0)
    >>> found = Probed(0.5, 1, far, torch.zeros(4), 3.0)
    >>> widened((zero, zero), torch.tensor([[-1.0], [0.0], [1.0]]), far, found)[0]
    tensor([1.5000])
    """
    if probed.log_weights is None:
        return bounds
    share = torch.softmax(probed.log_weights, 0)[:, None].to(far.dtype)
    away = ((share * far).sum(0) - values.mean(0)) / values.std(0).clamp_min(1e-300)
    wide = probed.share * (1 - probed.share) * away**2
    return bounds[0] + probed.share * away.abs(), bounds[1] + 0.5 * torch.log1p(wide)


def _moved(draws: Tensor, log_weights: Tensor, scores: Pair | None) -> Moved | None:
    if scores is None or len(draws) <= 2 * draws.shape[1]:
        return None
    difference = (scores[0] - scores[1]).detach().double()
    if not bool(difference.isfinite().all()):
        return None
    return by_scores(draws, difference, torch.softmax(log_weights, 0))


def _second_order(residual: float | None, sd_log_weights: float, tail: float) -> float:
    """Return the residual squared, held down to 1/3 where the weights are light-tailed."""
    size = min(2 * sd_log_weights, math.inf if residual is None else residual) ** 2
    seen = min(1.0, max(0.0, (_MISLED - tail) / (_MISLED - _HEAVY)))
    return size if seen == 0 else 1.0 / (1.0 / max(size, 1e-300) + 3.0 * seen)


def _reach(shift: Shift) -> Pair:
    """Return |shift| plus as many standard errors as leave few failures among all functions."""
    many = NormalDist().inv_cdf(1 - _MISS / (4 * len(shift.mean)))
    return (
        shift.mean.abs() + many * shift.mean_error,
        shift.log_sd.abs() + many * shift.log_sd_error,
    )
