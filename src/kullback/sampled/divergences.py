"""A number by the best way there is: exact where that is known, else from draws, and it says which.

Which to use: `kl(p, q)` for tensors and torch distributions (`kullback.kl` takes more); `js`,
`entropy` and `cross_entropy` likewise. To insist on one way: `kullback.exact` and
`kullback.sampled.kl`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Independent,
    TransformedDistribution,
)

from kullback.core import Estimate, require, require_type, short_values
from kullback.exact import closed_forms, countable, scores_as, supports, tables

from . import error_bars, limits
from .distributions import (
    COARSE,
    Support,
    at_ends,
    checked_draws,
    coarse_draws,
    draw_from,
    dtype_of,
    is_discrete,
    log_density,
    unless_rounded,
)
from .distributions import kl as kl_sampled
from .estimators import Estimator

__all__ = ["Measured", "cross_entropy", "entropy", "how_sampled", "js", "kl"]

_TABLE = "sum over the table"
_HINT = "two tables [*batch, outcomes], or two torch.distributions"


@dataclass(frozen=True, slots=True, repr=False)
class Measured:
    """A number, how it was computed, and its `Estimate` if sampled: what `kullback.kl` returns.

    Attributes:
        value: `[*batch]`, in `unit`: a tensor with gradients when exact, a float or a tensor
            without when sampled.
        method: "closed form: Normal‖Normal", "sum over the table", "sampled: k1, 10,000 draws", ….
        estimate: Error bar, bias and warnings of a sampled value; None where it is exact.
        unit: "nats" or "bits".

    `float()` gives a value without a batch; `print` gives one line whatever the batch.

    Example:
        >>> found = Measured(torch.tensor(0.5), "closed form: Normal‖Normal")
        >>> print(found)
        0.5 nats (closed form: Normal‖Normal)
        >>> print(found.bits())
        0.721348 bits (closed form: Normal‖Normal)
        >>> found.exact, found.standard_error, float(found)
        (True, 0.0, 0.5)
    """

    value: Any
    method: str
    estimate: Estimate | None = None
    unit: str = "nats"

    @property
    def exact(self) -> bool:
        """Whether the value has no error bar."""
        return self.estimate is None

    @property
    def shape(self) -> tuple[int, ...]:
        """The batch shape; `()` for a single number."""
        return tuple(getattr(self.value, "shape", ()))

    @property
    def standard_error(self) -> Any:
        """The standard error, `[*batch]`: 0.0 when exact; NaN where `no_error` says why."""
        return 0.0 if self.estimate is None else self.estimate.standard_error

    @property
    def no_error(self) -> str:
        """Why no standard error can be given, in words; empty when there is one."""
        return "" if self.estimate is None else self.estimate.no_error

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the standard error doubtful, in words; empty when nothing does."""
        return () if self.estimate is None else self.estimate.warnings

    def bits(self) -> "Measured":
        """Return the same in bits: nats / ln 2, with gradients."""
        return self._in("bits")

    def nats(self) -> "Measured":
        """Return the same in nats: bits · ln 2, with gradients."""
        return self._in("nats")

    def _in(self, unit: str) -> "Measured":
        if unit == self.unit:
            return self
        if self.estimate is not None:
            found = self.estimate.bits() if unit == "bits" else self.estimate.nats()
            return replace(self, value=found.value, estimate=found, unit=unit)
        factor = math.log(2.0) if unit == "nats" else 1 / math.log(2.0)
        return replace(self, value=self.value * factor, unit=unit)

    def __float__(self) -> float:
        single = math.prod(self.shape) == 1
        require(single, "value", "a single number", f"a batch {list(self.shape)}", ".value")
        return float(torch.as_tensor(self.value, dtype=torch.float64).detach())

    def __str__(self) -> str:
        if self.estimate is not None:
            first, *warnings = str(self.estimate).split("\n")
            return "\n".join([f"{first} ({self.method})", *warnings])
        return f"{short_values(self.value)} {self.unit} ({self.method})"

    def __format__(self, spec: str) -> str:
        """Format a single number as a float is; without a specification, as `str` does."""
        return format(float(self), spec) if spec else str(self)

    def __repr__(self) -> str:
        return f"Measured({str(self).splitlines()[0]})"


def kl(
    p: Any,
    q: Any,
    *,
    draws: int = 10_000,
    estimator: Estimator = "best",
    generator: Generator | None = None,
) -> Measured:
    """Return `KL(p‖q) = E_p[log p/q]`, p first, exactly where that is known, else from draws.

    Tables: `exact.kl`. Distributions: the closed form of `exact.closed_forms` where there is one;
    +inf where supports or tails make it so (`exact.supports`); the sum over the integers
    (`exact.countable`); else `sampled.kl`.

    Args:
        p: Probabilities `[*batch, outcomes]`, or a torch distribution.
        q: A table of the same outcomes, or a torch distribution over the same event shape.
        draws: How many draws to make where nothing exact is known, ≥ 4.
        estimator: "best", "k1", "k2", "k3" or a number λ, for the draws.
        generator: Where randomness comes from; torch's own when None.

    Returns:
        A `Measured` of `[*batch]`, in nats; `method` says how it was computed. With gradients where
        exact; with an `Estimate` and without gradients where sampled.

    Raises:
        TypeError: For anything else, or a table with a distribution.
        ValueError: For shapes that differ, tables that do not sum to 1, a discrete distribution
            against a continuous one, or fewer than 4 draws.

    Example:
        >>> from torch.distributions import Laplace, Normal, StudentT
        >>> print(kl(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])))
        0.143841 nats (sum over the table)
        >>> print(kl(Normal(0.0, 1.0), Normal(1.0, 1.0)))
        0.5 nats (closed form: Normal‖Normal)
        >>> seed = torch.Generator().manual_seed(0)
        >>> print(kl(StudentT(5.0), Laplace(0.0, 1.0), generator=seed))
        0.01459 ± 0.00021 nats (sampled: best λ = 0.88 to 0.884, 10,000 draws)
    """
    draws = checked_draws(draws)
    if _tables(p, q):
        return Measured(tables.kl(p, q), _TABLE)
    known = _without_draws(p, q)
    if known is not None:
        return known
    found = kl_sampled(p, q, draws=draws, estimator=estimator, generator=generator)
    return Measured(found.value, how_sampled(found), found)


def js(p: Any, q: Any, *, draws: int = 10_000, generator: Generator | None = None) -> Measured:
    """Return the Jensen-Shannon divergence `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`, in nats.

    Between tables (Bernoulli and categorical distributions are tables) and on the integers the sum
    itself; otherwise from draws, half of them from p and half from q: the mean of
    `½ (a log a + b log b)` with `a = p/m`, `b = q/m`, every term of it between 0 and log 2.
    Unbiased whatever the supports; at p ≈ q the terms are exact to about 1e-16.
    Reference: Lin (1991), "Divergence measures based on the Shannon entropy".

    Args:
        p: Probabilities `[*batch, outcomes]`, or a torch distribution.
        q: A table of the same outcomes, or a torch distribution over the same event shape.
        draws: How many draws to make where nothing exact is known, ≥ 4.
        generator: Where randomness comes from; torch's own when None.

    Returns:
        A `Measured` of `[*batch]`, in nats, from 0 to log 2.

    Raises:
        TypeError: For anything else, or a table with a distribution.
        ValueError: For shapes that differ, tables that do not sum to 1, or fewer than 4 draws.

    Example:
        >>> print(js(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])))
        0.693147 nats (sum over the table)
    """
    draws = checked_draws(draws)
    if _tables(p, q):
        return Measured(tables.js(p, q), _TABLE)
    both = _as_tables(p, q)
    if both is not None:
        return Measured(tables.js(both[0], both[1]), _TABLE)
    total = countable.js(p, q)
    if total is not None:
        return _of_sum(total, p, q)
    half = draws // 2
    points = torch.cat([draw_from(d, half, generator=generator) for d in _batched(p, q)])
    log_p, log_q = log_density(p, points).double(), log_density(q, points).double()
    lost = (at_ends(p, bounded=True) + at_ends(q, bounded=True)) * math.log(2.0) / 2
    terms = _js_terms(log_p - log_q)
    unseen = terms.detach().amin(0) / (2 * half)  # by an overlap of p and q of which no draw is
    coarse = 0.0 if is_discrete(p) else coarse_draws(points, _js_score(p, q))
    return _mean(terms, 2 * half, lost, unseen, coarse=coarse)


def entropy(p: Any, *, draws: int = 10_000, generator: Generator | None = None) -> Measured:
    """Return `H(p) = −E_p[log p]` in nats, differential where p has a density.

    On the integers a sum where no closed form is known (Poisson, mixtures); else from draws, the
    mean of `−log p(x)`.

    Args:
        p: Probabilities `[*batch, outcomes]`, or a torch distribution.
        draws: How many draws to make where nothing exact is known, ≥ 4.
        generator: Where randomness comes from; torch's own when None.

    Returns:
        A `Measured` of `[*batch]`, in nats; `method` says how it was computed.

    Raises:
        TypeError: For anything but a tensor or a distribution.
        ValueError: For a table that does not sum to 1, or fewer than 4 draws.

    Example:
        >>> print(entropy(torch.tensor([0.5, 0.25, 0.25])))
        1.03972 nats (sum over the table)
    """
    draws = checked_draws(draws)
    if isinstance(p, Tensor):
        return Measured(tables.entropy(p), _TABLE)
    require_type(p, Distribution, "p", "a table [*batch, outcomes] or a torch.distributions object")
    closed = closed_forms.find_entropy(p)
    if closed is not None and not isinstance(p, Binomial):  # torch refuses counts that differ
        return Measured(closed.function(p), _closed(p))
    total = countable.entropy(p)
    if total is not None:
        return _of_sum(total, p)
    points = draw_from(p, draws, generator=generator)
    coarse = 0.0 if is_discrete(p) else coarse_draws(points, lambda x: log_density(p, x))
    return _mean(-log_density(p, points), draws, at_ends(p), coarse=coarse)


def cross_entropy(
    p: Any, q: Any, *, draws: int = 10_000, generator: Generator | None = None
) -> Measured:
    """Return `H(p, q) = −E_p[log q] = H(p) + KL(p‖q)` in nats: data from p, coded for q.

    Where only KL has no closed form it alone is sampled, by the best λ, and the entropy added;
    where the entropy has none, the mean of `−log q(x)` over x ~ p.

    Args:
        p: Probabilities `[*batch, outcomes]`, or a torch distribution.
        q: A table of the same outcomes, or a torch distribution over the same event shape.
        draws: How many draws to make where nothing exact is known, ≥ 4.
        generator: Where randomness comes from; torch's own when None.

    Returns:
        A `Measured` of `[*batch]`, in nats; `method` says how it was computed.

    Raises:
        TypeError: For anything else, or a table with a distribution.
        ValueError: For shapes that differ, tables that do not sum to 1, or fewer than 4 draws.

    Example:
        >>> print(cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])))
        0.836988 nats (sum over the table)
    """
    draws = checked_draws(draws)
    if _tables(p, q):
        return Measured(tables.cross_entropy(p, q), _TABLE)
    known = _without_draws(p, q)
    if known is not None and bool(torch.as_tensor(known.value).eq(math.inf).all()):
        return known
    total = countable.cross_entropy(p, q)
    if total is not None:
        return _of_sum(total, p, q)
    own = entropy(p, draws=limits.MIN_DRAWS, generator=generator)
    if not own.exact:
        points = draw_from(_batched(p, q)[0], draws, generator=generator)
        found = _mean(-log_density(q, points), draws).estimate
        settled = Support.of(p, q).settled(found)  # type: ignore[arg-type]
        return Measured(settled.value, how_sampled(settled), settled)
    extra = known or kl(p, q, draws=draws, generator=generator)
    if extra.estimate is None:
        return Measured(own.value + extra.value, extra.method)
    found = extra.estimate + (own.value if own.value.ndim else float(own.value))
    return Measured(found.value, f"entropy in closed form + KL {extra.method}", found)


def how_sampled(found: Estimate) -> str:
    """Return in words how a number was sampled.

    Args:
        found: The estimate.

    Returns:
        "sampled: ", then `found.how` where it is not empty, and the number of draws.

    Example:
        >>> how_sampled(Estimate(0.5, 0.1, draws=10_000, how="best λ = 0.58"))
        'sampled: best λ = 0.58, 10,000 draws'
    """
    return ": ".join(["sampled", ", ".join(filter(None, [found.how, f"{found.draws:,} draws"]))])


def _without_draws(p: Any, q: Any) -> Measured | None:
    """Return KL(p‖q) by a closed form, by supports and tails, or by a sum over the integers."""
    closed = closed_forms.find(p, q)
    value = None if closed is None else closed.function(p, q)
    if value is not None and not bool((value == math.inf).all()):
        return Measured(value, _closed(p, q))
    found = supports.compare(p, q)
    told = found is not None and bool(found.infinite.all())
    if value is not None:  # +inf, or beyond the largest number of its dtype
        return Measured(value, f"infinite: {found.why}" if found and told else _closed(p, q))
    if found is not None and told:
        value = torch.full(found.infinite.shape, math.inf, dtype=_dtype(p, q))
        return Measured(value, f"infinite: {found.why}")
    total = countable.kl(p, q)
    if total is not None:
        return _of_sum(total, p, q)
    return _by_parts(p, q)


def _by_parts(p: Any, q: Any) -> Measured | None:
    """Return KL as that of what p and q are made of: independent axes, or one map of both."""
    kinds = type(p), type(q)
    if kinds == (Independent, Independent):
        axes = p.reinterpreted_batch_ndims
        alike = axes == q.reinterpreted_batch_ndims
        inner = _without_draws(p.base_dist, q.base_dist) if alike else None
        if inner is None or not axes:
            return inner
        return Measured(inner.value.flatten(-axes).sum(-1), f"{inner.method}, over {axes} axes")
    both = isinstance(p, TransformedDistribution) and isinstance(q, TransformedDistribution)
    if both and p.transforms == q.transforms and all(t.bijective for t in p.transforms):
        return _without_draws(p.base_dist, q.base_dist)
    return None


def _of_sum(total: countable.Sum, *given: Any) -> Measured:
    infinite = total.value == math.inf
    method = f"infinite: {supports.OUTSIDE}" if bool(infinite.all()) else str(total)
    return Measured(total.value.to(_dtype(*given)), method)


def _dtype(*given: Any) -> torch.dtype:
    """Return the dtype of the distributions' parameters, the wider where they differ."""
    return reduce(torch.promote_types, map(dtype_of, given))


def _tables(p: Any, q: Any) -> bool:
    """Say whether both are tables; refuse one of each, and what are neither."""
    if isinstance(p, Tensor) and isinstance(q, Tensor):
        return True
    for name, given in (("p", p), ("q", q)):
        require_type(given, (Tensor, Distribution), name, _HINT)
        require_type(given, Distribution, name, _HINT)
    shapes = tuple(p.event_shape), tuple(q.event_shape)
    same = shapes[0] == shapes[1]
    require(same, "p and q", "the same event shape", f"{shapes[0]} and {shapes[1]}")
    kinds = is_discrete(p), is_discrete(q)
    words = {True: "discrete", False: "continuous"}
    fit = None in kinds or kinds[0] == kinds[1]
    got = " and ".join(words.get(bool(kind), "") for kind in kinds)
    require(fit, "p and q", "both discrete or both continuous", got)
    return False


def _as_tables(p: Any, q: Any) -> tuple[Tensor, Tensor] | None:
    if _both(p, q, Categorical):
        return p.probs, q.probs
    if _both(p, q, Bernoulli):
        return torch.stack([1 - p.probs, p.probs], -1), torch.stack([1 - q.probs, q.probs], -1)
    return None


def _both(p: Distribution, q: Distribution, family: Any) -> bool:
    return all(isinstance(one, family) and scores_as(one, family) for one in (p, q))


def _batched(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)  # type: ignore[no-untyped-call]
    first, second = (one if one.batch_shape == batch else one.expand(batch) for one in (p, q))
    return first, second


def _js_score(p: Distribution, q: Distribution) -> Callable[[Tensor], Tensor]:
    return lambda x: _js_terms(log_density(p, x).double() - log_density(q, x).double())


def _js_terms(gap: Tensor) -> Tensor:
    """Return `½ (a log a + b log b)`, a = p/m and b = q/m, from gap = log p − log q, to a few ulps.

    `½ (log(1 − t²) + t gap)`, t = tanh(gap/2), where p and q are near, which is gap²/8 for small
    gaps; elsewhere `log 2 − log(1 + e) − |gap| e/(1 + e)`, e = exp(−|gap|).
    """
    size = gap.abs()
    e = torch.exp(-size)
    near = torch.where(size < 1.0, size, 0.0)
    t = torch.tanh(near / 2)
    close = 0.5 * (torch.log1p(-t * t) + t * near)
    far = math.log(2.0) - torch.log1p(e) - torch.where(e > 0, size, 0.0) * e / (1 + e)
    return torch.where(size < 1.0, close, far)


def _mean(
    terms: Tensor,
    draws: int,
    lost: Tensor | None = None,
    unseen: Tensor | None = None,
    *,
    coarse: Tensor | float = 0.0,
) -> Measured:
    """Average terms `[draws, *batch]`, with the doubts that such a mean can raise.

    lost: `[*batch]`, by how much rounding of the draws may move the mean. unseen: `[*batch]`, by
    how much an event does that one draw in `draws` is, on average. coarse: as from `coarse_draws`.
    """
    terms = terms.detach().double().movedim(0, -1)
    value = terms.mean(-1)
    centred = torch.where(value.isinf()[..., None], 0.0, terms - value[..., None])
    error, doubts, k_hat = error_bars.mean_of(centred, value)
    error = error if unseen is None else torch.hypot(error, unseen)
    found = error_bars.judged(value, error, draws, k_hat, doubts)
    found = found if lost is None else unless_rounded(found, lost)
    found = unless_rounded(found, torch.as_tensor(coarse), COARSE)
    return Measured(found.value, how_sampled(found), found)


def _closed(*families: Distribution) -> str:
    return "closed form: " + "‖".join(type(family).__name__ for family in families)
