"""The intervals and tails of known families on the real line, from their parameters alone.

Which to use: `line_of`, for torch's families, their mixtures and monotone transforms of them; None
where one is not known. `unresolved` says what rounding of draws may hide at the ends.
"""

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.distributions as d
from torch import Tensor
from torch.distributions import transforms

from . import limits, tails
from .families.continuous import InverseGaussian
from .families.pair import scores_as
from .tails import Tail

__all__ = ["INF", "Line", "is_of", "line_of", "unresolved"]

INF = math.inf


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


def is_of(p: Any, family: Any) -> bool:
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
    if is_of(p, d.MixtureSameFamily):
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
