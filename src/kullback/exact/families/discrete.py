"""Closed forms between discrete families, all read from the α-family of `row_sums`.

Which to use: `PAIRS` through `closed_forms.kl`; `table_of` for the finite table behind a Bernoulli
or a categorical distribution.
"""

import math
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentValueError, require
from kullback.core.checks import message
from kullback.exact.log_tables import Table
from kullback.exact.row_sums import alpha_sum

from .pair import Pair

__all__ = ["PAIRS", "bernoulli_kl", "table_of", "tables_of"]


def table_of(distribution: Any) -> Table:
    """Return the table `[*batch, outcomes]` of a Bernoulli-like or categorical distribution.

    It is read from what the user gave, probabilities or logits: the other one has been clamped by
    torch, so that a probability of 0 has a finite logit there.

    >>> table_of(families.Bernoulli(torch.tensor(0.25))).prob
    tensor([0.7500, 0.2500])
    """
    inner = getattr(distribution, "_categorical", distribution)
    held = vars(inner)
    by_logits = held.get("logits") is held.get("_param", held.get("probs", held.get("logits")))
    if isinstance(inner, families.Categorical):
        return Table(inner.logits if by_logits else inner.probs, by_mass=not by_logits)
    if by_logits:
        logs = torch.nn.functional.logsigmoid
        return Table(torch.stack([logs(-inner.logits), logs(inner.logits)], -1), by_mass=False)
    return Table(torch.stack([1 - inner.probs, inner.probs], -1), by_mass=True)


def tables_of(p: Any, q: Any) -> tuple[Table, Table]:
    """Return both tables, broadcast, in logs unless both were given as probabilities."""
    first, second = table_of(p), table_of(q)
    by_mass = first.by_mass and second.by_mass
    sizes = (first.given.shape[-1], second.given.shape[-1])
    require(sizes[0] == sizes[1], "p and q", "the same outcomes", sizes)
    both = (first.given, second.given) if by_mass else (first.log, second.log)
    wide = torch.broadcast_tensors(*both)  # type: ignore[no-untyped-call]
    return Table(wide[0], by_mass=by_mass), Table(wide[1], by_mass=by_mass)


def bernoulli_kl(p: Any, q: Any) -> Tensor:
    """Return `Σ p log(p/q)` over the finite table; masked logits and zeros as in `tables.kl`."""
    return alpha_sum(*tables_of(p, q), 1.0)


def _binomial(p: Any, q: Any) -> Tensor:
    """n·KL(Bernoulli), +inf where p has more trials than q; fewer trials have no closed form."""
    counts_p, counts_q = p.total_count, q.total_count
    sure = p.probs == 0  # a point mass at 0 counts no trials
    value = _times(torch.where(sure, counts_q, counts_p), bernoulli_kl(p, q))
    return value.masked_fill((counts_p > counts_q) & ~sure, math.inf)


def _fewer_trials(p: Any, q: Any) -> Exception | None:
    if not bool(((p.total_count < q.total_count) & (p.probs != 0)).any()):
        return None
    text = message("total_count", "p's to be at least q's", "fewer", "sum over the support")
    return ArgumentValueError(text)


def _multinomial(p: Any, q: Any) -> Tensor:
    """n·KL(Categorical) for the same n; different totals share no outcome."""
    value = bernoulli_kl(p, q)
    if p.total_count != q.total_count:
        return torch.full_like(value, math.inf)
    return value * p.total_count if p.total_count else torch.zeros_like(value)


def _geometric(p: Any, q: Any) -> Tensor:
    """KL(Bernoulli)/p: one Bernoulli divergence for each of the 1/p trials."""
    return bernoulli_kl(p, q).div(p.probs)


def _negative_binomial(p: Any, q: Any) -> Tensor:
    """r·KL(Bernoulli)/(1 − p): one Bernoulli divergence for each of the r/(1 − p) trials."""
    return _times(p.total_count, bernoulli_kl(p, q)).div(1 - p.probs)


def _other_counts(p: Any, q: Any) -> Exception | None:
    if bool((p.total_count == q.total_count).all()):
        return None
    got = f"{p.total_count} and {q.total_count}"
    return ArgumentValueError(message("total_count", "the same in p and q", got))


def _poisson(p: Any, q: Any) -> Tensor:
    """`λ log(λ/μ) − λ + μ`, the same term as in a table; rates may be 0."""
    rates = torch.broadcast_tensors(p.rate, q.rate)  # type: ignore[no-untyped-call]
    first, second = (Table(rate[..., None], by_mass=True) for rate in rates)
    return alpha_sum(first, second, 1.0)


def _times(count: Tensor, value: Tensor) -> Tensor:
    return torch.where(count == 0, 0, count * value.masked_fill(count == 0, 0))


_TABLE = "the sum itself, `tables.kl`"
_TRIALS = "trials are independent: the Bernoulli KL times their expected number"

PAIRS: dict[tuple[type, type], Pair] = {
    (families.Bernoulli, families.Bernoulli): Pair(bernoulli_kl, _TABLE),
    (families.Categorical, families.Categorical): Pair(bernoulli_kl, _TABLE),
    (families.OneHotCategorical, families.OneHotCategorical): Pair(bernoulli_kl, _TABLE),
    (families.Binomial, families.Binomial): Pair(
        _binomial, _TRIALS + "; p's count ≥ q's", _fewer_trials
    ),
    (families.Multinomial, families.Multinomial): Pair(_multinomial, _TRIALS),
    (families.Geometric, families.Geometric): Pair(_geometric, _TRIALS),
    (families.NegativeBinomial, families.NegativeBinomial): Pair(
        _negative_binomial, _TRIALS + "; equal counts", _other_counts
    ),
    (families.Poisson, families.Poisson): Pair(_poisson, "E[x] = λ in log p(x)/q(x)"),
}
