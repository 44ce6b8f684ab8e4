"""Bounds on the errors of means and standard deviations, from everything the draws know.

Which to use: `bounds_on`, through `diagnose`. It is a function of `Evidence` and `Limits` alone.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from kullback.variational.limits import LIMITS, Limits

from .evidence import Evidence
from .moment_corrections import Shift

__all__ = ["Bounds", "bounds_on"]

_ENDLESS = 1e-300


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far p's moments seem to be from q's, and how far at most: mean and log sd, each `[m]`."""

    shift: Shift
    mean: Tensor
    log_sd: Tensor


def bounds_on(evidence: Evidence, limits: Limits = LIMITS) -> Bounds:
    """Return the likely shift of the moments and bounds on it.

    With pooled draws of q and wider laws a bound is |shift| plus its error bar. With draws of q
    alone it is the larger of weights' and scores' where the weights may mislead, from none of it at
    k̂ = 0.2 to all of it at 1/2, plus the residual squared: what a tilt of that size that is not
    quadratic moves, to second order, while to first order it moves nothing. The residual counts as
    at most twice the sd of the log weights, which it is for a smooth tilt along one axis, and by
    less than its square where k̂ is below 0.7 and the weights have seen most of that themselves; nor
    is it more than Cauchy and Schwarz allow, `|E_p f − E_q f| ≤ sd_q(f) √χ²`, χ² = n/ESS − 1. Mass
    found elsewhere is added.
    Errors: Owen (2013), "Monte Carlo theory, methods and examples", eq. 9.9, for reweighted
    moments.
    """
    moved = _within_reach(evidence, limits)
    if evidence.away is None:
        return moved
    share = evidence.elsewhere
    wide = 0.5 * torch.log1p(share * (1 - share) * evidence.away**2)
    mean = moved.mean + share * evidence.away.abs()
    return Bounds(moved.shift, mean, moved.log_sd + wide)


def _within_reach(evidence: Evidence, limits: Limits) -> Bounds:
    """Return the bounds for the part of p that q or the wider laws reach."""
    if evidence.pooled is not None:
        return Bounds(evidence.pooled, *_reach(evidence.pooled, limits))
    mean, log_sd = _reach(evidence.own, limits)
    heavy = _between(evidence.k_hat, limits.light, limits.heavy)
    slack = heavy * min(_second_order(evidence, limits), _cauchy_schwarz(evidence))
    if evidence.pushed is None:
        slack = math.inf if evidence.scored and heavy > 0 else slack
        return Bounds(evidence.own, mean + slack, log_sd + slack)
    by_scores = _reach(evidence.pushed, limits)
    mean = mean + heavy * (by_scores[0] - mean).clamp_min(0.0) + slack
    log_sd = log_sd + heavy * (by_scores[1] - log_sd).clamp_min(0.0) + slack
    return Bounds(evidence.own, mean, log_sd)


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _cauchy_schwarz(evidence: Evidence) -> float:
    return math.sqrt(max(0.0, 1.0 / evidence.ess_fraction - 1.0))


def _second_order(evidence: Evidence, limits: Limits) -> float:
    """Return the residual squared, held down to 1/3 where the weights are light-tailed."""
    residual = math.inf if evidence.residual is None else evidence.residual
    size = min(2 * evidence.sd_log_weights, residual) ** 2
    seen = 1.0 - _between(evidence.k_hat, limits.heavy, limits.misled)
    return size if seen == 0 else 1.0 / (1.0 / max(size, _ENDLESS) + 3.0 * seen)


def _reach(shift: Shift, limits: Limits) -> tuple[Tensor, Tensor]:
    """Return |shift| plus as many standard errors as leave few failures among all functions."""
    many = NormalDist().inv_cdf(1 - limits.miss / (4 * len(shift.mean)))
    return (
        shift.mean.abs() + many * shift.mean_error,
        shift.log_sd.abs() + many * shift.log_sd_error,
    )
