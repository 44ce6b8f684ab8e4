"""KL, Jensen-Shannon divergence, entropy and cross-entropy on the integers: summed, not sampled.

Which to use: `kl`, `js`, `entropy`, `cross_entropy` of distributions on the integers (Bernoulli,
binomial, categorical, geometric, negative binomial, Poisson, and mixtures of one of them), in any
pair. Each returns a `Sum` with the range that was summed and a bound on what was left out, or None
where a distribution is not known here or the sum would be too long.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .lattices import Lattice, lattice_of, log_masses
from .log_tables import Table
from .row_sums import alpha_sum, cross_sum, js_sum

__all__ = ["MOST_TERMS", "Sum", "cross_entropy", "entropy", "js", "kl", "outcomes"]

MOST_TERMS = 1 << 21  # numbers held for one sum: about a tenth of a second
_REMAINDER = 1e-13  # of the sum, at most
_WIDTHS = tuple(8.0 * 1.4**step for step in range(36))  # standard deviations on either side

_MORE = 8  # outcomes beyond the range

Rows = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum over `first … last`, `[*batch]`, and a bound on what the outcomes beyond would add."""

    value: Tensor
    first: int
    last: int
    remainder: float

    def __str__(self) -> str:
        if self.remainder == 0:
            return f"sum over {self.first} … {self.last}"
        bound = 10.0 ** math.ceil(math.log10(max(self.remainder, 1e-300)))
        return f"sum over {self.first} … {self.last}, remainder < {bound:.0e}"


def kl(p: Any, q: Any) -> Sum | None:
    """Return `KL(p‖q) = Σ p log(p/q)` in terms `q − p + p log(p/q) ≥ 0`, which do not cancel.

    p, q: torch distributions on the integers; batch shapes broadcast. +inf where p has an outcome
    that q lacks, however improbable. Relative error about 1e-13. Differentiable.

    >>> print(kl(torch.distributions.Bernoulli(0.3), torch.distributions.Geometric(0.3)))
    sum over 0 … 94, remainder < 1e-14
    """
    lattices = lattice_of(p), lattice_of(q)
    if lattices[0] is None or lattices[1] is None:
        return None
    lacking = _lacking(lattices[0], lattices[1])
    if bool(lacking.all()):
        return Sum(torch.full(lacking.shape, math.inf, dtype=torch.float64), 0, 0, 0.0)
    found = _summed([p, q], _kl_rows)
    if found is None:  # q's range is too long: p's alone, and Q(outside) = 1 − Q(range)
        found = _summed([p, q], _kl_and_rest, edge=_absolute, over_first=True)
    if found is None:
        return None
    value = found.value.masked_fill(lacking, math.inf)
    return Sum(value, found.first, found.last, found.remainder)


def js(p: Any, q: Any) -> Sum | None:
    """Return `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`; arguments as in `kl`.

    >>> js(torch.distributions.Poisson(3.0), torch.distributions.Poisson(3.0)).value
    tensor(0., dtype=torch.float64)
    """
    return _summed([p, q], lambda logs: js_sum(_table(logs[0]), _table(logs[1]), 0.5))


def entropy(p: Any) -> Sum | None:
    """Return `H(p) = −Σ p log p`.

    >>> entropy(torch.distributions.Poisson(3.0)).value
    tensor(1.9315, dtype=torch.float64)
    """
    return _summed([p], lambda logs: cross_sum(_table(logs[0]), _table(logs[0])))


def cross_entropy(p: Any, q: Any) -> Sum | None:
    """Return `H(p, q) = −Σ p log q`, +inf where p has an outcome that q lacks."""
    first = kl(p, q)
    own = None if first is None else entropy(p)
    if first is None or own is None:
        return None
    value, left = first.value + own.value, first.remainder + own.remainder
    return Sum(value, min(first.first, own.first), max(first.last, own.last), left)


def _kl_rows(logs: list[Tensor]) -> Tensor:
    return alpha_sum(_table(logs[0]), _table(logs[1]), 1.0)


def _kl_and_rest(logs: list[Tensor]) -> Tensor:
    return _kl_rows(logs) + (1 - logs[1].exp().sum(-1)).clamp(min=0.0)


def _absolute(logs: list[Tensor]) -> Tensor:
    """Return `Σ p (1 + |log p/q|)`, which bounds what KL's sum leaves out beyond p's range."""
    gap = torch.where(logs[0] == -math.inf, 0.0, logs[0] - logs[1])
    return (logs[0].exp() * (1 + gap.abs())).sum(-1)


def _table(log: Tensor) -> Table:
    return Table(log, by_mass=False)


def _lacking(p: Lattice, q: Lattice) -> Tensor:
    """Say where p's range reaches beyond q's, `[*batch]`; gaps inside show in the sum."""
    (low_p, high_p), (low_q, high_q) = p.ends(), q.ends()
    return (low_p < low_q) | (high_p > high_q)


def _summed(
    given: list[Any], rows: Rows, *, edge: Rows | None = None, over_first: bool = False
) -> Sum | None:
    """Sum rows over a range that grows until what is beyond it is negligible, or is too long.

    edge: what bounds the rows outside, from the masses at an edge; rows itself when None.
    over_first: the range is that of the first distribution alone.
    """
    leading = given[:1] if over_first else given
    known = [one for one in map(lattice_of, leading) if one is not None]
    if len(known) < len(leading):
        return None
    for width in _WIDTHS:
        first, last, whole = _range(known, width)
        x = outcomes(first, last, known)
        if x is None:
            return None
        logs = [log_masses(one, x).masked_fill(x > last[..., None], -math.inf) for one in given]
        logs = list(torch.broadcast_tensors(*logs))  # type: ignore[no-untyped-call]
        value = rows(logs)
        fixed = [log.detach() for log in logs]
        beyond = _beyond(fixed, len(leading), edge or rows, last - first, whole)
        size = value.detach().abs()
        if bool(((beyond <= _REMAINDER * size) | size.isinf()).all()):
            left = float(torch.where(size.isinf(), 0.0, beyond).amax()) if size.numel() else 0.0
            return Sum(value, int(first.amin()), int(last.amax()), left)
    return None


@torch.no_grad()
def _range(known: list[Lattice], width: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return first and last outcome, `[*batch]`, and whether they are the joint ends."""
    starts, stops = [], []
    for one in known:
        reach = width * (one.spread + 1)
        start = torch.maximum((one.mean - reach).floor(), one.low)
        stop = torch.minimum((one.mean + reach).ceil(), one.high)
        starts.append(torch.where(one.alive, start, math.inf).amin(-1))
        stops.append(torch.where(one.alive, stop, -math.inf).amax(-1))
    ends = [one.ends() for one in known]
    low = _across([end[0] for end in ends], torch.minimum)
    high = _across([end[1] for end in ends], torch.maximum)
    # a few more where one goes on, so that what has ended is not at the edge
    first = torch.maximum(_across(starts, torch.minimum) - _MORE, low)
    last = torch.minimum(_across(stops, torch.maximum) + _MORE, high)
    return first, last, (first <= low, last >= high)


def _across(ends: list[Tensor], choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return reduce(choose, ends)


def outcomes(first: Tensor, last: Tensor, known: list[Lattice]) -> Tensor | None:
    """Return the outcomes `[*batch, n]` from first on, or None where they would be too many.

    >>> outcomes(torch.tensor(2.0), torch.tensor(4.0), [])
    tensor([2., 3., 4.], dtype=torch.float64)
    """
    if not bool((last - first).isfinite().all()):
        return None
    count = float((last - first).amax()) + 1 if last.numel() else 1.0
    components = max((one.low.shape[-1] for one in known), default=1)
    if count * max(1, first.numel()) * components > MOST_TERMS:
        return None
    return first[..., None] + torch.arange(int(count), dtype=torch.float64)


def _beyond(
    logs: list[Tensor], leading: int, rows: Rows, last: Tensor, whole: tuple[Tensor, Tensor]
) -> Tensor:
    """Bound the rows' sum outside the range by twice a geometric series from the edge's term.

    Far out the masses of every family here fall by a factor that tends to its limit; twice covers
    that the limit is not yet reached and that log p/q grows.
    """
    total = torch.zeros(logs[0].shape[:-1], dtype=torch.float64)
    for edge, inner, done in ((last, last - 1, whole[1]), (0 * last, 0 * last + 1, whole[0])):
        at = [_pick(log, edge) for log in logs]
        before = [_pick(log, inner.clamp(min=0)) for log in logs]
        pairs = list(zip(at, before, strict=True))[:leading]
        factors = [torch.where(a == -math.inf, 0.0, (a - b).exp()) for a, b in pairs]
        factor = torch.stack(factors).amax(0)[..., 0]
        term = rows(at).abs()
        series = torch.where(factor < 1, 2 * term * factor / (1 - factor), math.inf)
        total = total + torch.where(done | (term == 0) & (factor < 1), 0.0, series)
    return total


def _pick(log: Tensor, index: Tensor) -> Tensor:
    index = index.long().clamp(max=log.shape[-1] - 1)
    return log.gather(-1, index.expand(log.shape[:-1])[..., None])
