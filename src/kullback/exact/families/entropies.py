"""Entropies of named families, in float64 and in terms whose large parts have been cancelled.

Which to use: `ENTROPIES` through `closed_forms.entropy`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.exact.bregman import (
    HALF_LOG_2PI,
    NORMAL_ENTROPY,
    of_log_sinhc,
    stirling,
    stirling_slope,
    stirling_slope_step,
)
from kullback.exact.table_sums import cross_sum

from .continuous import EULER, tilt
from .crossed import beta_negentropy, gamma_negentropy
from .discrete import log_binomial, result_dtype, table_of, with_nan
from .pair import Pair, Parameters, in_float64, log_diagonal

__all__ = ["ENTROPIES"]


def _table(p: Any) -> Tensor:
    """`−Σ p log p`."""
    table = table_of(p)
    return with_nan(cross_sum(table, table), table).to(result_dtype(p))


def _geometric(p: Any) -> Tensor:
    """As the Bernoulli, once for each of the 1/p trials."""
    table = table_of(p)
    return (cross_sum(table, table) / table.prob[..., 1]).to(result_dtype(p))


def _gamma(p: Parameters) -> Tensor:
    """`½ log 2πe a − log b − J(a)`, J the negentropy."""
    a = p.concentration
    return NORMAL_ENTROPY + 0.5 * a.log() - p.rate.log() - gamma_negentropy(a)


def _inverse_gamma(p: Parameters) -> Tensor:
    """As the Gamma, and `−2 E log y = 2 (log b − ψ(a))` of y = 1/x."""
    return _gamma(p) + 2 * (p.rate.log() - p.concentration.digamma())


def _beta(p: Parameters) -> Tensor:
    return _beta_entropy(p.concentration1, p.concentration0)


def _beta_entropy(a: Tensor, b: Tensor) -> Tensor:
    """`½ log 2πe σ² − J(a, b)`, J the negentropy."""
    n = a + b
    spread = 0.5 * (a.log() + b.log() - torch.log1p(n)) - n.log()
    return NORMAL_ENTROPY + spread - beta_negentropy(a, b)


def _dirichlet(p: Parameters) -> Tensor:
    """Sum the Betas of stick breaking: `Σ_k [H(a_k, rest_k) + (d − k − 1) E log(1 − v_k)]`."""
    c = p.concentration
    rest = c.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # what is left after each piece
    first, size = c[..., :-1], c.shape[-1]
    sticks = _beta_entropy(first, rest)
    later = torch.arange(size - 2, -1, -1, dtype=c.dtype, device=c.device)
    left = rest.digamma() - (first + rest).digamma()
    return (sticks + later * left).sum(-1)


def _von_mises(p: Parameters) -> Tensor:
    """`log 2π I₀(κ) − κ I₁(κ)/I₀(κ)`."""
    kappa = p.concentration
    i0e = torch.special.i0e(kappa)
    mean: Tensor = torch.special.i1e(kappa) / i0e
    value: Tensor = 2 * HALF_LOG_2PI + i0e.log() + kappa * (1 - mean) + 0 * p.loc
    return value


def _continuous_bernoulli(p: Parameters) -> Tensor:
    eta = tilt(p)
    return -of_log_sinhc(eta, -eta)


def _student_t(p: Parameters) -> Tensor:
    """`(x + ½)(ψ(x + ½) − ψ(x)) + log Γ(x) − log Γ(x + ½) + ½ log 2πx s²`, x = ν/2.

    ψ and log Γ by Stirling's formula, whose large parts cancel on paper.
    """
    x = p.df / 2
    more, half = torch.log1p(0.5 / x), torch.full_like(x, 0.5)
    slopes = (x + 0.5) * (more + 0.25 / (x * (x + 0.5)) + stirling_slope_step(x, half))
    gammas = x * more - 0.5 + stirling(x + 0.5) - stirling(x)
    return slopes - gammas + HALF_LOG_2PI + p.scale.log() + 0 * p.loc


def _uniform(p: Parameters) -> Tensor:
    """`log(b − a)`, also where b − a is beyond the largest number."""
    return (p.high / 2 - p.low / 2).log() + math.log(2)


def _wishart(p: Parameters) -> Tensor:
    """`(d + 1) log det L + ½ d(d + 1) log 2 + ¼ d(d − 1) log π + Σ_j h(a_j)`, a_j = (ν − j)/2.

    `h = ½ log 2πe/a + s − a s′ + ½ j + ½ (d + 1 − j) ψ`, s as in Stirling's formula.
    """
    tril = p.scale_tril
    d = tril.shape[-1]
    j = torch.arange(d, dtype=p.df.dtype, device=p.df.device)
    a = (p.df[..., None] - j) / 2
    rest = stirling(a) - a * stirling_slope(a) + 0.5 * (j + (d + 1 - j) * a.digamma())
    const = 0.5 * d * (d + 1) * math.log(2) + 0.25 * d * (d - 1) * math.log(math.pi)
    return (d + 1) * log_diagonal(tril) + const + (NORMAL_ENTROPY - 0.5 * a.log() + rest).sum(-1)


def _binomial(p: Any) -> Tensor:
    """`−Σ_k m log m` over the support, in float64."""
    table = table_of(p)
    logs = log_binomial(
        p.total_count, table.prob[..., 0], table.prob[..., 1], most=int(p.total_count.max())
    )
    return -(logs.exp() * logs).sum(0).to(result_dtype(p))


def _multinomial(p: Any) -> Tensor:
    """`n H(Categorical) − log n! + Σ_i E log x_i!`, x_i binomial, in float64."""
    n, table = p.total_count, table_of(p)
    logs = log_binomial(torch.tensor(n), 1 - table.prob, table.prob, most=n)
    factorials = torch.arange(1.0, n + 2, dtype=logs.dtype, device=logs.device).lgamma()
    mean = (logs.exp() * factorials.reshape(-1, *[1] * (logs.ndim - 1))).sum((0, -1))
    value: Tensor = n * cross_sum(table, table) - factorials[-1] + mean
    return value.to(result_dtype(p))


def _multivariate_normal(p: Parameters) -> Tensor:
    tril = p.scale_tril
    return tril.shape[-1] * NORMAL_ENTROPY + log_diagonal(tril) + 0 * p.loc.sum(-1)


_ONE_DIMENSION: tuple[tuple[type, Callable[[Parameters], Tensor], str], ...] = (
    (families.Beta, _beta, "½ log 2πe σ² − J, J the negentropy"),
    (families.Cauchy, lambda p: (4 * math.pi * p.scale).log() + 0 * p.loc, "log 4πγ"),
    (families.ContinuousBernoulli, _continuous_bernoulli, "−KL to the Uniform"),
    (families.Dirichlet, _dirichlet, "the Betas of stick breaking"),
    (families.Exponential, lambda p: 1 - p.rate.log(), "1 − log λ"),
    (families.Gamma, _gamma, "½ log 2πe a − log b − J, J the negentropy"),
    (families.Gumbel, lambda p: 1 + EULER + p.scale.log() + 0 * p.loc, "log β + γ + 1"),
    (families.HalfCauchy, lambda p: (2 * math.pi * p.scale).log(), "log 2πγ"),
    (families.HalfNormal, lambda p: NORMAL_ENTROPY - math.log(2) + p.scale.log(), "½ log(πe σ²/2)"),
    (families.InverseGamma, _inverse_gamma, "the Gamma's, and the slope of 1/x"),
    (families.Laplace, lambda p: 1 + math.log(2) + p.scale.log() + 0 * p.loc, "1 + log 2b"),
    (families.LogNormal, lambda p: NORMAL_ENTROPY + p.scale.log() + p.loc, "½ log 2πe σ² + μ"),
    (families.MultivariateNormal, _multivariate_normal, "n/2 log 2πe + log det L"),
    (families.Normal, lambda p: NORMAL_ENTROPY + p.scale.log() + 0 * p.loc, "½ log 2πe σ²"),
    (families.Pareto, lambda p: 1 + 1 / p.alpha + (p.scale / p.alpha).log(), "log(s/α) + 1 + 1/α"),
    (families.StudentT, _student_t, "ψ and log Γ, in Stirling's form"),
    (families.Uniform, _uniform, "log(b − a)"),
    (families.VonMises, _von_mises, "log 2π I₀(κ) − κ I₁(κ)/I₀(κ)"),
    (
        families.Weibull,
        lambda p: 1 + EULER * (1 - 1 / p.concentration) + (p.scale / p.concentration).log(),
        "γ(1 − 1/k) + log(λ/k) + 1",
    ),
    (families.Wishart, _wishart, "ψ and log Γ, in Stirling's form"),
)

ENTROPIES: dict[type, Pair] = {
    **{family: Pair(in_float64(formula), source) for family, formula, source in _ONE_DIMENSION},
    **{
        family: Pair(_table, "the sum itself, `tables.entropy`")
        for family in (families.Bernoulli, families.Categorical, families.OneHotCategorical)
    },
    families.Binomial: Pair(_binomial, "the sum over the support"),
    families.Multinomial: Pair(_multinomial, "binomial margins"),
    families.Geometric: Pair(_geometric, "the Bernoulli's, for each of the 1/p trials"),
}
