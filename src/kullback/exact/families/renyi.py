"""Rényi divergences between named families, as sums of KLs to the mixed parameter.

Which to use: `RENYI` through `closed_forms.renyi`. With natural parameters θ and the member m of
the family at `α θ_p + (1 − α) θ_q`,
`D_α(p‖q) = [α KL(m‖p) + (1 − α) KL(m‖q)]/(1 − α)` for α < 1, and
`D_α(p‖q) = KL(p‖m)/(α − 1) + KL(p‖q)` for α > 1: terms ≥ 0, so that nothing cancels. +inf where the
family has no such m (α > 1 only). Computed in float64.
Reference: van Erven and Harremoës 2014, theorem 30 (α < 1); for α > 1 the log-normalisers put in.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError, message
from kullback.exact.bregman import log_excess, log_ratio
from kullback.exact.table_sums import Table, alpha_sum, renyi_sum

from .continuous import dirichlet_kl_of_steps, gamma_kl_of_steps
from .discrete import result_dtype, tables_of
from .gaussian import gaussian_of, not_gaussian
from .pair import Pair, Parameters, float_dtype, in_float64, solve_lower

__all__ = ["RENYI"]


def _from_kls(alpha: float, kl: Callable[[float, float], Tensor], good: Tensor) -> Tensor:
    """Return `D_α` from `kl(s, t)`, the KL of the member at `θ_p + s (θ_q − θ_p)` from that at t.

    good: where the mixed parameter is one that the family has; +inf elsewhere.
    """
    mixed = 1 - alpha
    if alpha < 1:
        return (alpha * kl(mixed, 0.0) + mixed * kl(mixed, 1.0)) / mixed
    return (kl(0.0, mixed) / (alpha - 1) + kl(0.0, 1.0)).masked_fill(~good, math.inf)


def _gamma(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    shape, rate = p.concentration, p.rate
    return _gamma_order(shape, q.concentration, (q.rate - rate) / rate, alpha)


def _exponential(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    one = torch.ones_like(p.rate)
    return _gamma_order(one, torch.ones_like(q.rate), (q.rate - p.rate) / p.rate, alpha)


def _member(p: Tensor, q: Tensor, step: Tensor, at: float) -> Tensor:
    """Return `p + at · step`, step = q − p, and the ends themselves, which the sum may lose."""
    return {0.0: p, 1.0: q}.get(at, p + at * step)


def _gamma_order(shape: Tensor, other: Tensor, rate_step: Tensor, alpha: float) -> Tensor:
    """As for two Gammas of these shapes; rate_step is relative, b_q/b_p − 1."""
    step = other - shape
    good = (shape + (1 - alpha) * step > 0) & ((1 - alpha) * rate_step > -1)
    safe_step, safe_rate = (torch.where(good, s, 0) for s in (step, rate_step))

    safe = torch.where(good, other, shape)

    def kl(first: float, second: float) -> Tensor:
        log_rate = torch.log1p(second * safe_rate) - torch.log1p(first * safe_rate)
        near = (second - first) * safe_rate / (1 + first * safe_rate)
        log_rate = torch.where(near.abs() < 0.5, near.clamp(min=-0.9).log1p(), log_rate)
        start, end = (_member(shape, safe, safe_step, at) for at in (first, second))
        return gamma_kl_of_steps(start, (second - first) * safe_step, log_rate, other=end)

    return _from_kls(alpha, kl, good)


def _beta(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    first, second = (torch.stack([d.concentration1, d.concentration0], -1) for d in (p, q))
    return _dirichlet_order(first, second, alpha)


def _dirichlet(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    return _dirichlet_order(p.concentration, q.concentration, alpha)


def _dirichlet_order(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    p, q = torch.broadcast_tensors(p, q)  # type: ignore[no-untyped-call]
    steps = q - p
    good = (p + (1 - alpha) * steps > 0).all(-1)
    safe = torch.where(good[..., None], steps, 0)
    end = torch.where(good[..., None], q, p)

    def kl(first: float, second: float) -> Tensor:
        start, other = (_member(p, end, safe, at) for at in (first, second))
        return dirichlet_kl_of_steps(start, (second - first) * safe, q=other)

    return _from_kls(alpha, kl, good)


def _poisson(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    """`[λ^α μ^(1−α) − α λ − (1 − α) μ] / (α − 1)`, a table's term; a rate of 0 is a point mass."""
    rates = torch.broadcast_tensors(p.rate, q.rate)  # type: ignore[no-untyped-call]
    first, second = (Table(rate[..., None], by_mass=True) for rate in rates)
    return alpha_sum(first, second, alpha)


def _table(p: Any, q: Any, alpha: float) -> Tensor:
    first, second = tables_of(p, q)
    return renyi_sum(first, second, alpha).to(result_dtype(p, q))


def _gaussian(p: Any, q: Any, alpha: float) -> Tensor:
    """`α/2 δᵀS⁻¹δ`, S = (1 − α)Σ_p + αΣ_q, and `_normals` over the eigenvalues of `Σ_q⁻¹Σ_p`."""
    first, second = gaussian_of(p), gaussian_of(q)
    if first is None or second is None:
        raise ArgumentTypeError(message("p and q", "Gaussians over one vector axis", f"{p}, {q}"))
    dtype = float_dtype(first.loc.dtype, second.loc.dtype)
    first, second = first.double(), second.double()
    gap = first.loc - second.loc
    if not (first.full or second.full):
        log_steps = 2 * log_ratio(first.scale, second.scale)
        return _normals(gap / second.scale, log_steps, alpha).sum(-1).to(dtype)
    dense = second.dense()
    step = solve_lower(dense, first.dense() - dense)
    eigenvalues = torch.linalg.eigvalsh(step + step.mT + step @ step.mT)
    good = ((1 - alpha) * eigenvalues > -1).all(-1)
    log_steps = torch.where(good[..., None], eigenvalues, 0).clamp(min=-1 + 1e-16).log1p()
    rest = _normals(torch.zeros_like(log_steps), log_steps, alpha).sum(-1)
    total = (1 - alpha) * first.dense() @ first.dense().mT + alpha * dense @ dense.mT
    tril = torch.linalg.cholesky_ex(torch.where(good[..., None, None], total, dense @ dense.mT))[0]
    squares = solve_lower(tril, gap[..., None]).square().sum((-1, -2))
    return (alpha / 2 * squares + rest).masked_fill(~good, math.inf).to(dtype)


def _normals(gap: Tensor, log_step: Tensor, alpha: float) -> Tensor:
    """Return `D_α` of Normals: gap = (μ_p − μ_q)/σ_q, log_step = log σ_p²/σ_q²."""
    surplus = (1 - alpha) * torch.expm1(log_step)
    good = surplus > -1  # 1 + surplus is the mixed variance, in units of q's
    mixed = torch.log1p(torch.where(good, surplus, 0))
    if alpha < 1:
        shares = alpha * log_excess(-mixed) + (1 - alpha) * log_excess(log_step - mixed)
        rest = shares / (1 - alpha)
    else:
        rest = log_excess(mixed) / (alpha - 1) + log_excess(log_step)
    value = 0.5 * (alpha * gap**2 * torch.exp(-mixed) + rest)
    return value.masked_fill(~good, math.inf)


def _normal(p: Parameters, q: Parameters, alpha: float) -> Tensor:
    return _normals((p.loc - q.loc) / q.scale, 2 * log_ratio(p.scale, q.scale), alpha)


def _with_order(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda p, q, alpha: in_float64(lambda a, b: formula(a, b, alpha))(p, q)


_EXPONENTIAL = "exponential family: KLs to the mixed parameter"
_GIL = "Gil, Alajaji and Linder 2013"
_TABLE = "the sum itself, `tables.renyi`"
_DENSE = (families.MultivariateNormal, families.Independent)

RENYI: dict[tuple[type, type], Pair] = {
    (families.Normal, families.Normal): Pair(_with_order(_normal), _GIL),
    **{
        (p, q): Pair(_gaussian, _GIL, not_gaussian)
        for p in _DENSE
        for q in _DENSE
        if (p, q) != (families.Independent, families.Independent)
    },
    (families.Exponential, families.Exponential): Pair(_with_order(_exponential), _EXPONENTIAL),
    (families.Gamma, families.Gamma): Pair(_with_order(_gamma), _EXPONENTIAL),
    (families.InverseGamma, families.InverseGamma): Pair(_with_order(_gamma), "Gamma, of 1/x"),
    (families.Beta, families.Beta): Pair(_with_order(_beta), _EXPONENTIAL),
    (families.Dirichlet, families.Dirichlet): Pair(_with_order(_dirichlet), _EXPONENTIAL),
    (families.Poisson, families.Poisson): Pair(_with_order(_poisson), _EXPONENTIAL),
    **{
        (family, family): Pair(_table, _TABLE)
        for family in (families.Bernoulli, families.Categorical, families.OneHotCategorical)
    },
}
