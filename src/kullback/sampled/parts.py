"""From what was seen of draws to an `Estimate`: value, error, bias in words, every doubt about it.

`choose_parts` says which linear form each of the draws is averaged with; `judge` averages.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate
from kullback.core.estimate import Bias

from . import trust
from .forms import (
    RATIO,
    WEIGHT,
    Form,
    best_form,
    control_columns,
    control_form,
    influence,
    level,
    widened,
)
from .seen import Seen
from .tails import Tails
from .terms import CONTROL, Estimator, coefficients

__all__ = ["Part", "choose_parts", "judge"]


class Part(NamedTuple):
    """Some draws, the form they are averaged with, and how many numbers it took from them."""

    seen: Seen
    form: Form
    fitted: int


class _Found(NamedTuple):
    """What averaging found, `[*batch]`; slant: the whole form `[*batch, F]`; flat: one number."""

    value: Tensor
    error: Tensor
    slant: Tensor
    skewness: Tensor
    k_hat: Tensor
    flat: Tensor


def choose_parts(
    halves: tuple[Seen, Seen],
    estimator: Estimator,
    *,
    weighted: bool,
    ratio: bool,
    cross_fit: bool,
) -> list[Part]:
    """Choose the form: the best for each half from the other, or for all from all; or a fixed one.

    Choosing is: which controls to drop (`_unsafe`), then the best multiples of the others.
    """
    kind = {"weighted": weighted, "ratio": ratio}
    if estimator == "best" and cross_fit:
        first, second = (_best(half, **kind) for half in halves)
        return [Part(halves[0], second, 0), Part(halves[1], first, 0)]
    whole = halves[0] + halves[1]
    like = whole.moments.mean
    if estimator == "best":
        fitted = len(control_columns(like.shape[-1], **kind))
        return [Part(whole, _best(whole, **kind), fitted)]
    form = Form(widened(coefficients(estimator), like), torch.zeros_like(like[..., 0]))
    return [Part(whole, form, 0)]


def _best(seen: Seen, *, weighted: bool, ratio: bool) -> Form:
    dropped = _unsafe(seen, weighted=weighted, ratio=ratio)
    return best_form(seen.moments, weighted=weighted, ratio=ratio, dropped=dropped)


def _unsafe(seen: Seen, *, weighted: bool, ratio: bool) -> Tensor:
    """Say of which controls `[*batch, controls]` the variance is infinite as far as draws can tell.

    λ* = 0 then, while a λ fitted to the draws seen would bend the value of all but a few samples.
    Pareto k̂ is above ½, and the tail is felt: a few draws carry the control's mean.
    """
    like, unsafe = seen.moments.mean, []
    for column in control_columns(like.shape[-1], weighted=weighted, ratio=ratio):
        tilt = influence(seen.moments, control_form(column, like, weighted=weighted), ratio=ratio)
        heavy = seen.tails.shape(max(column - 1, RATIO)) > trust.HEAVY
        unsafe.append(heavy & (seen.skewness(tilt).abs() > trust.SKEWED))
    return torch.stack(unsafe, -1) & (seen.moments.count >= trust.JUDGED)


def _averaged(parts: list[Part], whole: Seen, *, weighted: bool, ratio: bool) -> _Found:
    """Average the parts by their draws; errors add in quadrature."""
    draws = whole.moments.count
    value = error = squares = slant = centre = torch.zeros(())
    for seen, form, fitted in parts:
        moments = seen.moments
        share, free = moments.count / draws, max(moments.count - 1 - fitted, 0)
        tilt = influence(moments, form, ratio=ratio)
        spread = moments.squares(tilt)
        value = value + share * level(moments, form, ratio=ratio)
        error = error + share**2 * spread / (moments.count * free if free else math.nan)
        squares, slant = squares + spread, slant + share * tilt
        centre = centre + share * moments.at(tilt)
    flat = squares <= draws * (trust.ROUNDING * value) ** 2
    skewness = torch.where(flat, 0.0, whole.tails.skewness(slant, centre, squares))
    error = torch.where(value.isinf(), math.inf, error.clamp_min(0.0).sqrt())
    shape = _shape(whole.tails, slant, weighted=weighted)
    return _Found(value, error, slant, skewness, shape, flat)


def _shape(tails: Tails, slant: Tensor, *, weighted: bool) -> Tensor:
    """Return k̂ of a form `[*batch]`: that of the heaviest thing it is made of.

    Those are log r on either side (squared for k2), r, the weight and the controls. At its ends a
    term grows like one of them, and the index of a sum's tail is the largest of its parts'; the
    terms themselves need not grow with any, so that the draws kept need not be their extremes.
    """
    up: dict[str, Any] = {"end": WEIGHT - 1} if weighted else {"end": RATIO, "log": True}
    log_r = slant[..., 0] - slant[..., RATIO]  # r − 1 − log r has a share of it
    made_of = [(log_r, {"end": 0}), (log_r, up), (slant[..., RATIO], {"end": RATIO})]
    made_of += [(slant[..., 2], {**side, "power": 2.0}) for side in ({"end": 0}, up)]
    made_of += [(slant[..., c], {"end": c - 1}) for c in range(WEIGHT, slant.shape[-1])]
    shapes = [torch.where(part == 0, -math.inf, tails.shape(**side)) for part, side in made_of]
    return torch.stack(shapes).amax(0)


def judge(
    parts: list[Part],
    whole: Seen,
    rounding: Tensor,
    estimator: Estimator,
    *,
    weighted: bool,
    ratio: bool,
    cross_fit: bool,
) -> Estimate:
    """Write the `Estimate`: what was averaged, its bias and why, and what makes its error doubtful.

    rounding: `[*batch]`, what the log densities may be wrong by.
    """
    kind = {"weighted": weighted, "ratio": ratio}
    found = _averaged(parts, whole, **kind)
    draws = whole.moments.count
    doubts = trust.about_terms(draws, found.skewness, found.k_hat)
    same = "every draw gave the same term: no error can be seen"
    doubts.append(trust.Doubt(found.value, found.flat & (found.value != 0), same))
    with_r = (found.slant[..., RATIO] != 0) & ~found.flat
    doubts += [doubt.only(with_r) for doubt in _about_r(whole, found.error, rounding, **kind)]
    if estimator == "best":
        doubts += _about_known(whole, "log r", _column(0, whole), None, **kind)
    if weighted:
        known = None if ratio else 1.0
        plain = {"weighted": weighted, "ratio": False}
        doubts += _about_known(whole, "the weights", _column(WEIGHT, whole), known, **plain)
    if estimator == "k2":
        doubts.append(_bias_of_k2(whole, found.error, ratio=ratio))
    bias, why = _bias(estimator, ratio=ratio, cross_fit=cross_fit)
    estimate = trust.judged(found.value, found.error, draws, found.k_hat, doubts, bias, why)
    return replace(estimate, how=_how(parts, estimator))


def _how(parts: list[Part], estimator: Estimator) -> str:
    """Say what was averaged: for the best, which λ it was, and where r had to be left out."""
    if estimator != "best":
        return f"λ = {estimator:g}" if isinstance(estimator, int | float) else estimator
    multiples = torch.stack([part.form.coefficients[..., RATIO] for part in parts])
    out = int((multiples == 0).sum())
    if out == multiples.numel():
        return "k1, as q/p has a heavy tail"
    used = multiples[multiples != 0]
    ends = [f"{float(end):.3g}" for end in (used.amin(), used.amax())]
    text = f"best λ = {' to '.join(dict.fromkeys(ends))}"
    part = f"{out} of {multiples.numel()} parts"
    return f"{text}, k1 in {part}, as q/p has a heavy tail there" if out else text


def _bias(estimator: Estimator, *, ratio: bool, cross_fit: bool) -> tuple[Bias, str]:
    reasons = []
    if estimator == "k2":
        reasons.append("k2's expectation is half the mean of log² r, not KL (MATH 5.2)")
    if estimator == "best" and not cross_fit:
        reasons.append("λ is fitted to the draws it is used on: bias of order 1/draws")
    if ratio:
        reasons.append("self-normalised, a ratio of two means: bias of order 1/draws")
    return ("unknown" if reasons else "none"), "; ".join(reasons)


def _column(column: int, whole: Seen) -> Tensor:
    return widened((0.0,) * column + (1.0,), whole.moments.mean)


def _about_r(whole: Seen, error: Tensor, rounding: Tensor, **kind: bool) -> list[trust.Doubt]:
    """Doubt what leans on r: it may miss part of q, hide rare draws, or be a rounding error."""
    control = widened(CONTROL, whole.moments.mean)
    words = "rounding of the log densities adds {:.1f} standard errors: pass float64"
    return [
        *_about_known(whole, "q/p", control, 0.0, **kind),
        trust.about_unseen(whole.moments.count, error),
        trust.about_bias(0.5 * rounding**2, error, words),
    ]


def _about_known(
    whole: Seen,
    name: str,
    coefficients: Tensor,
    known: float | None,
    *,
    weighted: bool,
    ratio: bool,
) -> list[trust.Doubt]:
    """Doubt by a form whose mean is known; None when only its skewness says something."""
    moments = whole.moments
    form = Form(coefficients, torch.zeros_like(moments.mean[..., 0]) + (known or 0.0))
    tilt = influence(moments, form, ratio=ratio)
    error = (moments.squares(tilt) / (moments.count * (moments.count - 1))).sqrt()
    gap = level(moments, form, ratio=ratio)
    gap = torch.zeros_like(gap) if known is None else gap
    k_hat = _shape(whole.tails, coefficients, weighted=weighted)
    heavy = trust.may_be_heavy(k_hat, moments.count)
    return trust.about_identity(name, gap, error, whole.skewness(tilt), heavy)


def _bias_of_k2(whole: Seen, error: Tensor, *, ratio: bool) -> trust.Doubt:
    """Doubt k2 by its difference from the unbiased k3 on the same draws."""
    moments = whole.moments
    form = Form(widened((0.0, -1.0, 1.0), moments.mean), torch.zeros_like(error))
    squares = moments.squares(influence(moments, form, ratio=ratio))
    own = (squares / (moments.count * (moments.count - 1))).sqrt()
    bias = level(moments, form, ratio=ratio).abs() + own
    words = "the bias of k2, judged by k3 on the same draws, may be {:.1f} standard errors"
    return trust.about_bias(bias, error, words)
