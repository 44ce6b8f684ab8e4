"""The verdict: from the numbers of a diagnosis to a level and a sentence.

The limits are plain numbers, here and nowhere else; benchmarks/verdicts.py counts how often what
they say is right. Which to use: `diagnose`, which calls `judge` and `unsound`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kullback.sampled import effective_sample_size, pareto_k

__all__ = ["Level", "judge", "unsound"]

Level = Literal["trust", "partly", "do not trust"]

GOOD, FAIR = 0.2, 0.6  # of a bound, in sd of the draws and in log sd
HEAVY = 0.7  # k̂ from which reweighed draws and tails are not to be believed
EQUAL = 0.1  # sd of log weights (nats) below which all weights are nearly 1, whatever their k̂
SAME = 0.01  # and below which q is p
ELSEWHERE = 0.02  # share of mass on a peak that q does not have
SMALLER = 0.1  # log sd by which p must seem wider for the sentence to say so
SHAPE = 1.0  # residual and sd of log weights above which moments alone may be right
NEAR = 0.9  # ESS/n from which a heavy tail of the weights carries too little to matter
FEW = 100.0  # effective draws that resampling needs
ONE = 0.02  # share of all that one draw may have in it
FATTER = 1.7  # times q's mass that p must have in a tail, or q p's, for it to be named
NAMED = 3  # names a sentence has room for


def judge(
    draws: int,
    elsewhere: float,
    empty: int,
    *,
    k_hat: float,
    ess_fraction: float,
    sd_log_weights: float,
    residual: float | None,
    mean_bound: Tensor,
    log_sd_bound: Tensor,
    log_sd_shift: Tensor,
    tails: Tensor | None,
    names: Sequence[str],
    converged: bool,
) -> tuple[Level, str, tuple[str, ...]]:
    """Return the level, the sentence, and the reasons behind it.

    The arguments are those of `Diagnosis`; draws: n. elsewhere: share of mass on another peak.
    empty: draws where p has no mass. names: of the functions judged, or none.
    """
    means, sds = _largest(mean_bound), _largest(log_sd_bound)
    worst = max(means, sds)
    level: Level = "trust" if worst <= GOOD else "partly" if worst <= FAIR else "do not trust"
    other_shape = residual is not None and min(residual, sd_log_weights) > SHAPE
    other_shape = other_shape and ess_fraction < NEAR
    if level == "trust" and (other_shape or not converged):
        level = "partly"
    if elsewhere > ELSEWHERE:
        level = "do not trust"
    heavy = f"heavy-tailed weights: k-hat {k_hat:.2f}, from 0.7 on they mislead"
    reasons = _reasons(draws, elsewhere, empty, ess_fraction, residual, converged=converged)
    if k_hat >= HEAVY and sd_log_weights > EQUAL:
        reasons.insert((elsewhere > ELSEWHERE) + (not converged), heavy)
    smaller = _too_small(log_sd_bound, log_sd_shift)
    words = _sentence(level, mean_bound, log_sd_bound, names, smaller=smaller)
    if reasons and (level == "do not trust" or not converged):
        words = f"{words} ({reasons[0]})"
    if level != "do not trust":
        which = _tails(k_hat, sd_log_weights, _fat(tails, names))
        words += "; the shape is not p's" if other_shape else which
    return level, f"{words}.", tuple(reasons)


def unsound(log_weights: Tensor, *, pooled: bool) -> str:
    """Say why draws picked by these weights `[n]` would be unsound, or nothing.

    pooled: whether a law wider than q is among the draws, so that k̂ is no longer the question.

    >>> import torch
    >>> unsound(torch.arange(1000.0) / 1000, pooled=False)
    ''
    """
    effective = float(effective_sample_size(log_weights))
    if effective < FEW:
        return f"only {effective:,.0f} effective draws, {FEW:.0f} are needed"
    if pooled:
        largest = float(log_weights.softmax(0).max())
        return f"one draw would be {largest:.0%} of all" if largest > ONE else ""
    tail = float(pareto_k(log_weights))
    if tail >= HEAVY and effective < NEAR * len(log_weights):
        return f"the weights are heavy-tailed (k-hat {tail:.2f}, 0.7 or more)"
    return ""


def _reasons(
    draws: int,
    elsewhere: float,
    empty: int,
    ess_fraction: float,
    residual: float | None,
    *,
    converged: bool,
) -> list[str]:
    """List what speaks against the fit, most important first; heavy weights come third."""
    size = residual or 0.0
    said = {
        f"another peak, which q does not have, holds about {elsewhere:.0%} of p": elsewhere
        > ELSEWHERE,
        "the fit has not converged": not converged,
        f"log p/q is not quadratic: residual of the scores {size:.2g}": size > GOOD,
        f"{ess_fraction * draws:,.0f} effective draws of {draws:,}": ess_fraction < 0.5,
        f"p has no mass at {empty} of {draws:,} draws of q": empty > 0,
    }
    return [text for text, applies in said.items() if applies]


def _sentence(
    level: Level, mean_bound: Tensor, log_sd_bound: Tensor, names: Sequence[str], *, smaller: bool
) -> str:
    """Say how good means and standard deviations are, those of a few functions apart."""
    means, sds = _largest(mean_bound), _largest(log_sd_bound)
    poor = torch.maximum(mean_bound, log_sd_bound).nan_to_num(math.inf, math.inf) > GOOD
    few = len(names) > 0 and 0 < int(poor.sum()) <= NAMED and not bool(poor.all())
    apart = ", ".join(name for name, bad in zip(names, poor.tolist(), strict=False) if bad)
    others = _known(_largest(mean_bound[~poor]), _largest(log_sd_bound[~poor])) if few else ""
    if level != "do not trust":
        but = f"{others}, but {apart} only to {_round(means)} sd and {_percent(sds)}"
        return f"{level.capitalize()}: {but if few else _known(means, sds)}"
    bounds = {"means": means, "standard deviations": sds}
    lost = [name for name, bound in bounds.items() if bound > FAIR]
    what = " or ".join(lost) if lost else "any of it"
    way = " (they seem too small)" if lost == ["standard deviations"] and smaller else ""
    if lost and few:
        return f"Do not trust {what} of {apart}{way}; all else: {others}"
    kept = _known(means, sds, most=FAIR)
    return f"Do not trust {what}{way}" + (f"; {kept}" if kept else "")


def _known(means: float, sds: float, *, most: float = math.inf) -> str:
    """Say what is known to no worse than `most`."""
    said = {
        f"means to about {_round(means)} sd": means,
        f"standard deviations to about {_percent(sds)}": sds,
    }
    return ", ".join(text for text, bound in said.items() if bound <= most)


def _tails(k_hat: float, spread: float, fat: str) -> str:
    if k_hat < 0.5 or spread <= SAME or math.isnan(k_hat):
        return ""
    if k_hat < HEAVY:
        return "; less in the tails"
    return f"; do not trust the tails{fat}" if spread > EQUAL else "; the far tails are not checked"


def _fat(tails: Tensor | None, names: Sequence[str]) -> str:
    """Name the functions whose tails are wrong, where they are few."""
    if tails is None or not names:
        return ""
    wrong = (tails.log().abs() > math.log(FATTER)).tolist()
    which = [name for name, bad in zip(names, wrong, strict=True) if bad]
    return f" of {', '.join(which)}" if 0 < len(which) <= NAMED else ""


def _too_small(bound: Tensor, shift: Tensor) -> bool:
    worst = int(bound.nan_to_num(math.inf, math.inf).argmax())
    return bool(shift[worst] > SMALLER)


def _largest(bound: Tensor) -> float:
    return float(bound.nan_to_num(math.inf, math.inf).max())


def _round(value: float) -> str:
    """Round up to hundredths below 0.1 and to tenths above: a bound is never understated."""
    if math.isinf(value):
        return "inf"
    step = 100 if value <= 0.1 else 10
    return f"{math.ceil(value * step - 1e-9) / step:g}"


def _percent(log_factor: float) -> str:
    if log_factor > 2:
        return "more than 600 %"
    return f"{math.ceil(100 * math.expm1(log_factor) - 1e-9)} %"
