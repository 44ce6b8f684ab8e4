"""Closed forms between discrete families: sums of `relative_entropy` terms, in float64.

Which to use: `PAIRS` through `closed_forms.kl`; `table_of` for the finite table behind a Bernoulli
or a categorical distribution.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentValueError, message, require
from kullback.exact import limits
from kullback.exact.bregman import (
    log_excess,
    log_ratio,
    of_log_gamma,
    of_softplus,
    relative_entropy,
)
from kullback.exact.table_sums import Table, alpha_sum

from .pair import Pair, float_dtype, in_float64

__all__ = [
    "PAIRS",
    "bernoulli_kl",
    "log_binomial",
    "result_dtype",
    "table_of",
    "tables_of",
    "with_nan",
]


def table_of(distribution: Any) -> Table:
    """Return the table `[*batch, outcomes]` of a Bernoulli-like or categorical distribution.

    It is read in float64 from what the user gave, probabilities or logits: the other one has been
    clamped by torch, so that a probability of 0 has a finite logit there.

    >>> table_of(families.Bernoulli(torch.tensor(0.25))).prob
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    inner = getattr(distribution, "_categorical", distribution)
    by_logits = _by_logits(inner)
    given = _wide(inner.logits if by_logits else inner.probs)
    if isinstance(inner, families.Categorical):
        return Table(_normalised(given, inner, by_logits=by_logits), by_mass=not by_logits)
    if by_logits:
        logs = torch.nn.functional.logsigmoid
        return Table(torch.stack([logs(-given), logs(given)], -1), by_mass=False)
    return Table(torch.stack([1 - given, given], -1), by_mass=True)


def _by_logits(inner: Any) -> bool:
    held = vars(inner)
    return held.get("logits") is held.get("_param", held.get("probs", held.get("logits")))


def _wide(given: Tensor) -> Tensor:
    return given if given.device.type == "mps" else given.double()


def _normalised(given: Tensor, inner: Any, *, by_logits: bool) -> Tensor:
    """Normalise again what torch normalised in less than float64, whose sum is off by its eps."""
    if inner._param.dtype == given.dtype:
        return given
    return given.log_softmax(-1) if by_logits else given / given.sum(-1, keepdim=True)


def tables_of(p: Any, q: Any) -> tuple[Table, Table]:
    """Return both tables, broadcast, in logs unless both were given as probabilities."""
    first, second = table_of(p), table_of(q)
    by_mass = first.by_mass and second.by_mass
    sizes = (first.given.shape[-1], second.given.shape[-1])
    require(sizes[0] == sizes[1], "p and q", "the same outcomes", sizes)
    both = (first.given, second.given) if by_mass else (first.log, second.log)
    wide = torch.broadcast_tensors(*both)  # type: ignore[no-untyped-call]
    return Table(wide[0], by_mass=by_mass), Table(wide[1], by_mass=by_mass)


def result_dtype(*distributions: Any) -> torch.dtype:
    """Return the dtype that the parameters of Bernoulli-like or categorical distributions share."""
    given = [getattr(d, "_categorical", d) for d in distributions]
    return float_dtype(*((d.logits if _by_logits(d) else d.probs).dtype for d in given))


def _table_kl(p: Any, q: Any) -> Tensor:
    """`Σ p log(p/q)` over the finite table; masked logits and zeros as in `tables.kl`.

    Where all log ratios are small, `log Σ p e^(l − m)`, m their mean under p: it does not see that
    the sums of both tables are off from 1 by rounding.
    """
    first, second = tables_of(p, q)
    value = alpha_sum(first, second, 1.0)
    gaps = _log_steps(first, second)
    near = ((gaps.abs() <= 1) & (first.has == second.has)).all(-1)
    value = with_nan(value, first, second)
    if not bool(near.any()):
        return value
    shares = first.prob / first.prob.sum(-1, keepdim=True)
    gaps = torch.where(near[..., None], gaps, 0)
    centred = gaps - (shares * gaps).sum(-1, keepdim=True)
    centred_kl = torch.log1p((shares * log_excess(centred)).sum(-1))
    return torch.where(near & ~value.isnan(), centred_kl, value)


def with_nan(value: Tensor, *tables: Table) -> Tensor:
    """Return NaN for a table that holds one, which sums take for an outcome without mass.

    >>> rows = torch.tensor([[0.5, 0.5], [0.5, math.nan]])
    >>> with_nan(torch.zeros(2), Table(rows, by_mass=True))
    tensor([0., nan])
    """
    missing = sum((table.given.isnan().any(-1) for table in tables), start=value.isnan())
    return value.masked_fill(missing, math.nan)


def _log_steps(p: Table, q: Table) -> Tensor:
    """Return `log q/p` where both have mass, 0 elsewhere."""
    live = p.has & q.has
    a, b = p.where(live), q.where(live)
    return log_ratio(b.prob, a.prob) if p.by_mass else b.log - a.log


def bernoulli_kl(p: Any, q: Any) -> Tensor:
    """Return `Σ p log(p/q)` of one trial, in float64, for families with `probs` and `logits`.

    From the difference of what was given: of the probabilities, which a table of p and 1 − p
    would round; of the logits, as the Bregman divergence of `log(1 + e^η)`, where they are near.
    """
    if isinstance(p, families.Multinomial):
        return _table_kl(p, q)
    kinds = _by_logits(p), _by_logits(q)
    if kinds == (False, False):
        first, second = _wide(p.probs), _wide(q.probs)
        first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        step = second - first
        hits = relative_entropy(first, second, step=step)
        return hits + relative_entropy(1 - first, 1 - second, step=-step)
    value = _table_kl(p, q)
    if kinds != (True, True):
        return value
    base, step = _wide(p.logits), _wide(q.logits) - _wide(p.logits)
    near = (step.abs() <= 1) & base.isfinite()
    bend = of_softplus(torch.where(near, base, 0), torch.where(near, step, 0))
    return torch.where(near, bend, value)


def _in_their_dtype(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda p, q: function(p, q).to(result_dtype(p, q))


def _binomial(p: Any, q: Any) -> Tensor:
    """n·KL(Bernoulli), +inf where p has more trials than q; where it has fewer, the sum itself."""
    counts_p, counts_q = p.total_count, q.total_count
    sure = p.probs == 0  # a point mass at 0 counts no trials
    trial = bernoulli_kl(p, q)
    value = _times(torch.where(sure, counts_q, counts_p), trial)
    value = value.masked_fill((counts_p > counts_q) & ~sure, math.inf)
    fewer = (counts_p < counts_q) & ~sure
    if not bool(fewer.any()):
        return value
    summed = _summed_binomials(p, q)
    summed = summed.masked_fill(_outside(p, q), math.inf)
    return torch.where(fewer, summed, value)


def _too_many(p: Any, q: Any) -> Exception | None:
    """Return the error where p has fewer trials than q, and q too many for a sum."""
    if int(q.total_count.max()) <= limits.MAX_BINOMIAL_TRIALS or not bool(
        (p.total_count < q.total_count).any()
    ):
        return None
    expected = f"p's to be at least q's, or at most {limits.MAX_BINOMIAL_TRIALS:,} to sum over"
    return ArgumentValueError(message("total_count", expected, int(q.total_count.max())))


def _outside(p: Any, q: Any) -> Tensor:
    """Say where q, of more trials than p, is a point mass on a count that p leaves."""
    none: Tensor = table_of(q).prob == 0
    outside: Tensor = (none[..., 1] & (p.total_count > 0)) | none[..., 0]
    return outside


def _summed_binomials(p: Any, q: Any) -> Tensor:
    """`Σ_k p (q/p − 1 − log q/p) + Q(k > n)`, n of p: terms ≥ 0, over the support of q."""
    first, second = tables_of(p, q)
    (miss_p, hit_p), (miss_q, hit_q) = (
        t.prob.clamp(min=limits.MIN_POSITIVE).unbind(-1) for t in (first, second)
    )
    n, extra = p.total_count.to(hit_p), (q.total_count - p.total_count).to(hit_p).clamp(min=0)
    most = int(q.total_count.max())
    log_p, log_q = (
        log_binomial(d.total_count, t.prob[..., 0], t.prob[..., 1], most=most)
        for d, t in ((p, first), (q, second))
    )
    k = torch.arange(most + 1, dtype=hit_p.dtype, device=hit_p.device)
    k = k.reshape(-1, *[1] * (log_p.ndim - 1))
    rest = (n - k).clamp(min=0)
    bend = of_log_gamma(n + 1, extra) - of_log_gamma(rest + 1, extra)
    ways = bend + extra * ((n + 1).digamma() - (rest + 1).digamma())
    gap = ways + k * log_ratio(hit_q, hit_p) + rest * log_ratio(miss_q, miss_p)
    gap, mass = gap + extra * miss_q.log(), log_p.exp()
    near = mass * log_excess(gap.clamp(-1, 1))
    far = log_q.exp() - mass - mass * gap
    inside = torch.where(gap.abs() <= 1, near, far)
    return torch.where(k <= n, inside, log_q.exp()).sum(0)


def log_binomial(count: Tensor, miss: Tensor, hit: Tensor, *, most: int) -> Tensor:
    """Return `log m(k)`, k = 0 … most, along a new first axis; −1e9 beyond a count.

    >>> log_binomial(torch.tensor(1), torch.tensor(0.5), torch.tensor(0.5), most=1).exp()
    tensor([0.5000, 0.5000])
    """
    n = count.to(hit)
    k = torch.arange(most + 1, dtype=hit.dtype, device=hit.device)
    k = k.reshape(-1, *[1] * torch.broadcast_tensors(n, hit)[0].ndim)  # type: ignore[no-untyped-call]
    rest = (n - k).clamp(min=0)
    chances = (
        k * hit.clamp(min=limits.MIN_POSITIVE).log()
        + rest * miss.clamp(min=limits.MIN_POSITIVE).log()
    )
    ways = (n + 1).lgamma() - (k + 1).lgamma() - (rest + 1).lgamma()
    return (ways + chances).masked_fill(k > n, _BEYOND)


def _multinomial(p: Any, q: Any) -> Tensor:
    """n·KL(Categorical) for the same n; different totals share no outcome."""
    value = bernoulli_kl(p, q)
    if p.total_count != q.total_count:
        return torch.full_like(value, math.inf)
    return value * p.total_count if p.total_count else torch.zeros_like(value)


def _geometric(p: Any, q: Any) -> Tensor:
    """KL(Bernoulli)/p: one Bernoulli divergence for each of the 1/p trials."""
    return bernoulli_kl(p, q) / _hit_and_miss(p)[0]


def _hit_and_miss(p: Any) -> tuple[Tensor, Tensor]:
    """Return p and 1 − p, from what was given."""
    if _by_logits(p):
        return torch.sigmoid(_wide(p.logits)), torch.sigmoid(-_wide(p.logits))
    return _wide(p.probs), 1 - _wide(p.probs)


def _negative_binomial(p: Any, q: Any) -> Tensor:
    """r·KL(Bernoulli)/(1 − p): one Bernoulli divergence for each of the r/(1 − p) trials."""
    return _times(p.total_count, bernoulli_kl(p, q)) / _hit_and_miss(p)[1]


def _other_counts(p: Any, q: Any) -> Exception | None:
    if bool((p.total_count == q.total_count).all()):
        return None
    got = f"{p.total_count} and {q.total_count}"
    return ArgumentValueError(message("total_count", "the same in p and q", got))


def _poisson(p: Any, q: Any) -> Tensor:
    """`λ log(λ/μ) − λ + μ`, the same term as in a table; rates may be 0."""
    first, second = torch.broadcast_tensors(p.rate, q.rate)  # type: ignore[no-untyped-call]
    return relative_entropy(first, second)


def _bernoulli_poisson(p: Any, q: Any) -> Tensor:
    """`KL(p‖Bernoulli(μ/(1 + μ))) + μ − log(1 + μ)`: q given x ≤ 1, and −log of that chance."""
    rate = _wide(q.rate)
    table, given = table_of(p), torch.stack([torch.ones_like(rate), rate], -1)
    given = given / (1 + rate)[..., None]
    given = given if table.by_mass else given.log()
    wide = torch.broadcast_tensors(table.given, given)  # type: ignore[no-untyped-call]
    first, second = (Table(t, by_mass=table.by_mass) for t in wide)
    inside = alpha_sum(first, second, 1.0)
    return (inside + log_excess(rate.log1p())).to(float_dtype(result_dtype(p), q.rate.dtype))


def _times(count: Tensor, value: Tensor) -> Tensor:
    return torch.where(count == 0, 0, count * value.masked_fill(count == 0, 0))


_BEYOND = -1e9  # for the log of no mass
_TABLE = "the sum itself, `tables.kl`"
_TRIALS = "trials are independent: the Bernoulli KL times their expected number"

PAIRS: dict[tuple[type, type], Pair] = {
    (families.Bernoulli, families.Bernoulli): Pair(_in_their_dtype(bernoulli_kl), _TABLE),
    (families.Categorical, families.Categorical): Pair(_in_their_dtype(_table_kl), _TABLE),
    (families.OneHotCategorical, families.OneHotCategorical): Pair(
        _in_their_dtype(_table_kl), _TABLE
    ),
    (families.Binomial, families.Binomial): Pair(
        _in_their_dtype(_binomial), _TRIALS + "; the sum itself for p's count < q's", _too_many
    ),
    (families.Multinomial, families.Multinomial): Pair(_in_their_dtype(_multinomial), _TRIALS),
    (families.Geometric, families.Geometric): Pair(_in_their_dtype(_geometric), _TRIALS),
    (families.NegativeBinomial, families.NegativeBinomial): Pair(
        _in_their_dtype(_negative_binomial), _TRIALS + "; equal counts", _other_counts
    ),
    (families.Bernoulli, families.Poisson): Pair(
        _bernoulli_poisson, "q given that x ≤ 1 is a Bernoulli, and −log of that chance"
    ),
    (families.Poisson, families.Poisson): Pair(in_float64(_poisson), "E[x] = λ in log p(x)/q(x)"),
}
