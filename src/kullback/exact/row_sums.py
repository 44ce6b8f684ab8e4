"""The sums behind `tables`, on `Table`s already read: `[n, outcomes]` → `[n]`, in nats.

Which to use: none of these directly; `tables` is the face. `alpha_sum` is the one family that KL
(α = 1), χ² (α = 2), Hellinger (α = ½), Tsallis and Rényi are read from.

Each divergence is a sum of terms ≥ 0 (`p·log(p/q) − p + q` for KL), built from the difference
`q − p` and the log ratio `log q/p`, both without cancellation: a table of probabilities gives
the difference exactly, a table of logs gives the ratio. Rounding below zero is lifted to zero.
"""

import math

import torch
from torch import Tensor

from .log_tables import Table

__all__ = ["alpha_sum", "cross_sum", "jeffreys_sum", "js_sum", "renyi_sum"]

SMALL = {torch.float32: 0.05, torch.float64: 2e-3}  # where a series of 4 terms is the more exact


def cross_sum(p: Table, q: Table) -> Tensor:
    """Return `−Σ p log q`, with 0·log 0 = 0 and +inf where q lacks mass that p has."""
    if q.full:
        return 0 - (p.prob * q.log).sum(-1)
    terms = p.prob * q.log.masked_fill(~q.has, 0)
    return 0 - terms.masked_fill(p.has & ~q.has, -math.inf).sum(-1)


def alpha_sum(p: Table, q: Table, alpha: float) -> Tensor:
    """Return `Σ (p^α q^(1−α) − α p − (1−α) q) / (α − 1)`, or KL at α = 1; every term is ≥ 0.

    With `l = log q/p` and `β = 1 − α` a term is `(q − p) − p·(e^(β l) − 1)/β`, and the fraction
    tends to l as α → 1. For small l it is `p·[(e^l − 1 − l) − (e^(β l) − 1 − β l)/β]`, where the
    two parts that cancel are gone.
    """
    beta = 1.0 - alpha
    live, a, b = _both(p, q)
    log_ratio = _log_ratio(a, b)
    powers = _powers(a, log_ratio, beta) if beta else a.prob * log_ratio
    terms = (_difference(a, b) - powers).clamp(min=0)
    terms = _near_terms(terms, a.prob, log_ratio, beta)
    only_p = math.inf if alpha >= 1 else alpha / beta
    return _with_the_rest(terms, live, p, q, only_p, 1.0).sum(-1)


def _near_terms(terms: Tensor, mass: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    """Put `p·[(e^l − 1 − l) − (e^(β l) − 1 − β l)/β]` for the terms of small l, by its series."""
    largest = SMALL[log_ratio.dtype] / max(1.0, abs(beta))
    near = log_ratio.clamp(-largest, largest)
    factors = [(1 - beta ** (n - 1)) / math.factorial(n) for n in (2, 3, 4, 5)]
    series = factors[0] + near * (factors[1] + near * (factors[2] + near * factors[3]))
    return torch.where(near == log_ratio, mass * near * near * series, terms)


def jeffreys_sum(p: Table, q: Table) -> Tensor:
    """Return `Σ (q − p) log(q/p)`, +inf where one table lacks mass that the other has."""
    live, a, b = _both(p, q)
    terms = _difference(a, b) * _log_ratio(a, b)
    return _with_the_rest(terms, live, p, q, math.inf, math.inf).sum(-1)


def js_sum(p: Table, q: Table, weight: float) -> Tensor:
    """Return `w KL(p‖m) + (1−w) KL(q‖m)`, with `log m/p = log1p((1−w)(q − p)/p)` and its like.

    An outcome that only p has adds `−w log w · p`.
    """
    rest = 1.0 - weight
    live, a, b = _both(p, q)
    step = (weight * rest) * _difference(a, b)
    over_p = step - weight * a.prob * torch.log1p(rest * _relative(a, b))
    over_q = step + rest * b.prob * torch.log1p(weight * _relative(b, a))
    terms = (over_p - over_q).clamp(min=0)
    only_p, only_q = -weight * math.log(weight), -rest * math.log(rest)
    return _with_the_rest(terms, live, p, q, only_p, only_q).sum(-1)


def renyi_sum(p: Table, q: Table, alpha: float) -> Tensor:
    """Return the Rényi divergence: through the α-family where tables are close, else in logs."""
    if alpha == 1:
        return alpha_sum(p, q, 1.0)
    live, a, b = _both(p, q)
    missing = p.has & ~q.has
    if alpha == math.inf:
        gaps = -_log_ratio(a, b)
        gaps = gaps if live is None else gaps.masked_fill(~live, -math.inf)
        return gaps.masked_fill(missing, math.inf).amax(-1)
    powers = a.log + (1.0 - alpha) * _log_ratio(a, b)
    powers = powers if live is None else powers.masked_fill(~live, -math.inf)
    powers = powers.masked_fill(missing, math.inf) if alpha > 1 else powers
    excess = (alpha - 1) * alpha_sum(p, q, alpha)
    close = excess.abs() < 0.5
    log_sum = torch.where(close, torch.where(close, excess, 0).log1p(), _log_sum_exp(powers))
    return log_sum / (alpha - 1)


def _both(p: Table, q: Table) -> tuple[Tensor | None, Table, Table]:
    """Return where both tables have mass, and the tables with all other masses set to 1."""
    if p.full and q.full:
        return None, p, q
    live = p.has & q.has
    return live, p.where(live), q.where(live)


def _with_the_rest(
    terms: Tensor, live: Tensor | None, p: Table, q: Table, only_p: float, only_q: float
) -> Tensor:
    """Fill in what one table lacks: `only_p · p` or `only_q · q`; a factor +inf is a constant."""
    if live is None:
        return terms
    rest = torch.where(p.has, _scaled(p.prob, only_p), _scaled(q.prob, only_q))
    return torch.where(live, terms, rest.masked_fill(~p.has & ~q.has, 0))


def _scaled(mass: Tensor, factor: float) -> Tensor:
    return mass * factor if math.isfinite(factor) else torch.full_like(mass, factor)


def _log_ratio(p: Table, q: Table) -> Tensor:
    """Return `log q/p`; from masses as `±log1p(|q − p| / min(p, q))`, exact where p ≈ q.

    At q = p, `fmin` gives its gradient to p and `relu` has none, so that first and second
    derivatives are those of the side q ≥ p. (`torch.where` would do; it is ten times slower.)
    """
    if not p.by_mass:
        return q.log - p.log
    steps = (q.prob - p.prob) / torch.fmin(p.prob, q.prob).clamp(min=_tiny(p.prob))
    return torch.log1p(steps.clamp(min=0)) - torch.log1p(torch.relu(-steps))


def _difference(p: Table, q: Table) -> Tensor:
    """Return `q − p`; from logs as `p·(q/p − 1)` where q ≤ p and `q·(1 − p/q)` where q > p."""
    if p.by_mass:
        return q.prob - p.prob
    log_ratio = q.log - p.log
    down = p.prob * torch.expm1(log_ratio.clamp(max=0))
    return down - q.prob * torch.expm1(-torch.relu(log_ratio))


def _relative(p: Table, q: Table) -> Tensor:
    """Return `q/p − 1`, held below overflow (a mass p that small adds nothing that shows)."""
    if p.by_mass:
        return (q.prob - p.prob) / p.prob.clamp(min=_tiny(p.prob))
    return torch.expm1((q.log - p.log).clamp(max=-math.log(_tiny(p.log))))


def _powers(p: Table, log_ratio: Tensor, beta: float) -> Tensor:
    """Return `(p^α q^β − p) / β`; an overflow is +inf (or −inf), a constant."""
    scaled = beta * log_ratio
    near = p.prob * torch.expm1(scaled.clamp(-1, 1))
    powers = p.log + scaled
    over = powers > math.log(torch.finfo(powers.dtype).max)
    powers = powers.masked_fill(over, 0).exp().masked_fill(over, math.inf)
    return torch.where(scaled.abs() <= 1, near, powers - p.prob) / beta


def _log_sum_exp(powers: Tensor) -> Tensor:
    """Return logsumexp over the last axis whose gradient is 0, not NaN, where it is ±inf."""
    over = (powers == math.inf).any(-1)
    none = (powers == -math.inf).all(-1)
    finite = powers.masked_fill((over | none)[..., None], 0).logsumexp(-1)
    return finite.masked_fill(over, math.inf).masked_fill(none, -math.inf)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
