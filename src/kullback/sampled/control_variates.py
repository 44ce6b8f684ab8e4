"""From summary statistics of draws to an `Estimate`: value, error, bias in words, warnings.

`choose_parts` says which linear form each of the draws is averaged with; `judge` averages.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import Bias, Estimate

from . import error_bars, limits
from .estimators import (
    CONTROL,
    RATIO,
    WEIGHT,
    Estimator,
    Form,
    Moments,
    best_form,
    coefficients,
    control_columns,
    control_form,
    fixed_form,
    influence,
    level,
    widened,
)
from .identity import RATIO_CAUSES, WEIGHT_CAUSES, Identity, Known, known_mean, missed_ratio
from .summary_stats import SummaryStats
from .tails import Tails

__all__ = ["Part", "choose_parts", "judge", "known_means"]


class Part(NamedTuple):
    """Some draws, the form they are averaged with, and how many numbers it took from them."""

    stats: SummaryStats
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
    halves: tuple[SummaryStats, SummaryStats],
    estimator: Estimator,
    *,
    weighted: bool,
    ratio: bool,
    cross_fit: bool,
    gap: Tensor | None = None,
) -> list[Part]:
    """Choose the form that each part of the draws is averaged with: fixed, or of least variance.

    "best" first drops the controls of infinite variance (`_unsafe`), then takes the best multiples
    of the others: for each half from the other half, or for all draws from all.

    Args:
        halves: Statistics of the two halves of the draws.
        estimator: "k1", "k2", "k3", a number λ, or "best".
        weighted: Whether the draws have importance weights.
        ratio: Whether the weights are normalised by their own mean.
        cross_fit: With "best", take each half's multiples from the other half.
        gap: `[*batch]`, the known mean of r − 1, r = q/p; 0 if None.

    Returns:
        Two `Part`s with cross-fitting, else one of all draws.

    Raises:
        ArgumentValueError: For an unknown estimator.
    """
    gap = torch.zeros_like(halves[0].moments.mean[..., 0]) if gap is None else gap
    kind: dict[str, Any] = {"weighted": weighted, "ratio": ratio, "gap": gap}
    if estimator == "best" and cross_fit:
        first, second = (_best(half, **kind) for half in halves)
        return [Part(halves[0], second, 0), Part(halves[1], first, 0)]
    whole = halves[0] + halves[1]
    like = whole.moments.mean
    if estimator == "best":
        fitted = len(control_columns(like.shape[-1], weighted=weighted, ratio=ratio))
        return [Part(whole, _best(whole, **kind), fitted)]
    return [Part(whole, fixed_form(coefficients(estimator), like, gap), 0)]


def _best(stats: SummaryStats, *, weighted: bool, ratio: bool, gap: Tensor) -> Form:
    kind: dict[str, Any] = {"weighted": weighted, "ratio": ratio, "gap": gap}
    return best_form(stats.moments, dropped=_unsafe(stats, **kind), **kind)


def _unsafe(stats: SummaryStats, *, weighted: bool, ratio: bool, gap: Tensor) -> Tensor:
    """Say of which controls `[*batch, controls]` the variance is infinite as far as draws can tell.

    λ* = 0 then, while a λ fitted to the draws X would bend the value of all but a few samples.
    Pareto k̂ is above ½, and a few draws carry the control's mean.
    """
    like, unsafe = stats.moments.mean, []
    for column in control_columns(like.shape[-1], weighted=weighted, ratio=ratio):
        form = control_form(column, like, weighted=weighted, gap=gap)
        tilt = influence(stats.moments, form, ratio=ratio)
        heavy = stats.tails.shape(max(column - 1, RATIO)) > limits.FINITE_VARIANCE_PARETO_K
        unsafe.append(heavy & (stats.skewness(tilt).abs() > limits.MAX_SKEWNESS_OF_MEAN))
    return torch.stack(unsafe, -1) & (stats.moments.count >= limits.MIN_DRAWS_FOR_PARETO_K)


def _averaged(parts: list[Part], whole: SummaryStats, *, weighted: bool, ratio: bool) -> _Found:
    """Average the parts by their draws; errors add in quadrature."""
    draws = whole.moments.count
    value = error = squares = slant = centre = torch.zeros(())
    for stats, form, fitted in parts:
        moments = stats.moments
        share, free = moments.count / draws, max(moments.count - 1 - fitted, 0)
        tilt = influence(moments, form, ratio=ratio)
        spread = moments.squares(tilt)
        value = value + share * level(moments, form, ratio=ratio)
        error = error + share**2 * spread / (moments.count * free if free else math.nan)
        squares, slant = squares + spread, slant + share * tilt
        centre = centre + share * moments.at(tilt)
    flat = squares <= draws * (limits.RELATIVE_ROUNDING * value.abs().clamp_min(1.0)) ** 2
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
    whole: SummaryStats,
    off: Tensor,
    estimator: Estimator,
    *,
    weighted: bool,
    ratio: bool,
    cross_fit: bool,
    finite_variance: Tensor | None = None,
) -> Estimate:
    """Write the `Estimate`: what was averaged, its bias and why, and what makes its error doubtful.

    off: `[*batch, 2]`, how far log r may be off for the rounding of its inputs: the mean over the
    draws, and the mean square. finite_variance: bool `[*batch]`, where the terms are known to have
    one.
    """
    kind = {"weighted": weighted, "ratio": ratio}
    found = _averaged(parts, whole, **kind)
    draws = whole.moments.count
    doubts = error_bars.about_skewed_terms(
        draws, found.skewness, found.k_hat, finite_variance=finite_variance
    )
    own = found.slant.shape[-1] - WEIGHT - weighted
    doubts.append(_all_the_same(found, whole.moments, controls=own))
    rounding = _floor(found.slant, whole.moments, off, weighted=weighted)
    with_r = (found.slant[..., RATIO] != 0) & ~found.flat
    doubts += [doubt.only(with_r) for doubt in _about_r(whole, found.error, rounding, **kind)]
    if estimator == "best":
        doubts.append(_about_column(whole, "log r", _column(0, whole.moments), **kind))
    if weighted:
        plain = {"weighted": weighted, "ratio": False}
        doubts.append(_about_column(whole, "the weights", _column(WEIGHT, whole.moments), **plain))
    if estimator == "k2":
        doubts.append(_bias_of_k2(whole, found.error, ratio=ratio))
    bias, why = _bias(estimator, ratio=ratio, cross_fit=cross_fit)
    estimate = error_bars.judged(
        found.value,
        found.error,
        draws,
        found.k_hat,
        doubts,
        bias=bias,
        why=why,
        skewness=error_bars.allowance(found.skewness, found.k_hat),
        rounding=rounding,
    )
    return replace(estimate, how=_how(parts, estimator))


def _all_the_same(found: _Found, moments: Moments, *, controls: int) -> error_bars.Doubt:
    """Refuse an error bar of 0 where the terms are one number: no scatter, nothing to infer from.

    A form that a user's controls leave without scatter, of log r that scatters, is exact.
    """
    column = _column(0, moments)
    rounding = limits.RELATIVE_ROUNDING
    least = moments.count * (rounding * moments.at(column).abs().clamp_min(1.0)) ** 2
    constant = moments.squares(column) <= least
    same = found.flat & (found.value.abs() > rounding) & (constant if controls else found.flat)
    words = (
        "every draw gave the same term, {:.4g}: no error can be computed. A ratio q/p that is the "
        "same everywhere and not 1 means that p was truncated (top-p, top-k) or that the draws "
        "miss part of q"
    )
    return error_bars.Doubt(found.value, same, words, refused=True)


def _floor(slant: Tensor, moments: Moments, off: Tensor, *, weighted: bool) -> Tensor:
    """Return the rounding floor of a form `[*batch]`: how far errors `d` in log r can move it.

    A term moves by `f' d + f'' d²/2`, with `f' = c₀ + c₁ (r − 1) + c₂ log r` and `f'' = c₁ r + c₂`;
    means of products are bounded by Cauchy and Schwarz. All errors may have one sign, as where a
    normalising constant was rounded, so that more draws do not lower it.
    """
    (mean, square), root = off.unbind(-1), off[..., 1].sqrt()
    on_log_r, on_r, on_square = (slant[..., column].abs() for column in range(3))
    control = widened(CONTROL, slant)
    weights = _mean_square(moments, _column(WEIGHT, moments)) if weighted else torch.ones_like(root)
    r = moments.at(control) + weights.sqrt()
    first = on_log_r * (weights.sqrt() * root if weighted else mean)
    first = first + on_r * _mean_square(moments, control).sqrt() * root
    first = first + on_square * _mean_square(moments, _column(0, moments)).sqrt() * root
    second = 0.5 * (on_r * r.clamp_min(0.0) + on_square * weights.sqrt()) * square
    return torch.where(square > 0, first + second, 0.0).nan_to_num(0.0, 0.0)


def _mean_square(moments: Moments, form: Tensor) -> Tensor:
    return (moments.squares(form) / max(moments.count, 1)).clamp_min(0.0) + moments.at(form) ** 2


def known_means(
    whole: SummaryStats,
    off: Tensor,
    gap: Tensor,
    *,
    log_scale: Tensor,
    time: Tensor | None = None,
    weighted: bool,
    ratio: bool,
) -> list[Identity]:
    """Test what must hold on these draws: the mean of q/p, `1 + gap`, and that of plain weights.

    off: as in `judge`. log_scale: `[*batch]`, the log of what weights were divided by. time:
    `[*batch]`, the autocorrelation time of the draws, 1 if None. Rounding of
    r: `E|r d| ≤ √(E r² E d²)`.
    """
    moments, ones = whole.moments, torch.ones_like(gap)
    control = widened(CONTROL, moments.mean)
    weight = _column(WEIGHT, moments) if weighted else control
    own = moments.at(weight) if weighted else ones  # the mean weight, of which r − 1 is counted
    tests = [("q/p", control, 0.0 if ratio else own, RATIO, 1.0 + gap, RATIO_CAUSES)]
    if weighted and not ratio:
        tests.append(("the weights", weight, 0.0, WEIGHT - 1, ones, WEIGHT_CAUSES))
    found = []
    for name, form, start, end, target, causes in tests:
        tilt = influence(moments, Form(form, torch.zeros_like(gap)), ratio=ratio)
        mean = level(moments, Form(form, torch.zeros_like(gap)), ratio=ratio) + start
        mean = mean + 1.0 if ratio else mean
        error = (moments.squares(tilt) / (moments.count * max(moments.count - 1, 1))).sqrt()
        error = error if time is None else error * time.sqrt()
        largest = (whole.tails.keys[..., end, 0] - log_scale).exp() / (own if ratio else 1.0)
        missed = missed_ratio(largest, whole.tails.shape(end), moments.count)
        size = (_mean_square(moments, form) + mean**2).sqrt()
        known = Known(
            mean, error, whole.skewness(tilt), moments.count, missed, size * off[..., 1].sqrt()
        )
        found.append(known_mean(known, name, expected=target, causes=causes))
    return found


def told_of(found: Estimate, identity: Identity) -> Estimate:
    """Say with k1 or k2, which need no mean of q/p, that it is not that of full supports.

    Below 1 the value is right if p was truncated, and wrong if a density is not normalised; above 1
    no supports explain it, and there is no error bar.
    """
    refuted = torch.as_tensor(identity.refuted)
    if not bool(refuted.any()):
        return found
    above = refuted & (torch.as_tensor(identity.mean) > torch.as_tensor(identity.expected))
    why = "right for p as it was sampled if p was truncated, else wrong"
    if bool(above.any()):
        found = found.without_error(identity.reason, where=above if above.dim() else None)
        why = "no truncation explains a mean of q/p above 1" if bool(above.all()) else why
    why = f"{why}: {identity.reason}"
    return replace(found, bias="unknown", why="; ".join(filter(None, [found.why, why])))


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


def _column(column: int, moments: Moments) -> Tensor:
    return widened((0.0,) * column + (1.0,), moments.mean)


def _about_r(
    whole: SummaryStats, error: Tensor, rounding: Tensor, **kind: bool
) -> list[error_bars.Doubt]:
    """Doubt what leans on r: it may miss part of q, hide rare draws, or be a rounding error."""
    control = widened(CONTROL, whole.moments.mean)
    words = "rounding of the log densities adds up to {:.1f} standard errors: pass float64"
    return [
        _about_column(whole, "q/p", control, **kind),
        error_bars.about_rare_events(whole.moments.count, error),
        error_bars.about_bias(rounding, error, words),
    ]


def _about_column(
    whole: SummaryStats, name: str, form: Tensor, *, weighted: bool, ratio: bool
) -> error_bars.Doubt:
    """Doubt by a part of the terms whose mean a few draws carry, which may not show in the sum."""
    tilt = influence(whole.moments, Form(form, torch.zeros_like(form[..., 0])), ratio=ratio)
    k_hat = _shape(whole.tails, form, weighted=weighted)
    return error_bars.about_control(name, whole.skewness(tilt), k_hat, whole.moments.count)


def _bias_of_k2(whole: SummaryStats, error: Tensor, *, ratio: bool) -> error_bars.Doubt:
    """Doubt k2 by its difference from the unbiased k3 on the same draws."""
    moments = whole.moments
    form = Form(widened((0.0, -1.0, 1.0), moments.mean), torch.zeros_like(error))
    squares = moments.squares(influence(moments, form, ratio=ratio))
    own = (squares / (moments.count * (moments.count - 1))).sqrt()
    bias = level(moments, form, ratio=ratio).abs() + own
    words = "the bias of k2, judged by k3 on the same draws, may be {:.1f} standard errors"
    return error_bars.about_bias(bias, error, words)
