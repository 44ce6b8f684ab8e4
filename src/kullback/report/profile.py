"""P, Q and the pointwise integrand of a divergence as numbers to draw.

Which to use: `profile`. A table and a discrete distribution are read at their outcomes, a density
on a grid that covers nearly all that draws from P and Q reach.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.core import ArgumentValueError, require
from kullback.core.checks import message
from kullback.sampled.draw import draw_from, log_density

from .layout import UNITS

__all__ = ["Profile", "profile"]

POINTS, DRAWS, RARE, MOST = 1500, 20_000, 1e-3, 4000


@dataclass(frozen=True, slots=True)
class Profile:
    """Places x, masses or densities p and q there, the integrand in a unit, and its integral.

    integrand: +inf where p has mass that q lacks. total: the sum, or the integral over the grid.
    """

    x: Tensor
    p: Tensor
    q: Tensor | None
    integrand: Tensor
    discrete: bool
    total: float


def profile(quantity: str, p: Any, q: Any = None, *, unit: str) -> Profile:
    """Evaluate p, q and the integrand of "entropy", "cross-entropy", "kl" or "js".

    p, q: tables `[outcomes]`, or torch distributions over single numbers.
    Errors: `ArgumentValueError` for distributions over vectors.

    >>> table = torch.tensor([0.5, 0.5])
    >>> profile("entropy", table, unit="bits").integrand
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    given = [d for d in (p, q) if d is not None]
    if isinstance(p, Tensor):
        discrete, x = True, torch.arange(1, len(p) + 1, dtype=torch.float64)
        logs = [d.double().log() for d in given]
    else:
        single = all(not d.event_shape and not d.batch_shape for d in given)
        require(single, "--plot", "distributions over single numbers", "over vectors")
        discrete = all(bool(d.support.is_discrete) for d in given)
        x = _places(given, discrete=discrete)
        logs = [log_density(d, x).double() for d in given]
    integrand = _integrand(quantity, *logs) / UNITS[unit]
    weights = torch.ones_like(x) if discrete else _widths(x)
    total = float((integrand * weights).sum())
    other = logs[1].exp() if len(logs) > 1 else None
    return Profile(x, logs[0].exp(), other, integrand, discrete, total)


def _integrand(quantity: str, log_p: Tensor, log_q: Tensor | None = None) -> Tensor:
    """Return p·log 1/p, p·log 1/q, p·log p/q, or ½p·log p/m + ½q·log q/m, 0 where p is 0."""
    if log_q is None:
        return _times(log_p, -log_p)
    if quantity == "cross-entropy":
        return _times(log_p, -log_q)
    if quantity == "kl":
        return _times(log_p, log_p - log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_times(log_p, log_p - log_m) + _times(log_q, log_q - log_m)) / 2


def _times(log_p: Tensor, factor: Tensor) -> Tensor:
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * factor)


def _places(given: list[Distribution], *, discrete: bool) -> Tensor:
    """Return where to look: between the rare quantiles of draws from each."""
    seeded = torch.Generator().manual_seed(0)
    draws = [draw_from(d, DRAWS, generator=seeded).double() for d in given]
    ends = torch.stack([torch.quantile(d, torch.tensor([RARE, 1 - RARE]).double()) for d in draws])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if discrete:
        low, high = math.floor(low), math.ceil(high)
        if high - low > MOST:
            raise ArgumentValueError(message("--plot", f"at most {MOST} outcomes", high - low))
        return torch.arange(low, high + 1, dtype=torch.float64)
    room = 0.04 * (high - low) or 1.0
    whole = torch.linspace(low - room, high + room, POINTS, dtype=torch.float64)
    parts = [torch.linspace(*end.tolist(), POINTS, dtype=torch.float64) for end in ends]
    return torch.cat([whole, *parts]).unique()


def _widths(x: Tensor) -> Tensor:
    """Return the trapezoid rule's weights."""
    gaps = x.diff()
    zero = gaps.new_zeros(1)
    return (torch.cat([gaps, zero]) + torch.cat([zero, gaps])) / 2
