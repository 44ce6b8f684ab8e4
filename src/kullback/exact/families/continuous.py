"""Closed forms between continuous families of one dimension, and the Dirichlet and the Wishart.

Which to use: `PAIRS` through `closed_forms.kl`. Every `r − 1 − log r` is written as `log_excess`,
so it is never negative, and +inf rather than inf − inf when a scale is tiny; differences of
log-gamma values are taken in float64.
"""

import math
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.exact.excess import log_excess

from .inverse_gaussian import InverseGaussian
from .pair import Pair, on
from .triangular import log_diagonal, solve_lower

__all__ = ["PAIRS", "normal_kl", "von_mises_entropy"]

EULER = 0.5772156649015329


def normal_kl(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """`½(r² − 1 − log r²) + ½((μ_p − μ_q)/σ_q)²`, r = σ_p/σ_q."""
    log_ratio = scale_p.log() - scale_q.log()
    return 0.5 * log_excess(2 * log_ratio) + 0.5 * ((loc_p - loc_q) / scale_q) ** 2


def _half_normal(p: Any, q: Any) -> Tensor:
    return normal_kl(torch.zeros_like(p.scale), p.scale, torch.zeros_like(q.scale), q.scale)


def _exponential(rate_p: Tensor, rate_q: Tensor) -> Tensor:
    return log_excess(rate_q.log() - rate_p.log())


def _laplace(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """`(r − 1 − log r) + r·(e^(−d) − 1 + d)`, r = b_p/b_q, d = |μ_p − μ_q|/b_p."""
    log_ratio = scale_p.log() - scale_q.log()
    ratio = log_ratio.clamp(max=0.99 * math.log(torch.finfo(log_ratio.dtype).max)).exp()
    return log_excess(log_ratio) + ratio * log_excess(-(loc_p - loc_q).abs() / scale_p)


def _cauchy(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """`log(1 + a² + b²)`, a = (γ_p − γ_q)/m, b = (x_p − x_q)/m, m = 2√(γ_p γ_q)."""
    middle = 2 * scale_p.sqrt() * scale_q.sqrt()
    a, b = (scale_p - scale_q) / middle, (loc_p - loc_q) / middle
    size = torch.maximum(a.abs(), b.abs()).clamp(min=1)  # keeps the squares below overflow
    return 2 * size.log() + torch.log1p((a / size) ** 2 + (b / size) ** 2 - (1 - size**-2))


def _half_cauchy(p: Any, q: Any) -> Tensor:
    return _cauchy(torch.zeros_like(p.scale), p.scale, torch.zeros_like(q.scale), q.scale)


def _gamma(shape_p: Tensor, rate_p: Tensor, shape_q: Tensor, rate_q: Tensor) -> Tensor:
    """`lΓ(a_q) − lΓ(a_p) − (a_q − a_p) ψ(a_p) + a_q (…)`, the rates' share written as an excess."""
    shapes = shape_q.lgamma() - shape_p.lgamma() - (shape_q - shape_p) * shape_p.digamma()
    log_ratio = rate_q.log() - rate_p.log()
    return shapes + shape_p * log_excess(log_ratio) - (shape_q - shape_p) * log_ratio


def _inverse_gamma(p: Any, q: Any) -> Tensor:
    return on("concentration", "rate", double=True)(_gamma)(p.base_dist, q.base_dist)


def _dirichlet(p: Tensor, q: Tensor) -> Tensor:
    """`lΓ(Σp) − lΓ(Σq) + Σ[lΓ(q) − lΓ(p) + (p − q)(ψ(p) − ψ(Σp))]`."""
    total_p, total_q = p.sum(-1), q.sum(-1)
    means = p.digamma() - total_p.digamma()[..., None]
    terms = q.lgamma() - p.lgamma() + (p - q) * means
    return total_p.lgamma() - total_q.lgamma() + terms.sum(-1)


def _beta(one_p: Tensor, zero_p: Tensor, one_q: Tensor, zero_q: Tensor) -> Tensor:
    return _dirichlet(torch.stack([one_p, zero_p], -1), torch.stack([one_q, zero_q], -1))


def _weibull(scale_p: Tensor, shape_p: Tensor, scale_q: Tensor, shape_q: Tensor) -> Tensor:
    """`E[log p/q]` with `E[log x] = log λ − γ/k` and `E[x^m] = λ^m Γ(1 + m/k)`."""
    shift = scale_p.log() - scale_q.log()
    ratio = shape_q / shape_p
    power = (shape_q * shift + (ratio + 1).lgamma()).exp()
    return power - 1 - ratio.log() - shape_q * shift + EULER * (ratio - 1)


def _von_mises(loc_p: Tensor, kappa_p: Tensor, loc_q: Tensor, kappa_q: Tensor) -> Tensor:
    """`log I₀(κ_q)/I₀(κ_p) + A(κ_p)(κ_p − κ_q cos(μ_p − μ_q))`, A = I₁/I₀."""
    i0e = torch.special.i0e
    mean: Tensor = torch.special.i1e(kappa_p) / i0e(kappa_p)
    turned = 2 * kappa_q * mean * torch.sin((loc_p - loc_q) / 2).square()
    logs: Tensor = i0e(kappa_q).log() - i0e(kappa_p).log()
    value: Tensor = logs + (kappa_q - kappa_p) * (1 - mean) + turned
    return value


def von_mises_entropy(loc: Tensor, kappa: Tensor) -> Tensor:
    """`log 2π I₀(κ) − κ I₁(κ)/I₀(κ)`."""
    i0e = torch.special.i0e(kappa)
    mean: Tensor = torch.special.i1e(kappa) / i0e
    value: Tensor = math.log(2 * math.pi) + i0e.log() + kappa * (1 - mean) + 0 * loc
    return value


def _inverse_gaussian(loc_p: Tensor, shape_p: Tensor, loc_q: Tensor, shape_q: Tensor) -> Tensor:
    """`½(r − 1 − log r) + λ_q (μ_p − μ_q)²/(2 μ_p μ_q²)`, r = λ_q/λ_p."""
    excess = log_excess(shape_q.log() - shape_p.log())
    return 0.5 * (excess + shape_q / loc_p * ((loc_p - loc_q) / loc_q).square())


def _wishart(df_p: Tensor, tril_p: Tensor, df_q: Tensor, tril_q: Tensor) -> Tensor:
    """`½ n_p (tr V_q⁻¹V_p − d) − ½ n_q log|V_p|/|V_q|`, and the multivariate log-gammas' share."""
    size = tril_p.shape[-1]
    whitened = solve_lower(tril_q, tril_p)
    log_ratio = 2 * (log_diagonal(tril_p) - log_diagonal(tril_q))
    trace = whitened.square().sum((-1, -2))
    half_p, half_q, steps = df_p / 2, df_q / 2, torch.arange(size, device=df_p.device) / 2
    digamma = (half_p[..., None] - steps).digamma().sum(-1)
    gammas: Tensor = torch.mvlgamma(half_q, size) - torch.mvlgamma(half_p, size)
    matrices = half_p * (trace - size) - half_q * log_ratio
    return matrices + gammas + (half_p - half_q) * digamma


def _uniform_pareto(low: Tensor, high: Tensor, scale: Tensor, alpha: Tensor) -> Tensor:
    """`−log(b − a) − log α − α log s + (α + 1) E[log x]`; +inf below the Pareto's support."""
    width = high - low
    mean_log = (torch.xlogy(high, high) - torch.xlogy(low, low)) / width - 1
    value = (alpha + 1) * mean_log - width.log() - alpha.log() - alpha * scale.log()
    return value.masked_fill(low < scale, math.inf)


def _bernoulli_uniform(p: Any, q: Any) -> Tensor:
    """`−H(p) + log(b − a)` when [a, b] covers [0, 1], its ends included."""
    covered = (q.low <= 0) & (q.high >= 1)
    return torch.where(covered, (q.high - q.low).log() - p.entropy(), math.inf)


def _uniform_bernoulli(p: Any, q: Any) -> Tensor:
    """`−log(b − a) − log q((a + b)/2)`, log q being linear, when [a, b] lies in [0, 1]."""
    inside = (p.low >= 0) & (p.high <= 1)
    middle = torch.where(inside, (p.low + p.high) / 2, 0.5)
    return torch.where(inside, -(p.high - p.low).log() - q.log_prob(middle), math.inf)


def _pair(function: Any, source: str, *names: str, double: bool = False) -> Pair:
    return Pair(on(*names, double=double)(function), source)


_GIL = "Gil, Alajaji and Linder 2013, table 2"
_DIGEST = "Bregman divergence of the log-normaliser"

PAIRS: dict[tuple[type, type], Pair] = {
    (families.Normal, families.Normal): _pair(normal_kl, _GIL, "loc", "scale"),
    (families.HalfNormal, families.HalfNormal): Pair(_half_normal, "Normal, both folded at 0"),
    (families.Exponential, families.Exponential): _pair(_exponential, _GIL, "rate"),
    (families.Laplace, families.Laplace): _pair(_laplace, _GIL, "loc", "scale"),
    (families.Cauchy, families.Cauchy): _pair(
        _cauchy, "Chyzak and Nielsen 2019, theorem 1", "loc", "scale"
    ),
    (families.HalfCauchy, families.HalfCauchy): Pair(_half_cauchy, "Cauchy, both folded at 0"),
    (families.Gamma, families.Gamma): _pair(_gamma, _GIL, "concentration", "rate", double=True),
    (families.InverseGamma, families.InverseGamma): Pair(_inverse_gamma, "Gamma, of 1/x"),
    (families.Dirichlet, families.Dirichlet): _pair(
        _dirichlet, _DIGEST, "concentration", double=True
    ),
    (families.Beta, families.Beta): _pair(
        _beta, _GIL, "concentration1", "concentration0", double=True
    ),
    (families.Weibull, families.Weibull): _pair(
        _weibull, "Bauckhage 2013", "scale", "concentration", double=True
    ),
    (families.VonMises, families.VonMises): _pair(
        _von_mises, _DIGEST, "loc", "concentration", double=True
    ),
    (InverseGaussian, InverseGaussian): _pair(
        _inverse_gaussian, "E[x] = μ, E[1/x] = 1/μ + 1/λ", "loc", "concentration"
    ),
    (families.Wishart, families.Wishart): _pair(_wishart, _DIGEST, "df", "scale_tril", double=True),
    (families.Uniform, families.Pareto): Pair(
        lambda p, q: _uniform_pareto(p.low, p.high, q.scale, q.alpha), "E[log x], Uniform"
    ),
    (families.ContinuousBernoulli, families.Uniform): Pair(
        _bernoulli_uniform, "−H(p) + log(b − a)"
    ),
    (families.Uniform, families.ContinuousBernoulli): Pair(
        _uniform_bernoulli, "log q is linear in x"
    ),
}
