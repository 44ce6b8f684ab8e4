"""Rényi divergences between named families, from exponential-family log-normalisers.

Which to use: `RENYI` through `closed_forms.renyi`. With natural parameters θ and log-normaliser A,
`D_α(p‖q) = [A(α θ_p + (1 − α) θ_q) − α A(θ_p) − (1 − α) A(θ_q)] / (α − 1)` while the mixed
parameter is one the family has, and +inf when it is not (α > 1 only). Computed in float64; the
rounding error grows like eps/|α − 1|.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError
from kullback.core.checks import message
from kullback.exact.row_sums import renyi_sum

from .discrete import tables_of
from .gaussian import gaussian_of, not_gaussian
from .pair import Pair, on
from .triangular import log_diagonal, solve_lower

__all__ = ["RENYI"]


def _exponential_family(
    normaliser: Callable[..., Tensor], inside: Callable[..., Tensor], *names: str
) -> Callable[[Any, Any, float], Tensor]:
    """Build `D_α` from A(θ) and from the test whether θ is inside; names are the parameters."""

    def divergence(p: Any, q: Any, alpha: float) -> Tensor:
        def formula(*both: Tensor) -> Tensor:
            half = len(both) // 2
            first, second = both[:half], both[half:]
            pairs = zip(first, second, strict=True)
            mixed = tuple(alpha * a + (1 - alpha) * b for a, b in pairs)
            good = inside(*mixed)
            safe = (torch.where(good, m, a) for m, a in zip(mixed, first, strict=True))
            jensen = normaliser(*safe) - alpha * normaliser(*first)
            value = (jensen - (1 - alpha) * normaliser(*second)) / (alpha - 1)
            return value.masked_fill(~good, math.inf)

        return on(*names, double=True)(formula)(p, q)

    return divergence


def _positive(*parameters: Tensor) -> Tensor:
    good = parameters[0] > 0
    for parameter in parameters[1:]:
        good = good & (parameter > 0)
    return good


def _gamma_normaliser(shape: Tensor, rate: Tensor) -> Tensor:
    return shape.lgamma() - shape * rate.log()


def _beta_normaliser(one: Tensor, zero: Tensor) -> Tensor:
    return one.lgamma() + zero.lgamma() - (one + zero).lgamma()


_gamma = _exponential_family(_gamma_normaliser, _positive, "concentration", "rate")


def _inverse_gamma(p: Any, q: Any, alpha: float) -> Tensor:
    return _gamma(p.base_dist, q.base_dist, alpha)


def _dirichlet(p: Any, q: Any, alpha: float) -> Tensor:
    def formula(first: Tensor, second: Tensor) -> Tensor:
        mixed = alpha * first + (1 - alpha) * second
        good = (mixed > 0).all(-1)
        mixed = torch.where(good[..., None], mixed, first)
        parts = [c.lgamma().sum(-1) - c.sum(-1).lgamma() for c in (mixed, first, second)]
        value = (parts[0] - alpha * parts[1] - (1 - alpha) * parts[2]) / (alpha - 1)
        return value.masked_fill(~good, math.inf)

    return on("concentration", double=True)(formula)(p, q)


def _poisson(p: Any, q: Any, alpha: float) -> Tensor:
    """`[λ^α μ^(1−α) − α λ − (1 − α) μ] / (α − 1)`; a rate of 0 is a point mass at 0."""

    def formula(first: Tensor, second: Tensor) -> Tensor:
        power = torch.xlogy(alpha, first) + (1 - alpha) * second.log()
        mixed = torch.where(first > 0, power.exp(), 0)
        return (mixed - alpha * first - (1 - alpha) * second) / (alpha - 1)

    return on("rate", double=True)(formula)(p, q)


def _table(p: Any, q: Any, alpha: float) -> Tensor:
    return renyi_sum(*tables_of(p, q), alpha)


def _gaussian(p: Any, q: Any, alpha: float) -> Tensor:
    """`α/2 δᵀS⁻¹δ − [log|S| − (1 − α) log|Σ_p| − α log|Σ_q|]/(2(α − 1))`, S = (1−α)Σ_p + αΣ_q."""
    first, second = gaussian_of(p), gaussian_of(q)
    if first is None or second is None:
        raise ArgumentTypeError(message("p and q", "Gaussians over one vector axis", f"{p}, {q}"))
    if not (first.full or second.full):
        return _normal(first.loc, first.scale, second.loc, second.scale, alpha).sum(-1)
    dense_p, dense_q = first.dense().double(), second.dense().double()
    total = (1 - alpha) * dense_p @ dense_p.mT + alpha * dense_q @ dense_q.mT
    tril, info = torch.linalg.cholesky_ex(total)
    good = info == 0
    tril = torch.where(good[..., None, None], tril, dense_p)
    gap = (first.loc - second.loc).double()[..., None]
    squares = solve_lower(tril, gap).square().sum((-1, -2))
    dets = [log_diagonal(t) for t in (tril, dense_p, dense_q)]
    rest = (dets[0] - (1 - alpha) * dets[1] - alpha * dets[2]) / (alpha - 1)
    value = (alpha / 2 * squares - rest).masked_fill(~good, math.inf)
    return value.to(torch.promote_types(first.loc.dtype, second.loc.dtype))


def _normal(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor, alpha: float) -> Tensor:
    ratio = (scale_p / scale_q).double()
    mixed = (1 - alpha) * ratio**2 + alpha  # the mixed variance, in units of q's
    good = mixed > 0
    mixed = torch.where(good, mixed, 1)
    squares = ((loc_p - loc_q).double() / scale_q.double()) ** 2 / mixed
    rest = (mixed.log() / 2 - (1 - alpha) * ratio.log()) / (alpha - 1)
    return (alpha / 2 * squares - rest).masked_fill(~good, math.inf).to(loc_p.dtype)


def _scalar_normal(p: Any, q: Any, alpha: float) -> Tensor:
    return _normal(p.loc, p.scale, q.loc, q.scale, alpha)


_EXPONENTIAL = "exponential family: its log-normaliser at the mixed parameter"
_GIL = "Gil, Alajaji and Linder 2013"

RENYI: dict[tuple[type, type], Pair] = {
    (families.Normal, families.Normal): Pair(_scalar_normal, _GIL),
    (families.MultivariateNormal, families.MultivariateNormal): Pair(_gaussian, _GIL, not_gaussian),
    (families.Independent, families.MultivariateNormal): Pair(_gaussian, _GIL, not_gaussian),
    (families.MultivariateNormal, families.Independent): Pair(_gaussian, _GIL, not_gaussian),
    (families.Exponential, families.Exponential): Pair(
        _exponential_family(lambda rate: -rate.log(), _positive, "rate"), _EXPONENTIAL
    ),
    (families.Gamma, families.Gamma): Pair(_gamma, _EXPONENTIAL),
    (families.InverseGamma, families.InverseGamma): Pair(_inverse_gamma, "Gamma, of 1/x"),
    (families.Beta, families.Beta): Pair(
        _exponential_family(_beta_normaliser, _positive, "concentration1", "concentration0"),
        _EXPONENTIAL,
    ),
    (families.Dirichlet, families.Dirichlet): Pair(_dirichlet, _EXPONENTIAL),
    (families.Poisson, families.Poisson): Pair(_poisson, _EXPONENTIAL),
    (families.Bernoulli, families.Bernoulli): Pair(_table, "the sum itself, `tables.renyi`"),
    (families.Categorical, families.Categorical): Pair(_table, "the sum itself, `tables.renyi`"),
    (families.OneHotCategorical, families.OneHotCategorical): Pair(
        _table, "the sum itself, `tables.renyi`"
    ),
}
