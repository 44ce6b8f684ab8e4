"""From merged moments to an `Estimate`: value, error, bias in words, and every doubt about it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate
from kullback.core.estimate import Bias

from . import trust
from .forms import WEIGHT, Form, best_form, influence, level, widened
from .moments import Moments
from .tails import Tails
from .terms import CONTROL, Estimator

__all__ = ["Judged", "Part", "best_parts", "estimate_parts", "judge"]


class Part(NamedTuple):
    """Some draws, the form they are averaged with, and how many numbers it took from them."""

    moments: Moments
    form: Form
    fitted: int


class Judged(NamedTuple):
    """What `estimate_parts` found, all `[*batch]`; flat: whether all terms are one number."""

    value: Tensor
    error: Tensor
    skewness: Tensor
    k_hat: Tensor
    flat: Tensor


def best_parts(
    halves: tuple[Moments, Moments], *, weighted: bool, ratio: bool, cross_fit: bool
) -> list[Part]:
    """Choose the best form: for each half from the other, or for all from all."""
    if cross_fit:
        first, second = (best_form(half, weighted=weighted, ratio=ratio) for half in halves)
        return [Part(halves[0], second, 0), Part(halves[1], first, 0)]
    whole = halves[0] + halves[1]
    fitted = whole.mean.shape[-1] - WEIGHT + (0 if weighted and ratio else 1)
    return [Part(whole, best_form(whole, weighted=weighted, ratio=ratio), fitted)]


def estimate_parts(parts: list[Part], tails: Tails, *, ratio: bool) -> Judged:
    """Average the parts by their draws; errors add in quadrature."""
    draws = sum(part.moments.count for part in parts)
    value = error = squares = slant = centre = torch.zeros(())
    for moments, form, fitted in parts:
        share, free = moments.count / draws, max(moments.count - 1 - fitted, 0)
        tilt = influence(moments, form, ratio=ratio)
        spread = moments.squares(tilt)
        value = value + share * level(moments, form, ratio=ratio)
        error = error + share**2 * spread / (moments.count * free if free else math.nan)
        squares, slant = squares + spread, slant + share * tilt
        centre = centre + share * moments.at(tilt)
    flat = squares <= draws * (trust.ROUNDING * value) ** 2
    skewness = torch.where(flat, 0.0, tails.skewness(slant, centre, squares))
    error = torch.where(value.isinf(), math.inf, error.clamp_min(0.0).sqrt())
    return Judged(value, error, skewness, tails.shape(slant), flat)


def judge(
    found: Judged,
    halves: tuple[Moments, Moments],
    tails: Tails,
    rounding: Tensor,
    estimator: Estimator,
    *,
    weighted: bool,
    ratio: bool,
    cross_fit: bool,
) -> Estimate:
    """Write the `Estimate`: which way it is biased and why, and what makes its error doubtful."""
    whole = halves[0] + halves[1]
    bias, why = _bias(estimator, ratio=ratio, cross_fit=cross_fit)
    doubts = trust.about_terms(whole.count, found.skewness, found.k_hat)
    constant = found.flat & (found.value != 0)
    doubts.append(
        trust.Doubt(found.value, constant, "every draw gave the same term: no error can be seen")
    )
    if estimator not in ("k1", 0, 0.0):
        ratio_form = widened(CONTROL, whole.mean)
        doubts += _identity(whole, tails, "q/p", ratio_form, 0.0, ratio=ratio)
        floor = 0.5 * rounding**2
        words = "rounding of the log densities adds {:.1f} standard errors: pass float64"
        doubts.append(trust.about_bias(floor, found.error, words))
    if estimator == "best":
        log_form = widened((1.0, 0.0, 0.0), whole.mean)
        doubts += _identity(whole, tails, "log r", log_form, None, ratio=ratio)
    if weighted:
        weight_form = widened((0.0, 0.0, 0.0, 1.0), whole.mean)
        doubts += _identity(
            whole, tails, "the weights", weight_form, None if ratio else 1.0, ratio=False
        )
    if estimator == "k2":
        doubts.append(_bias_of_k2(whole, found.error, ratio=ratio))
    return trust.judged(found.value, found.error, whole.count, found.k_hat, doubts, bias, why)


def _bias(estimator: Estimator, *, ratio: bool, cross_fit: bool) -> tuple[Bias, str]:
    reasons = []
    if estimator == "k2":
        reasons.append("k2's expectation is half the mean of log² r, not KL (MATH 5.2)")
    if estimator == "best" and not cross_fit:
        reasons.append("λ is fitted to the draws it is used on: bias of order 1/draws")
    if ratio:
        reasons.append("self-normalised, a ratio of two means: bias of order 1/draws")
    return ("unknown" if reasons else "none"), "; ".join(reasons)


def _identity(
    whole: Moments,
    tails: Tails,
    name: str,
    coefficients: Tensor,
    known: float | None,
    *,
    ratio: bool,
) -> list[trust.Doubt]:
    """Doubt by a form whose mean is known; None when only its skewness says something."""
    form = Form(coefficients, torch.zeros_like(whole.mean[..., 0]) + (known or 0.0))
    tilt = influence(whole, form, ratio=ratio)
    squares = whole.squares(tilt)
    error = (squares / (whole.count * (whole.count - 1))).sqrt()
    gap = level(whole, form, ratio=ratio)
    gap = torch.zeros_like(gap) if known is None else gap
    return trust.about_identity(name, gap, error, tails.skewness(tilt, whole.at(tilt), squares))


def _bias_of_k2(whole: Moments, error: Tensor, *, ratio: bool) -> trust.Doubt:
    """Doubt k2 by its difference from the unbiased k3 on the same draws."""
    form = Form(widened((0.0, -1.0, 1.0), whole.mean), torch.zeros_like(error))
    squares = whole.squares(influence(whole, form, ratio=ratio))
    own = (squares / (whole.count * (whole.count - 1))).sqrt()
    bias = level(whole, form, ratio=ratio).abs() + own
    words = "the bias of k2, judged by k3 on the same draws, may be {:.1f} standard errors"
    return trust.about_bias(bias, error, words)
