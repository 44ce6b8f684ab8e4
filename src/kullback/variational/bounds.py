"""Bounds on the errors of means and standard deviations, from everything the draws know.

Which to use: `bounds_on`, through `diagnose`. It is a function of `Evidence` and `Limits` alone.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .corrections import Shift
from .evidence import Evidence
from .limits import LIMITS, Limits

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

    A bound is |shift| plus its error bar, the larger of weights' and scores' where the weights may
    mislead, plus the residual squared: what a tilt of that size that is not quadratic moves, to
    second order, while to first order it moves nothing. From none of it to all of it counts: with
    q's own weights from k̂ = 0.2 to 1/2; with pooled ones, for one function at a time, where a
    single draw has from 2 to 10 % of its second moment. The residual counts as at most twice the sd
    of the log weights, which it is for a smooth tilt along one axis, and by less than its square
    where k̂ is below 0.7 and the weights have seen most of that themselves; nor is it more than
    Cauchy and Schwarz allow, `|E_p f − E_q f| ≤ sd_q(f) √χ²`, χ² = n/ESS − 1, or four times that
    largest share. Mass found elsewhere is added.
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
    own = evidence.ess_fraction * evidence.draws
    weighed, effective, tail = evidence.own, own, evidence.k_hat
    heavy = _between(tail, limits.light, limits.heavy)
    most = torch.as_tensor(math.sqrt(max(0.0, evidence.draws / own - 1.0)))
    if evidence.pooled is not None and evidence.largest is not None:
        effective = evidence.pooled_effective
        if effective < limits.few:  # p lies where no law has many draws
            tail, heavy = math.inf, torch.ones(())
        else:
            weighed = evidence.pooled
            heavy = _between(evidence.largest, limits.small, limits.large)
            most = torch.minimum(most, limits.times * evidence.largest)
    residual = _second_order(evidence.residual, evidence.sd_log_weights, tail, limits)
    slack = heavy * most.clamp_max(residual)
    mean, log_sd = _reach(weighed, limits)
    if evidence.pushed is None:
        lost = effective < limits.few or (evidence.scored and bool((heavy > 0).any()))
        extra = math.inf if lost else slack
        return Bounds(weighed, mean + extra, log_sd + extra)
    by_scores = _reach(evidence.pushed, limits)
    if effective < limits.few:
        return Bounds(evidence.pushed, by_scores[0] + slack, by_scores[1] + slack)
    mean = mean + heavy * (by_scores[0] - mean).clamp_min(0.0) + slack
    log_sd = log_sd + heavy * (by_scores[1] - log_sd).clamp_min(0.0) + slack
    return Bounds(weighed, mean, log_sd)


def _between(value: Tensor | float, low: float, high: float) -> Tensor:
    return ((torch.as_tensor(value).double() - low) / (high - low)).clamp(0.0, 1.0)


def _second_order(
    residual: float | None, sd_log_weights: float, tail: float, limits: Limits
) -> float:
    """Return the residual squared, held down to 1/3 where the weights are light-tailed."""
    size = min(2 * sd_log_weights, math.inf if residual is None else residual) ** 2
    seen = min(1.0, max(0.0, (limits.misled - tail) / (limits.misled - limits.heavy)))
    return size if seen == 0 else 1.0 / (1.0 / max(size, _ENDLESS) + 3.0 * seen)


def _reach(shift: Shift, limits: Limits) -> tuple[Tensor, Tensor]:
    """Return |shift| plus as many standard errors as leave few failures among all functions."""
    many = NormalDist().inv_cdf(1 - limits.miss / (4 * len(shift.mean)))
    return (
        shift.mean.abs() + many * shift.mean_error,
        shift.log_sd.abs() + many * shift.log_sd_error,
    )
