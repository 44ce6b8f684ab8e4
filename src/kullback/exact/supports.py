"""Supports and tails of known distributions: whether KL(p‖q) is infinite, and the mean of q/p.

Which to use: `compare(p, q)` before anything is drawn. It decides, from parameters alone, where
KL(p‖q) = +inf because p has mass outside q's support or a tail too heavy for q's; where
`E_p[(q/p)²]` and `E_p[log²(q/p)]` are infinite; and what `E_p[q/p] = Q(support of p)` is.
Known are torch's families on the real line and on the integers, their mixtures, monotone
transforms and independent products; intervals are of `intervals`, the cdf of `cdfs`.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
import torch.distributions as d
from torch import Tensor

from . import limits, tails
from .cdfs import cdf
from .countable import Lattice, lattice_of, log_masses, outcomes
from .intervals import INF, Line, is_of, line_of, unresolved
from .tails import Tail

__all__ = ["Comparison", "Line", "compare", "line_of", "unresolved"]

OUTSIDE = "p has mass outside q's support"
HEAVY = "p's tail is too heavy for q's: E_p[−log q] is infinite"


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
    if is_of(p, d.Independent) and is_of(q, d.Independent):
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
    both = is_of(p, d.TransformedDistribution) and is_of(q, d.TransformedDistribution)
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
    if is_of(p, d.MixtureSameFamily):
        return _space(p.component_distribution)
    names = {
        d.MultivariateNormal: (-INF, INF),
        d.LowRankMultivariateNormal: (-INF, INF),
        d.Dirichlet: "simplex",
        d.LogisticNormal: "simplex",
        d.Wishart: "positive definite",
    }
    if not is_of(p, d.Independent) or len(p.event_shape) != 1 or p.base_dist.event_shape:
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
