"""Distributions on the integers: their range, their spread and the log of their masses in float64.

Which to use: `lattice_of(p)` for the range of outcomes, None where p is no distribution on the
integers that is known here; `log_masses(p, x)` for `log p(x)`.

The masses are Loader's: `x log(x/m) + m − x` in place of differences of log-gamma values, so that
the relative error of `log p` is a few ulps at any size.
Reference: Loader (2000), "Fast and accurate computation of binomial probabilities".

KL, Jensen-Shannon divergence, entropy and cross-entropy on the integers: summed, not sampled.

Which to use: `kl`, `js`, `entropy`, `cross_entropy` of distributions on the integers (Bernoulli,
binomial, categorical, geometric, negative binomial, Poisson, and mixtures of one of them), in any
pair. Each returns a `Sum` with the range that was summed and a bound on what was left out, or None
where a distribution is not known here or the sum would be too long.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from typing import Any

import torch
import torch.distributions as d
from torch import Tensor
from torch.nn.functional import logsigmoid

from kullback.core import require

from . import limits
from .bregman import HALF_LOG_2PI
from .families.pair import scores_as
from .table_sums import Table, alpha_sum, cross_sum, js_sum

__all__ = [
    "Lattice",
    "Sum",
    "cross_entropy",
    "entropy",
    "js",
    "kl",
    "lattice_of",
    "log_masses",
    "outcomes",
]

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


@dataclass(frozen=True, slots=True)
class Lattice:
    """The integers `low … high` that have mass, mean and standard deviation, `[*batch, K]`.

    K components, of which those `alive` have weight. whole: there are no gaps between the ends.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    spread: Tensor
    alive: Tensor
    whole: bool

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the first and the last outcome, `[*batch]`."""
        low = torch.where(self.alive, self.low, math.inf).amin(-1)
        return low, torch.where(self.alive, self.high, -math.inf).amax(-1)


def lattice_of(p: Any) -> Lattice | None:
    """Return the range of p's outcomes, one a component of a mixture; None where not known.

    Args:
        p: A torch distribution.

    Returns:
        The `Lattice`, `[*batch, K]` with one entry a component, or None where p is no distribution
        on the integers that is known here.

    Example:
        >>> lattice_of(d.Binomial(5, torch.tensor(0.5))).high
        tensor([5.], dtype=torch.float64)
    """
    if p.event_shape:
        return None
    mixture = isinstance(p, d.MixtureSameFamily) and scores_as(p, d.MixtureSameFamily)
    family = p.component_distribution if mixture else p
    found = _lattice(family) if _scores_alike(family) else None
    if found is None:
        return None
    parts = [part.double().expand(family.batch_shape) for part in found]
    low, high, mean, spread = parts if mixture else [part[..., None] for part in parts]
    alive = torch.ones_like(low, dtype=torch.bool)
    if mixture:
        alive = (p.mixture_distribution.probs > 0).expand(low.shape)
    return _whole(Lattice(low, high, mean, spread, alive, whole=False), family)


def _whole(found: Lattice, family: Any) -> Lattice:
    """Say whether one component spans all between the ends, and leaves no gap."""
    spans = (found.low == found.ends()[0][..., None]) & (found.high == found.ends()[1][..., None])
    whole = bool((spans & found.alive).any(-1).all())
    if isinstance(family, d.Categorical):
        whole = whole and bool((log_masses(family, _all_of(family)) > -math.inf).all())
    return replace(found, whole=whole)


def _all_of(p: Any) -> Tensor:
    return torch.arange(p.param_shape[-1]).expand(p.param_shape)


def log_masses(p: Any, x: Tensor) -> Tensor:
    """Return `log p(x)` in nats, float64, −inf where p has no mass.

    Args:
        p: A distribution for which `lattice_of` is not None.
        x: Integers `[*batch, n]`, of any dtype.

    Returns:
        `[*batch, n]`, differentiable in p's parameters.

    Raises:
        ArgumentValueError: Where p is not a distribution on the integers.

    Example:
        >>> log_masses(d.Poisson(torch.tensor(2.0)), torch.tensor([0.0, 1.0, -1.0]))
        tensor([-2.0000, -1.3069,    -inf], dtype=torch.float64)
    """
    x = x.double()
    if isinstance(p, d.MixtureSameFamily):
        parts = log_masses(p.component_distribution, x[..., None, :])
        weights = p.mixture_distribution
        logs = weights.probs.double().log() if _by_probs(weights) else weights.logits.double()
        return torch.logsumexp(parts + logs[..., None], -2)
    found = _lattice(p)
    require(found is not None, "p", "a distribution on the integers", type(p).__name__)
    low, high = (end.double()[..., None] for end in found[:2])  # type: ignore[index]
    inside = (x >= low) & (x <= high)
    logs = _log_masses(p, torch.where(inside, x, low))
    return logs.masked_fill(~inside, -math.inf)


def _scores_alike(p: Any) -> bool:
    """Say whether p scores as the family that it is an instance of: no rule of a subclass."""
    owner = next((c for c in type(p).__mro__ if c in _lattice.registry and c is not object), None)
    return owner is not None and scores_as(p, owner)


Parts = tuple[Tensor, Tensor, Tensor, Tensor]


@singledispatch
def _lattice(p: Any) -> Parts | None:
    return None


@singledispatch
def _log_masses(p: Any, x: Tensor) -> Tensor:
    raise NotImplementedError


def _ends(p: Any, high: Tensor) -> Parts:
    """Return 0 … high, which shrinks to a point where the probability of a success is 0 or 1."""
    no, yes = _log_probs(p)
    low = torch.where(no == -math.inf, high, 0.0)
    top = torch.where(yes == -math.inf, 0.0, high)
    return low, top, p.mean, p.variance.sqrt()


@_lattice.register(d.Bernoulli)
def _(p: Any) -> Parts:
    return _ends(p, torch.ones_like(p.mean))


@_lattice.register(d.Binomial)
def _(p: Any) -> Parts:
    return _ends(p, p.total_count.to(p.mean))


@_lattice.register(d.NegativeBinomial)
def _(p: Any) -> Parts:
    _, yes = _log_probs(p)
    none = (yes == -math.inf) | (p.total_count == 0)
    high = torch.where(none, 0.0, math.inf)
    return torch.zeros_like(high), high, p.mean, p.variance.sqrt()


@_lattice.register(d.Geometric)
def _(p: Any) -> Parts:
    no, _ = _log_probs(p)
    high = torch.where(no == -math.inf, 0.0, math.inf)
    return torch.zeros_like(high), high, p.mean, p.variance.clamp(min=0).sqrt()


@_lattice.register(d.Poisson)
def _(p: Any) -> Parts:
    high = torch.where(p.rate == 0, 0.0, math.inf)
    return torch.zeros_like(high), high, p.rate, p.rate.sqrt()


@_lattice.register(d.Categorical)
def _(p: Any) -> Parts:
    size = torch.full(p.batch_shape, p.param_shape[-1] - 1.0, dtype=torch.float64)
    return torch.zeros_like(size), size, size / 2, size


@_log_masses.register(d.Bernoulli)
def _(p: Any, x: Tensor) -> Tensor:
    no, yes = (log[..., None] for log in _log_probs(p))
    return torch.where(x == 1, yes, no)


@_log_masses.register(d.Geometric)
def _(p: Any, x: Tensor) -> Tensor:
    no, yes = (log[..., None] for log in _log_probs(p))
    return yes + x * torch.where(x == 0, 0.0, no)


@_log_masses.register(d.Categorical)
def _(p: Any, x: Tensor) -> Tensor:
    logs = p.probs.double().log() if _by_probs(p) else p.logits.double()
    index = x.long() + torch.zeros_like(logs[..., :1], dtype=torch.long)
    wide: Tensor = logs.expand((*index.shape[:-1], logs.shape[-1])).gather(-1, index)
    return wide


@_log_masses.register(d.Poisson)
def _(p: Any, x: Tensor) -> Tensor:
    rate = p.rate.double()[..., None]
    inner = torch.where(x > 0, x, 1.0)
    root = 0.5 * (2 * math.pi * inner).log()
    body = -root - _stirling(inner) - _deviance(inner, rate, rate.log())
    return torch.where(x > 0, body, -rate)


@_log_masses.register(d.Binomial)
def _(p: Any, x: Tensor) -> Tensor:
    no, yes = (log[..., None] for log in _log_probs(p))
    return _binomial(x, p.total_count.double()[..., None], no, yes)


@_log_masses.register(d.NegativeBinomial)
def _(p: Any, x: Tensor) -> Tensor:
    """`r/(r + x)` times the binomial mass of r among r + x, also where r is no integer."""
    no, yes = (log[..., None] for log in _log_probs(p))
    count = p.total_count.double()[..., None]
    inner = torch.where(x > 0, x, 1.0)
    body = _binomial(inner, count + inner, no, yes) - torch.log1p(inner / count)
    return torch.where(x > 0, body, count * no)


def _binomial(x: Tensor, count: Tensor, no: Tensor, yes: Tensor) -> Tensor:
    """Return `log [C(n, x) p^x (1 − p)^(n − x)]` for 0 ≤ x ≤ n real, from log(1 − p) and log p."""
    rest = count - x
    mixed = (x > 0) & (rest > 0)
    n, a, b = (torch.where(mixed, part, other) for part, other in ((count, 2), (x, 1), (rest, 1)))
    root = 0.5 * (n / (2 * math.pi * a * b)).log()
    body = root + _stirling(n) - _stirling(a) - _stirling(b)
    body = (
        body - _deviance(a, n * yes.exp(), n.log() + yes) - _deviance(b, n * no.exp(), n.log() + no)
    )
    sure = count * torch.where(count == 0, 0.0, torch.where(x > 0, yes, no))
    return torch.where(mixed, body, sure)


def _deviance(x: Tensor, mean: Tensor, log_mean: Tensor) -> Tensor:
    """Return `x log(x/m) + m − x ≥ 0` for x > 0, by its series where x is near m."""
    gap = x - mean
    v = gap / (x + mean)
    near = v.abs() < limits.MAX_DEVIANCE_SERIES
    v = torch.where(near, v, 0.0)
    square = v * v
    total = torch.zeros_like(v)
    for order in range(10, 0, -1):
        total = (total + 1 / (2 * order + 1)) * square
    series = gap * v + 2 * x * v * total
    return torch.where(near, series, x * (x.log() - log_mean) - gap)


def _stirling(x: Tensor) -> Tensor:
    """Return `log Γ(x + 1) − (x + ½) log x + x − ½ log 2π` for x > 0, the error of Stirling."""
    large = x.clamp(min=limits.MIN_STIRLING_SERIES)
    series = torch.zeros_like(large)
    for term in reversed(_STIRLING):
        series = series / (large * large) + term
    small = x.clamp(max=limits.MIN_STIRLING_SERIES)
    plain = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small
    large_x = x > limits.MIN_STIRLING_SERIES
    return torch.where(large_x, series / large, plain - HALF_LOG_2PI)


def _log_probs(p: Any) -> tuple[Tensor, Tensor]:
    """Return log(1 − p) and log p in float64, from what the family was given."""
    if not _by_probs(p):
        return logsigmoid(-p.logits.double()), logsigmoid(p.logits.double())
    return torch.log1p(-p.probs.double()), p.probs.double().log()


def _by_probs(p: Any) -> bool:
    """Say whether the family was given probabilities, which hold exact zeros, or logits."""
    held = vars(p)
    if "_param" in held:
        return held["_param"] is held.get("probs")
    return "probs" in held


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
        bound = 10.0 ** math.ceil(math.log10(max(self.remainder, limits.MIN_POSITIVE)))
        return f"sum over {self.first} … {self.last}, remainder < {bound:.0e}"


def kl(p: Any, q: Any) -> Sum | None:
    """Return `KL(p‖q) = Σ p log(p/q)` in terms `q − p + p log(p/q) ≥ 0`, which do not cancel.

    Relative error about 1e-13.

    Args:
        p: A torch distribution on the integers.
        q: A torch distribution on the integers; batch shapes broadcast.

    Returns:
        The `Sum`, in nats, differentiable; +inf where p has an outcome that q lacks, however
        improbable. None where a distribution is not known here or the sum would be too long.

    Example:
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
    """Return `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`: the Jensen-Shannon divergence, in nats.

    Args:
        p: A torch distribution on the integers.
        q: A torch distribution on the integers; batch shapes broadcast.

    Returns:
        The `Sum`, in nats, differentiable; None where a distribution is not known here or the sum
        would be too long.

    Example:
        >>> js(torch.distributions.Poisson(3.0), torch.distributions.Poisson(3.0)).value
        tensor(0., dtype=torch.float64)
    """
    return _summed([p, q], lambda logs: js_sum(_table(logs[0]), _table(logs[1]), 0.5))


def entropy(p: Any) -> Sum | None:
    """Return `H(p) = −Σ p log p`, in nats.

    Args:
        p: A torch distribution on the integers.

    Returns:
        The `Sum`, in nats, differentiable; None where p is not known here or the sum would be too
        long.

    Example:
        >>> entropy(torch.distributions.Poisson(3.0)).value
        tensor(1.9315, dtype=torch.float64)
    """
    return _summed([p], lambda logs: cross_sum(_table(logs[0]), _table(logs[0])))


def cross_entropy(p: Any, q: Any) -> Sum | None:
    """Return `H(p, q) = −Σ p log q = H(p) + KL(p‖q)`, in nats.

    Args:
        p: A torch distribution on the integers.
        q: A torch distribution on the integers; batch shapes broadcast.

    Returns:
        The `Sum`, in nats, differentiable; +inf where p has an outcome that q lacks. None where a
        distribution is not known here or a sum would be too long.

    Example:
        >>> p = torch.distributions.Poisson(3.0)
        >>> cross_entropy(p, p).value
        tensor(1.9315, dtype=torch.float64)
    """
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
        if bool(((beyond <= limits.MAX_REMAINDER * size) | size.isinf()).all()):
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
    """Return the consecutive outcomes from first to last, or None where they would be too many.

    Args:
        first: The first outcome, `[*batch]`.
        last: The last outcome, `[*batch]`.
        known: The lattices to be summed; the largest number of components counts as a factor.

    Returns:
        float64 `[*batch, n]`, n the largest `last − first + 1`: shorter ranges run on beyond their
        last. None for an infinite range, or for more than `limits.MAX_TERMS` terms.

    Example:
        >>> outcomes(torch.tensor(2.0), torch.tensor(4.0), [])
        tensor([2., 3., 4.], dtype=torch.float64)
    """
    if not bool((last - first).isfinite().all()):
        return None
    count = float((last - first).amax()) + 1 if last.numel() else 1.0
    components = max((one.low.shape[-1] for one in known), default=1)
    if count * max(1, first.numel()) * components > limits.MAX_TERMS:
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
