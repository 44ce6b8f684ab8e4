"""P, Q and the pointwise integrand of a divergence as numbers to draw.

Which to use: `profile`. A table and a discrete distribution are read at their outcomes, a density
on a grid that covers nearly all that draws from P and Q reach.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, require
from kullback.core.checks import message
from kullback.sampled.densities import log_density
from kullback.sampled.draw_from import draw_from

from .layout import UNITS

__all__ = ["Profile", "profile"]

POINTS, DRAWS, RARE, MOST = 300, 20_000, 1e-3, 4000
FAR = 8.0  # quartile distances from the quartiles beyond which tails are not shown


@dataclass(frozen=True, slots=True)
class Profile:
    """Places x, masses or densities p and q there, the integrand in a unit, and its integral.

    x, p, q, integrand: NumPy float64 `[places]`, which is what a picture takes.

    integrand: +inf where p has mass that q lacks. total: the sum, or the integral, far beyond x,
    by the trapezoid rule: good to the four digits that are shown, not an oracle.
    """

    x: Any
    p: Any
    q: Any
    integrand: Any
    discrete: bool
    total: float


def profile(quantity: str, p: Any, q: Any = None, *, unit: str) -> Profile:
    """Evaluate p, q and the integrand of "entropy", "cross-entropy", "kl" or "js".

    p, q: tables `[outcomes]`, or torch distributions over single numbers.
    Errors: `ArgumentValueError` for distributions over vectors.

    >>> table = torch.tensor([0.5, 0.5])
    >>> profile("entropy", table, unit="bits").integrand
    array([0.5, 0.5])
    """
    given = [d for d in (p, q) if d is not None]
    if isinstance(p, Tensor):
        require(len(p) <= MOST, "--plot", f"at most {MOST} outcomes", len(p))
        x = torch.arange(1, len(p) + 1, dtype=torch.float64)
        logs = [d.double().log() for d in given]
        values = _integrand(quantity, *logs) / UNITS[unit]
        return _profile(x, logs, values, discrete=True, total=float(values.sum()))
    single = all(not d.event_shape and not d.batch_shape for d in given)
    require(single, "--plot", "distributions over single numbers", "over vectors")
    seeded = torch.Generator().manual_seed(0)
    draws = [draw_from(d, DRAWS, generator=seeded).double().sort().values for d in given]
    discrete = all(bool(d.support.is_discrete) for d in given)
    x = _outcomes(draws) if discrete else _places(draws)
    wide = _beyond(x) if discrete else _everywhere(draws)
    logs, far = ([log_density(d, points).double() for d in given] for points in (x, wide))
    weights = torch.ones_like(wide) if discrete else _widths(wide)
    values, tails = (_integrand(quantity, *each) / UNITS[unit] for each in (logs, far))
    total = float((tails * weights).sum())
    return _profile(x, logs, values, discrete=discrete, total=total)


def _profile(
    x: Tensor, logs: list[Tensor], integrand: Tensor, *, discrete: bool, total: float
) -> Profile:
    p, q = logs[0].exp().numpy(), logs[1].exp().numpy() if len(logs) > 1 else None
    return Profile(x.numpy(), p, q, integrand.numpy(), discrete, total)


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


def _outcomes(draws: list[Tensor]) -> Tensor:
    """Return every whole number between the least and the greatest draw."""
    low, high = min(float(d[0]) for d in draws), max(float(d[-1]) for d in draws)
    if high - low > MOST:
        raise ArgumentValueError(message("--plot", f"at most {MOST} outcomes", f"{high - low:g}"))
    return torch.arange(low, high + 1, dtype=torch.float64)


def _beyond(x: Tensor) -> Tensor:
    """Return the whole numbers shown and as many again, at least 50, on either side."""
    room = max(50, len(x))
    return torch.arange(float(x[0]) - room, float(x[-1]) + room + 1, dtype=torch.float64)


def _places(draws: list[Tensor]) -> Tensor:
    """Return where to look at densities: nearly all draws, without the far ends of heavy tails."""
    ends = []
    for drawn in draws:
        levels = torch.tensor([RARE, 0.25, 0.75, 1 - RARE], dtype=torch.float64)
        low, first, third, high = torch.quantile(drawn, levels).tolist()
        reach = FAR * (third - first)
        ends.append((max(low, first - reach), min(high, third + reach)))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    room = 0.04 * (high - low)
    parts = [torch.linspace(*end, POINTS, dtype=torch.float64) for end in ends]
    whole = torch.linspace(low - room, high + room, POINTS, dtype=torch.float64)
    return torch.cat([whole, *parts]).sort().values


def _everywhere(draws: list[Tensor]) -> Tensor:
    """Return where to integrate: at the draws, dense where mass is, and far into the tails."""
    middle, spread = draws[0].median(), draws[0].std().clamp(max=1e6)
    tails = torch.linspace(-14, 14, DRAWS, dtype=torch.float64).sinh()
    return torch.cat([*draws, middle + spread * tails]).sort().values


def _widths(x: Tensor) -> Tensor:
    """Return the trapezoid rule's weights."""
    gaps = x.diff()
    zero = gaps.new_zeros(1)
    return (torch.cat([gaps, zero]) + torch.cat([zero, gaps])) / 2
