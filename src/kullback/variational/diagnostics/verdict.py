"""The verdict: from the evidence about a fit to bounds on its moments, a level and a sentence.

Which to use: `diagnose`, which calls `judge` and `unsound`. `moment_bounds` is a function of
`Evidence` and `Limits` alone. benchmarks/verdicts.py counts how often what they say is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from kullback.sampled import MAX_PARETO_K, effective_sample_size, pareto_k
from kullback.variational import limits as thresholds
from kullback.variational.limits import LIMITS, Limits

from .evidence import Evidence, Shift

__all__ = [
    "Level",
    "MomentBounds",
    "Verdict",
    "judge",
    "moment_bounds",
    "of_improper",
    "unsound",
    "with_edges",
]


@dataclass(frozen=True, slots=True)
class MomentBounds:
    """How far p's moments seem to be from q's, and how far at most: mean and log sd, each `[m]`."""

    shift: Shift
    mean: Tensor
    log_sd: Tensor


def moment_bounds(evidence: Evidence, limits: Limits = LIMITS) -> MomentBounds:
    """Return the likely shift of the moments and bounds on it.

    With pooled draws of q and wider proposals a bound is |shift| plus its error bar. With draws of
    q alone it is the larger of weights' and scores' where the weights may mislead, from none of it
    at k̂ = 0.2 to all of it at 1/2, plus the residual squared: what a tilt of that size that is not
    quadratic moves, to second order, while to first order it moves nothing. The residual counts as
    at most twice the sd of the log weights, which it is for a smooth tilt along one axis, and by
    less than its square where k̂ is below 0.7 and the weights already include most of that shift;
    nor is it more than Cauchy and Schwarz allow, `|E_p f − E_q f| ≤ sd_q(f) √χ²`, χ² = n/ESS − 1.
    Mass found elsewhere is added. So is what tails of index ν
    leave out: a mean of n draws of f, E|f|^s = ∞ from s = ν on, errs by n^(1/ν - 1) where ν < 2, a
    variance by n^(2/ν - 1) where ν < 4, in the scale of f, and there is none at ν ≤ 1 and ν ≤ 2
    (stable laws: Feller 1971, volume 2, XVII.5). A draw beyond all others is not in the error bar.
    Errors: Owen (2013), "Monte Carlo theory, methods and examples", eq. 9.9, for reweighted
    moments.
    """
    moved = _within_reach(evidence, limits)
    if evidence.tail_index is not None:
        mean, log_sd = (
            bound + _of_tails(evidence.tail_index, order, evidence.draws)
            for order, bound in ((1, moved.mean), (2, moved.log_sd))
        )
        moved = MomentBounds(moved.shift, mean, log_sd)
    if evidence.away is None:
        return moved
    share = evidence.elsewhere
    wide = 0.5 * torch.log1p(share * (1 - share) * evidence.away**2)
    mean = moved.mean + share * evidence.away.abs()
    return MomentBounds(moved.shift, mean, moved.log_sd + wide)


def _of_tails(index: Tensor, order: int, draws: int) -> Tensor:
    """Return n^(order/ν − 1) where ν is between `order` and twice that, inf below, 0 above."""
    error = draws ** (order / index - 1)
    return torch.where(index <= order, math.inf, torch.where(index < 2 * order, error, 0.0))


def _within_reach(evidence: Evidence, limits: Limits) -> MomentBounds:
    """Return the bounds for the part of p that q or the wider proposals reach."""
    if evidence.pooled is not None:
        mean, log_sd = _reach(evidence.pooled, limits)
        return MomentBounds(evidence.pooled, mean, log_sd)
    mean, log_sd = _reach(evidence.own, limits)
    heavy = _between(evidence.k_hat, limits.light, limits.heavy)
    slack = heavy * min(_second_order(evidence, limits), _cauchy_schwarz(evidence))
    if evidence.pushed is None:
        slack = math.inf if evidence.scored and heavy > 0 else slack
        return MomentBounds(evidence.own, mean + slack, log_sd + slack)
    by_scores = _reach(evidence.pushed, limits)
    mean = mean + heavy * (by_scores[0] - mean).clamp_min(0.0) + slack
    log_sd = log_sd + heavy * (by_scores[1] - log_sd).clamp_min(0.0) + slack
    return MomentBounds(evidence.own, mean, log_sd)


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _cauchy_schwarz(evidence: Evidence) -> float:
    return math.sqrt(max(0.0, 1.0 / evidence.ess_fraction - 1.0))


def _second_order(evidence: Evidence, limits: Limits) -> float:
    """Return the residual squared, held down to 1/3 where the weights are light-tailed."""
    residual = math.inf if evidence.residual is None else evidence.residual
    size = min(2 * evidence.sd_log_weights, residual) ** 2
    included = 1.0 - _between(evidence.k_hat, limits.heavy, limits.misled)
    return size if included == 0 else 1.0 / (1.0 / max(size, 1e-300) + 3.0 * included)


def _reach(shift: Shift, limits: Limits) -> tuple[Tensor, Tensor]:
    """Return |shift| plus as many standard errors as leave few failures among all functions."""
    many = NormalDist().inv_cdf(1 - limits.miss / (4 * len(shift.mean)))
    return (
        shift.mean.abs() + many * shift.mean_error,
        shift.log_sd.abs() + many * shift.log_sd_error,
    )


Level = Literal["trust", "partly", "do not trust"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level, the sentence that goes with it, the reasons behind it, and the bounds."""

    level: Level
    sentence: str
    reasons: tuple[str, ...]
    bounds: MomentBounds


def judge(evidence: Evidence, limits: Limits = LIMITS) -> Verdict:
    """Return the level, the sentence, the reasons, most important first, and the bounds.

    "trust": every bound is at most 0.2, in sd of the draws and in log sd. "partly": at most 0.6;
    or at most 0.2 where the shape of q is not p's, the fit has not converged, or more than 2 % of
    p's mass is where q has less than a hundredth of p's density: those bounds count that mass, and
    no draw of q is there. Else "do not trust", as well as with bounds above 0.2 beside such mass.
    Where p does not decay along a scale parameter there are no moments, and no bound is finite.
    """
    if evidence.broken or evidence.empty == evidence.draws:
        return _unusable(evidence)
    if evidence.endless:
        return _untrusted(_ENDLESS, evidence, evidence.own.mean.new_full((), math.inf))
    bounds = moment_bounds(evidence, limits)
    worst = max(_largest(bounds.mean), _largest(bounds.log_sd))
    missed = evidence.unreached > limits.unreached
    level: Level = "do not trust"
    if worst <= (limits.good if missed else limits.fair):
        level = "trust" if worst <= limits.good else "partly"
    if missed or _other_shape(evidence, limits) or not evidence.converged:
        level = "partly" if level == "trust" else level
    reasons = _reasons(evidence, limits)
    words = _sentence(level, bounds, evidence.names, limits)
    if reasons and (level == "do not trust" or missed or not evidence.converged):
        words = f"{words} ({reasons[0]})"
    if level != "do not trust":
        words += "; the shape is not p's" if _other_shape(evidence, limits) else _tails(evidence)
    return Verdict(level, f"{words}.", tuple(reasons), bounds)


_ENDLESS = (
    "an improper target, as far as p can be followed (is the prior proper?): its marginal does not "
    "decay along a scale parameter"
)


def _unusable(evidence: Evidence) -> Verdict:
    """Return the verdict on weights that are NaN or infinite, or all zero."""
    what = "log p is -inf at every draw: q lies where p has no mass"
    if evidence.broken:
        what = f"log p is NaN or +inf at {evidence.broken} of {evidence.draws:,} draws"
    return _untrusted(what, evidence, evidence.own.mean.nan_to_num(math.inf))


def of_improper(reason: str, evidence: Evidence) -> Verdict:
    """Return the verdict on a fit to an improper target: no moments, so no finite bound."""
    return _untrusted(reason, evidence, evidence.own.mean.new_full((), math.inf))


def with_edges(verdict: Verdict, declare: str) -> Verdict:
    """Add to the verdict which constraint would remove the edge beyond which log p is -inf."""
    text = f"log p is -inf beyond an edge, where q has draws: {declare}"
    words = f"{verdict.sentence.removesuffix('.')}. {text[0].upper()}{text[1:]}."
    return replace(verdict, sentence=words, reasons=(*verdict.reasons, text))


def _untrusted(what: str, evidence: Evidence, lost: Tensor) -> Verdict:
    """Return "do not trust" for one reason; lost: the bounds, `[m]` or one for all."""
    lost = lost.expand_as(evidence.own.mean)
    return Verdict(
        "do not trust", f"Do not trust: {what}.", (what,), MomentBounds(evidence.own, lost, lost)
    )


def _other_shape(evidence: Evidence, limits: Limits) -> bool:
    """Say whether p/q varies so much, and not quadratically, that moments alone may be right."""
    near = limits.near if evidence.pooled is None else limits.pooled_near
    if evidence.residual is None or evidence.ess_fraction >= near:
        return False
    return min(evidence.residual, evidence.sd_log_weights) > limits.shape


def unsound(log_weights: Tensor, *, pooled: bool) -> str:
    """Say why draws picked by these weights `[n]` would be unsound, or nothing.

    pooled: whether a distribution wider than q is among the draws, so that k̂ is no longer the
    question.

    >>> import torch
    >>> unsound(torch.arange(1000.0) / 1000, pooled=False)
    ''
    """
    effective = float(effective_sample_size(log_weights))
    if effective < thresholds.MIN_EFFECTIVE_DRAWS:
        needed = thresholds.MIN_EFFECTIVE_DRAWS
        return f"only {effective:,.0f} effective draws, {needed:.0f} are needed"
    if pooled:
        largest = float(log_weights.softmax(0).max())
        return (
            f"one draw would be {largest:.0%} of all" if largest > thresholds.MAX_DRAW_SHARE else ""
        )
    tail = float(pareto_k(log_weights))
    if tail >= MAX_PARETO_K and effective < LIMITS.near * len(log_weights):
        return f"the weights are heavy-tailed (k-hat {tail:.2f}, {MAX_PARETO_K} or more)"
    return ""


def _reasons(evidence: Evidence, limits: Limits) -> list[str]:
    """List what speaks against the fit, most important first."""
    e, size = evidence, evidence.residual or 0.0
    index = math.inf if e.tail_index is None else float(e.tail_index.min())
    said = {
        f"p falls by t^-{index + 1:.2g} far out: it has no variance": index <= 2,
        f"p falls by t^-{index + 1:.2g} far out: few draws make up its variance": 2 < index < 4,
        f"another peak, which q does not have, holds about {e.elsewhere:.0%} of p": e.elsewhere
        > thresholds.NAMED_ELSEWHERE,
        f"q has next to no draws where {e.unreached:.0%} of p's mass is": e.unreached
        > limits.unreached,
        "the fit has not converged": not e.converged,
        f"heavy-tailed weights: k-hat {e.k_hat:.2f}, from {MAX_PARETO_K} on they mislead": e.k_hat
        >= MAX_PARETO_K
        and e.sd_log_weights > thresholds.EQUAL_WEIGHTS,
        f"log p/q is not quadratic: residual of the scores {size:.2g}": size > limits.good,
        f"{e.ess_fraction * e.draws:,.0f} effective draws of {e.draws:,}": e.ess_fraction < 0.5,
        f"p has no mass at {e.empty} of {e.draws:,} draws of q": e.empty > 0,
    }
    return [text for text, applies in said.items() if applies]


def _sentence(level: Level, bounds: MomentBounds, names: Sequence[str], limits: Limits) -> str:
    """Say how good means and standard deviations are, those of a few functions apart."""
    means, sds = _largest(bounds.mean), _largest(bounds.log_sd)
    larger = bounds.mean.maximum(bounds.log_sd)
    poor = larger.nan_to_num(math.inf, math.inf) > limits.good
    few = len(names) > 0 and 0 < int(poor.sum()) <= thresholds.MAX_NAMES and not bool(poor.all())
    apart = ", ".join(name for name, bad in zip(names, poor.tolist(), strict=False) if bad)
    others = _known(_largest(bounds.mean[~poor]), _largest(bounds.log_sd[~poor])) if few else ""
    if level != "do not trust":
        but = f"{others}, but {apart} only to {_round(means)} sd and {_percent(sds)}"
        return f"{level.capitalize()}: {but if few else _known(means, sds)}"
    found = {"means": means, "standard deviations": sds}
    lost = [name for name, bound in found.items() if bound > limits.fair]
    what = " or ".join(lost) if lost else "the fit as a whole"
    smaller = lost == ["standard deviations"] and _too_small(bounds)
    way = " (they seem too small)" if smaller else ""
    if lost and few:
        return f"Do not trust {what} of {apart}{way}; all else: {others}"
    kept = _known(means, sds, most=limits.fair)
    seem = "" if lost else "where q has draws, "
    return f"Do not trust {what}{way}" + (f"; {seem}{kept}" if kept else "")


def _known(means: float, sds: float, *, most: float = math.inf) -> str:
    """Say what is known to no worse than `most`."""
    said = {
        f"means to about {_round(means)} sd": means,
        f"standard deviations to about {_percent(sds)}": sds,
    }
    return ", ".join(text for text, bound in said.items() if bound <= most)


def _tails(evidence: Evidence) -> str:
    k_hat, spread = evidence.k_hat, evidence.sd_log_weights
    if k_hat < LIMITS.heavy or spread <= thresholds.IDENTICAL_WEIGHTS or math.isnan(k_hat):
        return ""
    if k_hat < MAX_PARETO_K:
        return "; less in the tails"
    fat = _fat(evidence.tails, evidence.names)
    return (
        f"; do not trust the tails{fat}"
        if spread > thresholds.EQUAL_WEIGHTS
        else "; the far tails are not checked"
    )


def _fat(tails: Tensor | None, names: Sequence[str]) -> str:
    """Name the functions whose tails are wrong, where they are few."""
    if tails is None or not names:
        return ""
    wrong = (tails.log().abs() > math.log(thresholds.NAMED_TAIL_RATIO)).tolist()
    which = [name for name, bad in zip(names, wrong, strict=True) if bad]
    return f" of {', '.join(which)}" if 0 < len(which) <= thresholds.MAX_NAMES else ""


def _too_small(bounds: MomentBounds) -> bool:
    worst = int(bounds.log_sd.nan_to_num(math.inf, math.inf).argmax())
    return bool(bounds.shift.log_sd[worst] > thresholds.NAMED_LOG_SD)


def _largest(bound: Tensor) -> float:
    return float(bound.nan_to_num(math.inf, math.inf).max())


def _round(value: float) -> str:
    """Round up to hundredths below 0.1 and to tenths above: a bound is never understated."""
    if math.isinf(value):
        return "inf"
    step = 100 if value <= thresholds.FINE_ROUNDING else 10
    return f"{math.ceil(value * step - 1e-9) / step:g}"


def _percent(log_factor: float) -> str:
    if log_factor > thresholds.MAX_LOG_SD_SHOWN:
        return "more than 600 %"
    return f"{math.ceil(100 * math.expm1(log_factor) - 1e-9)} %"
