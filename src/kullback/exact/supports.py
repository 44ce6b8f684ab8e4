"""Cumulative distribution functions in float64, also where torch has none (beta, Student's t).

Which to use: `cdf`, for any x: 0 below the support and 1 above it; None where q has none.

Supports and tails of known distributions: whether KL(p‖q) is infinite, and the mean of q/p.

Which to use: `compare(p, q)` before anything is drawn. It decides, from parameters alone, where
KL(p‖q) = +inf because p has mass outside q's support or a tail too heavy for q's; where
`E_p[(q/p)²]` and `E_p[log²(q/p)]` are infinite; and what `E_p[q/p] = Q(support of p)` is.
Known are torch's families on the real line and on the integers, their mixtures, monotone
transforms and independent products; the cdf is `cdfs.cdf`.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from typing import Any

import torch
import torch.distributions as d
from torch import Tensor
from torch.distributions import transforms

from . import limits, tails
from .countable import Lattice, lattice_of, log_masses, outcomes
from .families.continuous import InverseGaussian
from .families.pair import scores_as
from .tails import Tail

__all__ = ["Comparison", "Line", "beta_cdf", "cdf", "compare", "line_of", "unresolved"]


def cdf(q: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
    """Return `Q(X ≤ x)` in float64 of a family on `[low, high]`: 0 below it, 1 above.

    Within about 1e-13 (1e-10 at parameters of 1e5).

    Args:
        q: A torch distribution on the real line; no mixture.
        x: `[*sample, *batch]`, float64.
        low: Lower end of q's support, `[*batch]`.
        high: Upper end of q's support, `[*batch]`.

    Returns:
        `[*sample, *batch]`, or None where neither torch nor this file has a cdf of q.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
        >>> cdf(d.Beta(2.0, 3.0), x, low=torch.tensor(0.0), high=torch.tensor(1.0))
        tensor([0.0000, 0.6875, 1.0000], dtype=torch.float64)
    """
    inside = (low < x) & (x < high)
    middle = torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, 0.0))
    middle = torch.where(low.isfinite() & high.isfinite(), (low + high) / 2, middle)
    found = _inside(q, torch.where(inside, x, middle))
    return None if found is None else torch.where(inside, found.double(), (x >= high).double())


def _inside(q: Any, x: Tensor) -> Tensor | None:
    if isinstance(q, d.Beta):
        return beta_cdf(q.concentration1.double(), q.concentration0.double(), x)
    if isinstance(q, d.StudentT):
        df, z = q.df.double(), (x - q.loc.double()) / q.scale.double()
        half = 0.5 * beta_cdf(df / 2, torch.full_like(df, 0.5), df / (df + z * z))
        return torch.where(z > 0, 1 - half, half)
    if isinstance(q, d.FisherSnedecor):
        one, two = q.df1.double(), q.df2.double()
        return beta_cdf(one / 2, two / 2, one * x / (one * x + two))
    if isinstance(q, InverseGaussian):
        loc, shape = q.loc.double(), q.concentration.double()
        steep, far = (shape / x).sqrt(), torch.special.log_ndtr(-(shape / x).sqrt() * (x / loc + 1))
        both: Tensor = torch.special.ndtr(steep * (x / loc - 1)) + (2 * shape / loc + far).exp()
        return both
    if isinstance(q, d.GeneralizedPareto):  # torch's own fails in float64
        z, shape = (x - q.loc.double()) / q.scale.double(), q.concentration.double()
        slope = torch.where(shape == 0, 1.0, shape)
        return -torch.expm1(-torch.where(shape == 0, z, torch.log1p(slope * z) / slope))
    try:
        found: Tensor = q.cdf(x)
    except NotImplementedError:  # the only way to ask torch whether there is one
        return None
    return found


def beta_cdf(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Return the regularised incomplete beta function `I_x(a, b)`, float64.

    The continued fraction by Lentz's method, on the side of the mean where it converges fast.
    Reference: Abramowitz and Stegun (1964), "Handbook of Mathematical Functions", 26.5.8.

    Args:
        a: First shape parameter, > 0, float64.
        b: Second shape parameter, > 0, float64.
        x: Where it is taken, float64; clamped to [0, 1].

    Returns:
        Probabilities of the shape that a, b and x broadcast to.

    Example:
        >>> beta_cdf(*(torch.tensor(v, dtype=torch.float64) for v in (2.0, 3.0, 0.5)))
        tensor(0.6875, dtype=torch.float64)
    """
    a, b, x = torch.broadcast_tensors(a, b, x.clamp(0.0, 1.0))  # type: ignore[no-untyped-call]
    turned = x > (a + 1) / (a + b + 2)
    one, two = torch.where(turned, b, a), torch.where(turned, a, b)
    at = torch.where(turned, 1 - x, x)
    front = torch.xlogy(one, at) + torch.special.xlog1py(two, -at)
    front = front + (one + two).lgamma() - one.lgamma() - two.lgamma()
    found = front.exp() / one * _fraction(one, two, at)
    return torch.where(turned, 1 - found, found).clamp(0.0, 1.0)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    def away(value: Tensor) -> Tensor:
        return torch.where(value.abs() < limits.MIN_POSITIVE, limits.MIN_POSITIVE, value)

    c = torch.ones_like(x)
    last = 1 / away(1 - (a + b) * x / (a + 1))
    value = last
    for m in range(1, limits.FRACTION_STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            last, c = 1 / away(1 + term * last), away(1 + term / c)
            value = value * last * c
        if bool(((last * c - 1).abs() < limits.FRACTION_TOLERANCE).all()):
            break
    return value


INF = math.inf
OUTSIDE = "p has mass outside q's support"
HEAVY = "p's tail is too heavy for q's: E_p[−log q] is infinite"


@dataclass(frozen=True, slots=True)
class Line:
    """Intervals `[low, high]` and the two tails of each, one a component: tensors `[*batch, K]`.

    alive: whether the component has mass. slack: how far arithmetic may have moved the ends.
    """

    low: Tensor
    high: Tensor
    lower: Tail
    upper: Tail
    alive: Tensor
    slack: Tensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known of a pair from its parameters; all tensors `[*batch]`.

    infinite: bool, KL(p‖q) = +inf; `why` says it in words, "" where it is nowhere.
    ratio_mean: `E_p[q/p] = Q(support of p)`, float64; None where it cannot be computed.
    heavy_ratio: bool, `E_p[(q/p)²]` is infinite; heavy_control: `E_p[(q/p)⁴]` is, so that no
    covariance with q/p has an error; heavy_log: `E_p[log²(q/p)]` is.
    decided: tails were compared, so that KL is finite where `infinite` is False.
    """

    infinite: Tensor
    why: str
    ratio_mean: Tensor | None
    heavy_ratio: Tensor
    heavy_control: Tensor
    heavy_log: Tensor
    decided: bool = True


def compare(p: Any, q: Any) -> Comparison | None:
    """Compare the supports and tails of two distributions; None where not known.

    Exact up to the rounding of the cdf (about 1e-13).

    Args:
        p: A torch distribution.
        q: A torch distribution of the same event shape; batch shapes broadcast.

    Returns:
        A `Comparison` of `[*batch]`: where KL(p‖q) is infinite, the mean of q/p, and which moments
        are infinite. None where a family is not known here.

    Example:
        >>> compare(d.Cauchy(0.0, 1.0), d.Normal(0.0, 1.0)).infinite
        tensor(True)
        >>> found = compare(d.Uniform(0.0, 1.0), d.Exponential(1.0))
        >>> found.infinite, found.ratio_mean
        (tensor(False), tensor(0.6321, dtype=torch.float64))
    """
    batch = (torch.empty(p.batch_shape) + torch.empty(q.batch_shape)).shape
    p, q = (one if one.batch_shape == batch else one.expand(batch) for one in (p, q))
    if _is(p, d.Independent) and _is(q, d.Independent):
        axes = p.reinterpreted_batch_ndims
        inner = compare(p.base_dist, q.base_dist) if axes == q.reinterpreted_batch_ndims else None
        return inner if inner is None or not axes else _product(inner, axes)
    own, other = lattice_of(p), lattice_of(q)
    if own is not None and other is not None:
        return _on_integers(p, q, own, other)
    p_line, q_line = line_of(p), line_of(q)
    if p_line is not None and q_line is not None:
        q_line = _cut_open(q_line, p_line) if _circular(q) else q_line
        return _compared(p, q, p_line, q_line)
    if _shares_transforms(p, q):
        return compare(p.base_dist, q.base_dist)
    return _same_space(p, q, batch)


def _is(p: Any, family: Any) -> bool:
    """Say whether p is an instance of a family and scores as one."""
    return isinstance(p, family) and scores_as(p, family)


def line_of(p: Any) -> Line | None:
    """Return the intervals and tails of a distribution on the real line; None where not known.

    Args:
        p: A torch distribution.

    Returns:
        A `Line` `[*batch, K]` with one entry a component, or None.

    Example:
        >>> line_of(d.Pareto(2.0, 3.0)).low
        tensor([2.], dtype=torch.float64)
    """
    if p.event_shape:
        return None
    if _is(p, d.MixtureSameFamily):
        parts = _ends(p.component_distribution)
        alive = p.mixture_distribution.probs > 0
    else:
        parts = _ends(p)
        parts = None if parts is None else tuple(_last(part) for part in parts)
        alive = torch.ones(1, dtype=torch.bool)
    if parts is None:
        return None
    low, high, lower, upper, slack = parts
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        low.shape, high.shape, lower.order.shape, upper.order.shape, alive.shape
    )
    lower, upper = (tail.map(lambda t: t.expand(shape)) for tail in (lower, upper))
    low, high, alive, slack = (part.expand(shape) for part in (low, high, alive, slack))
    return Line(low, high, lower, upper, alive, slack)


def unresolved(line: Line, dtype: torch.dtype, *, bounded: bool = False) -> Tensor:
    """Return by how much a mean of log p under p may be off because draws are rounded to a dtype.

    Within δ of an end, numbers of the dtype cannot be distinguished. Where p falls as `u^(b − 1)`
    they hold the mass `δ^b`, and `∫ p |log u|` there is about `δ^b / b`. At an infinite end 1/δ is
    the largest number.

    Args:
        line: Intervals and tails of p, as from `line_of`.
        dtype: The floating type of the draws.
        bounded: For the mean of a function between 0 and 1, which is off by the mass alone.

    Returns:
        `[*batch]`, float64, in nats (a mass if bounded): the largest over both ends of the
        components with mass.

    Example:
        >>> line = line_of(d.Beta(5.0, 0.001))
        >>> float(unresolved(line, torch.float64)) > 900
        True
    """
    info = torch.finfo(dtype)
    width = torch.where((line.high - line.low).isfinite(), line.high - line.low, math.inf)
    total = torch.zeros_like(line.low)
    for end, tail in ((line.low, line.lower), (line.high, line.upper)):
        near = info.eps * end.abs() / torch.minimum(width, end.abs())
        gap = torch.where(end == 0, info.tiny, torch.where(end.isfinite(), near, 1 / info.max))
        lost = gap.clamp(max=1.0) ** tail.rate / (1.0 if bounded else tail.rate)
        lost = torch.where((tail.level == 1) & (tail.order == 1), lost, 0.0)
        total = torch.maximum(total, torch.where(tail.level > 1, 1.0, lost))
    return torch.where(line.alive, total, 0.0).amax(-1)


def _last(part: Any) -> Any:
    return part.map(lambda t: t[..., None]) if isinstance(part, Tail) else part[..., None]


def _product(inner: Comparison, axes: int) -> Comparison:
    """Compare products of independent coordinates: any infinite one is enough; masses multiply."""

    def some(where: Tensor) -> Tensor:
        return where.flatten(-axes).any(-1)

    mean = inner.ratio_mean
    mean = None if mean is None else mean.flatten(-axes).prod(-1)
    return replace(
        inner,
        infinite=some(inner.infinite),
        ratio_mean=mean,
        heavy_ratio=some(inner.heavy_ratio),
        heavy_control=some(inner.heavy_control),
        heavy_log=some(inner.heavy_log),
    )


def _shares_transforms(p: Any, q: Any) -> bool:
    """Say whether p and q are images under one invertible map, which changes neither KL nor q/p."""
    both = _is(p, d.TransformedDistribution) and _is(q, d.TransformedDistribution)
    return both and p.transforms == q.transforms and all(t.bijective for t in p.transforms)


def _on_integers(p: Any, q: Any, own: Lattice, other: Lattice) -> Comparison | None:
    """Compare ranges of integers, outcome by outcome where p's range is short.

    No family on the integers here has a tail that makes KL infinite.
    """
    (low_p, high_p), (low_q, high_q) = own.ends(), other.ends()
    beyond = (low_p < low_q) | (high_p > high_q)
    covers = ((low_p <= low_q) & (high_p >= high_q)).all() and own.whole and other.whole
    mean: Tensor | None = torch.ones(beyond.shape, dtype=torch.float64)
    x = None if bool(covers) else outcomes(low_p, high_p, [own, other])
    if x is not None:
        logs = [log_masses(one, x) for one in (p, q)]
        has = (logs[0] > -math.inf) & (x <= high_p[..., None])
        beyond = beyond | (has & (logs[1] == -math.inf)).any(-1)
        within = torch.where(has, logs[1].exp(), 0.0).sum(-1)
        lost = (~has & (logs[1] > -math.inf)).any(-1) | (low_q < low_p) | (high_q > high_p)
        mean = torch.where(lost, within.clamp(max=1.0), 1.0)
    elif not bool(covers):
        mean = None
    no = torch.zeros_like(beyond)
    why = OUTSIDE if bool(beyond.any()) else ""
    return Comparison(beyond, why, mean, no, no, no)


def _same_space(p: Any, q: Any, batch: Any) -> Comparison | None:
    """Compare distributions of several dimensions that both fill one space.

    Tails are not compared: infinite is False where it is not known to be, and whether
    `E_p[(q/p)²]` is infinite the draws have to show.
    """
    spaces = [_space(p), _space(q)]
    if spaces[0] is None or spaces[0] != spaces[1]:
        return None
    no = torch.zeros(batch, dtype=torch.bool)
    return Comparison(no, "", torch.ones(batch, dtype=torch.float64), no, no, no, decided=False)


def _space(p: Any) -> Any:
    """Name the space that a family fills with mass, so that equal names are equal supports."""
    if _is(p, d.MixtureSameFamily):
        return _space(p.component_distribution)
    names = {
        d.MultivariateNormal: (-INF, INF),
        d.LowRankMultivariateNormal: (-INF, INF),
        d.Dirichlet: "simplex",
        d.LogisticNormal: "simplex",
        d.Wishart: "positive definite",
    }
    if not _is(p, d.Independent) or len(p.event_shape) != 1 or p.base_dist.event_shape:
        return names.get(type(p))
    line, lattice = line_of(p.base_dist), lattice_of(p.base_dist)
    if line is not None:
        ends = line.low, line.high
    elif lattice is not None and lattice.whole:
        ends = lattice.low, lattice.high
    else:
        return None
    firsts = tuple(float(end.flatten()[0]) for end in ends)
    alike = all(bool((end == first).all()) for end, first in zip(ends, firsts, strict=True))
    return (*firsts, *(() if line else ("integers",))) if alike else None


def _compared(p: Any, q: Any, p_line: Line, q_line: Line) -> Comparison | None:
    q_line = _snapped(q_line, p_line)
    batch = (p_line.low[..., 0] + q_line.low[..., 0]).shape
    size = math.prod(batch) * p_line.low.shape[-1] * q_line.low.shape[-1]
    if size * (p_line.low.shape[-1] + q_line.low.shape[-1]) * 2 > limits.MAX_COMPARISONS:
        return None
    points = torch.cat(
        [t.expand((*batch, -1)) for one in (p_line, q_line) for t in (one.low, one.high)], -1
    )
    sides = [_at_points(p_line, q_line, points, above=above) for above in (True, False)]
    outside, infinite, ratio, control, log = (
        reduce(torch.logical_or, found) for found in zip(*sides, strict=True)
    )
    why = OUTSIDE if bool(outside.any()) else ""
    if not why and bool(infinite.any()):
        why = HEAVY
    infinite = infinite | outside
    back = [_at_points(q_line, p_line, points, above=above)[0] for above in (True, False)]
    mean = torch.ones(batch, dtype=torch.float64)
    if bool((back[0] | back[1]).any()):
        inside = _mass_within(q, q_line, p_line)
        mean = None if inside is None else torch.where(back[0] | back[1], inside, mean)  # type: ignore[assignment]
    return Comparison(infinite, why, mean, ratio, control, log)


def _at_points(p: Line, q: Line, points: Tensor, *, above: bool) -> tuple[Tensor, ...]:
    """Compare just above (or below) every end of either: the five answers `[*batch]`, bool.

    They are: p has mass there and q none; then what is infinite: `E_p[−log q]`, `E_p[(q/p)²]`,
    `E_p[(q/p)⁴]`, `E_p[log²(q/p)]`.
    Between ends nothing changes, so that these points decide for all.
    """
    (here_p, tail_p), (here_q, tail_q) = (_beside(one, points, above=above) for one in (p, q))
    tail_p, tail_q = tail_p.map(lambda t: t[..., None]), tail_q.map(lambda t: t[..., None, :])
    other = here_q[..., None, :]  # [*batch, points, p's components, q's]

    def none_of(good: Tensor) -> Tensor:
        return (here_p & ~(other & good).any(-1)).any(-1).any(-1)

    outside = (here_p & ~here_q.any(-1, keepdim=True)).any(-1).any(-1)
    infinite = none_of(tails.finite_kl(tail_p, tail_q))
    log = none_of(tails.finite_kl(tail_p, tail_q, moment=2.0))

    def heavy(moment: float) -> Tensor:
        """Say where q's heaviest component is too heavy for p's heaviest."""
        good = tails.finite_ratio(tail_p, tail_q, moment=moment) | ~other
        held = (here_p[..., None] & good).any(-2) | ~here_q | ~here_p.any(-1, keepdim=True)
        return (~held).any(-1).any(-1)

    return outside, infinite, heavy(2.0), heavy(4.0), log


def _beside(line: Line, points: Tensor, *, above: bool) -> tuple[Tensor, Tail]:
    """Say which components have mass just above the points, `[*batch, points, K]`, and how it ends.

    Inside a support the density is taken to be positive and finite: `power(1)`.
    """
    low, high, at = line.low[..., None, :], line.high[..., None, :], points[..., None]
    here = (low <= at) & (at < high) if above else (low < at) & (at <= high)
    here = here & line.alive[..., None, :]
    own = (line.lower if above else line.upper).map(lambda t: t[..., None, :])
    return here, own.where(at == (low if above else high), tails.power(1.0))


def _circular(q: Any) -> bool:
    return isinstance(getattr(q, "component_distribution", q), d.VonMises)


def _cut_open(circle: Line, line: Line) -> Line:
    """Return the turn of a circle that holds a line's intervals, if one turn holds them.

    torch scores angles of any turn. `[−π, π]` is where it draws them, and what an interval, or
    intervals together, of more than 2π are compared with.
    """
    first = torch.where(line.alive, line.low, INF).amin(-1, keepdim=True)
    last = torch.where(line.alive, line.high, -INF).amax(-1, keepdim=True)
    slack = circle.slack.amax(-1, keepdim=True)
    other = (first < -math.pi - slack) | (last > math.pi + slack)
    other = other & (last - first <= 2 * math.pi + slack)
    low = torch.where(other, first, circle.low)
    high = torch.where(other, first + 2 * math.pi, circle.high)
    shape = low.shape
    lower, upper = (tail.map(lambda t: t.expand(shape)) for tail in (circle.lower, circle.upper))
    return Line(low, high, lower, upper, circle.alive.expand(shape), circle.slack.expand(shape))


def _snapped(line: Line, onto: Line) -> Line:
    """Move ends that differ by rounding alone onto the other's, so that they compare as equal."""
    ends = []
    for end in (line.low, line.high):
        for target in (onto.low, onto.high):
            gap = (end[..., :, None] - target[..., None, :]).abs()
            near = gap <= (line.slack[..., :, None] + onto.slack[..., None, :])
            moved = torch.where(near, target[..., None, :], -math.inf).amax(-1)
            end = torch.where(near.any(-1) & end.isfinite(), moved, end)
        ends.append(end)
    return replace(line, low=ends[0], high=ends[1])


def _mass_within(q: Any, own: Line, line: Line) -> Tensor | None:
    """Return `Q(union of the line's intervals)`, `[*batch]`; None where q's cdf is not known."""
    order = torch.where(line.alive, line.low, math.inf).argsort(-1)
    low, high, alive = (t.gather(-1, order) for t in (line.low, line.high, line.alive))
    reached = torch.where(alive, high, -math.inf).cummax(-1).values
    start = torch.cat([low[..., :1], torch.maximum(low[..., 1:], reached[..., :-1])], -1)
    ends = torch.stack([start, torch.maximum(high, start)]).movedim(-1, 1)
    found = _mixed_cdf(q, own, ends)  # [2, K, *batch]
    if found is None:
        return None
    mass = torch.where(alive.movedim(-1, 0), found[1] - found[0], 0.0)
    return mass.clamp(min=0.0).sum(0).clamp(max=1.0)


def _mixed_cdf(q: Any, own: Line, x: Tensor) -> Tensor | None:
    if not isinstance(q, d.MixtureSameFamily):
        return cdf(q, x, own.low[..., 0], own.high[..., 0])
    parts = cdf(q.component_distribution, x[..., None], own.low, own.high)
    masses = q.mixture_distribution.probs.double()
    return None if parts is None else (masses * parts).sum(-1)


Ends = tuple[Tensor, Tensor, Tail, Tail, Tensor]


def _ends(p: Any) -> Ends | None:
    """Return low, high, the tails there and the ends' slack, `[*batch]`, of a named family.

    A subclass that scores by a rule of its own is not known.
    """
    known = _family.dispatch(type(p))
    owner = next((c for c in type(p).__mro__ if c in _family.registry), object)
    return known(p) if scores_as(p, owner) else None


def _on(p: Any, low: Any, high: Any, lower: Tail, upper: Tail, slack: Any = 0.0) -> Ends:
    shape = p.batch_shape
    low, high, slack = (
        torch.as_tensor(end, dtype=torch.float64).expand(shape) for end in (low, high, slack)
    )
    both = [tail.map(lambda t: t.expand(shape)) for tail in (lower, upper)]
    return low, high, both[0], both[1], slack


@singledispatch
def _family(p: Any) -> Ends | None:
    return None


@_family.register(d.Normal)
def _normal(p: Any) -> Ends:
    tail = tails.stretched(2.0, 0.5 / p.scale.double() ** 2)
    return _on(p, -INF, INF, tail, tail)


@_family.register(d.HalfNormal)
def _half_normal(p: Any) -> Ends:
    tail = tails.stretched(2.0, 0.5 / p.scale.double() ** 2)
    return _on(p, 0.0, INF, tails.power(1.0), tail)


@_family.register(d.LogNormal)
def _log_normal(p: Any) -> Ends:
    tail = tails.log_normal(0.5 / p.scale.double() ** 2)
    return _on(p, 0.0, INF, tail, tail)


@_family.register(d.Laplace)
def _laplace(p: Any) -> Ends:
    tail = tails.stretched(1.0, 1 / p.scale.double())
    return _on(p, -INF, INF, tail, tail)


@_family.register(d.Cauchy)
def _cauchy(p: Any) -> Ends:
    return _on(p, -INF, INF, tails.power(1.0), tails.power(1.0))


@_family.register(d.HalfCauchy)
def _half_cauchy(p: Any) -> Ends:
    return _on(p, 0.0, INF, tails.power(1.0), tails.power(1.0))


@_family.register(d.StudentT)
def _student(p: Any) -> Ends:
    return _on(p, -INF, INF, tails.power(p.df.double()), tails.power(p.df.double()))


@_family.register(d.Uniform)
@_family.register(d.ContinuousBernoulli)
def _uniform(p: Any) -> Ends:
    low, high = (p.low, p.high) if isinstance(p, d.Uniform) else (0.0, 1.0)
    return _on(p, low, high, tails.power(1.0), tails.power(1.0))


@_family.register(d.Beta)
@_family.register(d.Kumaraswamy)
def _beta(p: Any) -> Ends:
    one, zero = p.concentration1.double(), p.concentration0.double()
    return _on(p, 0.0, 1.0, tails.power(one), tails.power(zero))


@_family.register(d.Exponential)
def _exponential(p: Any) -> Ends:
    return _on(p, 0.0, INF, tails.power(1.0), tails.stretched(1.0, p.rate.double()))


@_family.register(d.Gamma)
def _gamma(p: Any) -> Ends:
    upper = tails.stretched(1.0, p.rate.double())
    return _on(p, 0.0, INF, tails.power(p.concentration.double()), upper)


@_family.register(d.InverseGamma)
def _inverse_gamma(p: Any) -> Ends:
    lower = tails.stretched(1.0, p.rate.double())
    return _on(p, 0.0, INF, lower, tails.power(p.concentration.double()))


@_family.register(InverseGaussian)
def _inverse_gaussian(p: Any) -> Ends:
    shape, loc = p.concentration.double(), p.loc.double()
    rate = torch.nextafter(shape / (2 * loc**2), torch.tensor(INF, dtype=torch.float64))
    # one ulp more than the rate: its factor y^(−3/2) makes E exp(rate · Y) finite at equality
    return _on(p, 0.0, INF, tails.stretched(1.0, shape / 2), tails.stretched(1.0, rate))


@_family.register(d.Weibull)
def _weibull(p: Any) -> Ends:
    order, scale = p.concentration.double(), p.scale.double()
    return _on(p, 0.0, INF, tails.power(order), tails.stretched(order, scale**-order))


@_family.register(d.Gumbel)
def _gumbel(p: Any) -> Ends:
    rate = 1 / p.scale.double()
    return _on(p, -INF, INF, tails.double_exponential(rate), tails.stretched(1.0, rate))


@_family.register(d.Pareto)
def _pareto(p: Any) -> Ends:
    return _on(p, p.scale, INF, tails.power(1.0), tails.power(p.alpha.double()))


@_family.register(d.GeneralizedPareto)
def _generalized_pareto(p: Any) -> Ends:
    low, scale, shape = p.loc.double(), p.scale.double(), p.concentration.double()
    index = 1 / torch.where(shape == 0, 1.0, shape).abs()
    upper = tails.stretched(1.0, 1 / scale).where(shape == 0, tails.power(index))
    high = torch.where(shape < 0, low + scale * index, INF)
    size = torch.maximum(low.abs(), scale * index)
    slack = torch.where(shape < 0, limits.ENDS_ULPS * torch.finfo(p.scale.dtype).eps * size, 0.0)
    return _on(p, low, high, tails.power(1.0), upper, slack)


@_family.register(d.VonMises)
def _von_mises(p: Any) -> Ends:
    slack = limits.ENDS_ULPS * torch.finfo(torch.float32).eps * math.pi
    return _on(p, -math.pi, math.pi, tails.power(1.0), tails.power(1.0), slack)


@_family.register(d.FisherSnedecor)
def _snedecor(p: Any) -> Ends:
    return _on(p, 0.0, INF, tails.power(p.df1.double() / 2), tails.power(p.df2.double() / 2))


@_family.register(d.TransformedDistribution)
def _transformed(p: Any) -> Ends | None:
    ends = None if p.event_shape else _ends(p.base_dist)
    for transform in p.transforms:
        ends = None if ends is None else _moved(ends, transform)
    if ends is None:
        return None
    low, high, lower, upper, slack = ends
    bits = torch.finfo(p.base_dist.mean.dtype).eps if _floats(p.base_dist) else 0.0
    size = torch.stack([torch.where(end.isfinite(), end.abs(), 0.0) for end in (low, high)])
    return _on(p, low, high, lower, upper, slack + limits.ENDS_ULPS * bits * size.amax(0))


def _floats(p: Any) -> bool:
    return isinstance(p.mean, Tensor)


def _moved(ends: Ends, transform: Any) -> Ends | None:
    """Return the ends of T(x) for a monotone T whose effect on tails is known, else None."""
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            found = _moved(ends, part)
            if found is None:
                return None
            ends = found
        return ends
    low, high, lower, upper, slack = ends
    first, last = _sent(transform, low, lower), _sent(transform, high, upper)
    if first is None or last is None:
        return None
    turned = first[0] > last[0]
    low, high = torch.minimum(first[0], last[0]), torch.maximum(first[0], last[0])
    return low, high, last[1].where(turned, first[1]), first[1].where(turned, last[1]), slack


def _sent(transform: Any, end: Tensor, tail: Tail) -> tuple[Tensor, Tail] | None:
    """Return T(end) and the tail there: y grows by a factor, a power, or as e^y or log y."""
    inner = transform.inv if isinstance(transform, transforms._InverseTransform) else None
    if isinstance(inner, transforms.ExpTransform):
        inside = (end > 0) & end.isfinite()
        near = tails.scaled(tail, torch.where(inside, end, 1.0))
        return end.log(), near.where(inside, tails.exponentiated(tail, -1))
    if type(inner) in _LOGS:
        low, curve, times, per_slope = _LOGS[type(inner)]
        if bool(((end < low) | (end > 1)).any()):
            return None
        inside = (end > low) & (end < 1)
        near = tails.scaled(tail, per_slope(torch.where(inside, end, 0.5)))
        far = tails.scaled(tails.exponentiated(tail, -1), torch.full_like(end, times))
        return curve(end), near.where(inside, far)
    if isinstance(transform, transforms.PowerTransform):
        power = transform.exponent.double()
        if bool(((tail.level < 0) & (power != 1)).any()):
            return None
        inside = (end > 0) & end.isfinite()
        slope = power.abs() * torch.where(inside, end, 1.0) ** (power - 1)
        far = tails.powered(tail, power.abs())
        return end**power, tails.scaled(tail, 1 / slope).where(inside, far)
    if isinstance(transform, transforms.AffineTransform):
        scale = torch.as_tensor(transform.scale, dtype=torch.float64)
        moved = torch.as_tensor(transform.loc, dtype=torch.float64) + scale * end
        factor = torch.where(end.isfinite(), 1 / scale.abs(), scale.abs())
        return moved, tails.scaled(tail, factor)
    if type(transform) not in _CURVES:
        return None
    curve, times, slope_at = _CURVES[type(transform)]
    slope = slope_at(torch.where(end.isfinite(), end, 0.0))
    far = tails.exponentiated(tails.scaled(tail, torch.full_like(end, times)))
    if isinstance(transform, transforms.SoftplusTransform):
        far = tail.where(end > 0, far)
    return curve(end), tails.scaled(tail, 1 / slope).where(end.isfinite(), far)


# Inverses of maps onto (low, 1): low, the curve, the m of y → m log y at an end, and 1/T'
_LOGS: dict[type, tuple[float, Any, float, Any]] = {
    transforms.SigmoidTransform: (0.0, torch.logit, 1.0, lambda x: x * (1 - x)),
    transforms.TanhTransform: (-1.0, torch.atanh, 0.5, lambda x: 1 - x**2),
}

# T, the m of y → e^(m y) at an infinite end, T'
_CURVES: dict[type, tuple[Any, float, Any]] = {
    transforms.ExpTransform: (torch.exp, 1.0, torch.exp),
    transforms.SigmoidTransform: (torch.sigmoid, 1.0, lambda x: x.sigmoid() * (-x).sigmoid()),
    transforms.TanhTransform: (torch.tanh, 2.0, lambda x: 1 - x.tanh() ** 2),
    transforms.SoftplusTransform: (torch.nn.functional.softplus, 1.0, torch.sigmoid),
}
