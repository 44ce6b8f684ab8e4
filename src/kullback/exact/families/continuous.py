"""The inverse Gaussian (Wald) distribution, which torch lacks.

Which to use: `InverseGaussian` as any torch distribution; `closed_forms.kl` knows the pair.

Closed forms within one continuous family, the Dirichlet, the Wishart and the LKJ among them.

Which to use: `PAIRS` through `closed_forms.kl`. Every formula is a sum of terms ≥ 0, each a
`log_excess` of log ratios or a Bregman divergence, so that nothing cancels for nearly equal p and
q: a family with a shape is split into its shape's share and its mean's.
"""

import math
from typing import Any, ClassVar

import torch
import torch.distributions as families
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from kullback.exact.bregman import (
    HALF_LOG_2PI,
    log_excess,
    log_ratio,
    of_log_bessel,
    of_log_gamma,
    of_log_sinhc,
    of_stirling,
    relative_entropy,
)

from .pair import Pair, Parameters, in_float64, solve_lower

__all__ = [
    "EULER",
    "PAIRS",
    "InverseGaussian",
    "beta_kl",
    "dirichlet_kl_of_steps",
    "gamma_kl",
    "gamma_kl_of_steps",
    "normal_kl",
    "tilt",
]


class InverseGaussian(Distribution):
    """Density `√(λ/2πx³) exp(−λ(x − μ)²/(2μ²x))` on x > 0, of a Brownian first passage.

    loc: the mean μ > 0; concentration: the shape λ > 0 (variance μ³/λ); both `[*batch]`.
    Its entropy has no closed form in torch's functions; its KL does. Draws are not
    reparametrised.
    Reference: Michael, Schucany and Haas (1976), "Generating random variates using transformations
    with multiple roots".

    >>> InverseGaussian(torch.tensor(2.0), torch.tensor(4.0)).variance
    tensor(2.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive

    def __init__(
        self,
        loc: Tensor | float,
        concentration: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, μ."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance, μ³/λ."""
        return self.loc**3 / self.concentration

    def expand(self, batch_shape: Any, _instance: Any = None) -> "InverseGaussian":
        """Return the same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return InverseGaussian(
            self.loc.expand(shape), self.concentration.expand(shape), validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density at `value > 0`, broadcast against `[*batch]`."""
        if self._validate_args:
            self._validate_sample(value)
        bend = self.concentration * ((value - self.loc) / self.loc) ** 2 / value
        return 0.5 * (self.concentration.log() - 2 * HALF_LOG_2PI - 3 * value.log() - bend)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch]` from a squared normal and a coin, without gradient."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            ratio = (self.loc / self.concentration).expand(shape)
            y = torch.randn(shape, dtype=ratio.dtype, device=ratio.device) ** 2 * ratio / 2
            root = 1 / (1 + y + (y * (2 + y)).sqrt())  # the smaller root, in units of μ
            coin = torch.rand(shape, dtype=ratio.dtype, device=ratio.device)
            return self.loc * torch.where(coin * (1 + root) <= 1, root, 1 / root)


EULER = 0.5772156649015329


def normal_kl(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """`½(r² − 1 − log r²) + ½((μ_p − μ_q)/σ_q)²`, r = σ_p/σ_q."""
    log_step = log_ratio(scale_p, scale_q)
    return 0.5 * log_excess(2 * log_step) + 0.5 * ((loc_p - loc_q) / scale_q) ** 2


def _normal(p: Parameters, q: Parameters) -> Tensor:
    return normal_kl(p.loc, p.scale, q.loc, q.scale)


def _half_normal(p: Parameters, q: Parameters) -> Tensor:
    return 0.5 * log_excess(2 * log_ratio(p.scale, q.scale))


def _exponential(p: Parameters, q: Parameters) -> Tensor:
    """`r − 1 − log r`, r = λ_q/λ_p."""
    return log_excess(log_ratio(q.rate, p.rate))


def _laplace(p: Parameters, q: Parameters) -> Tensor:
    """`(r − 1 − log r) + r·(e^(−d) − 1 + d)`, r = b_p/b_q, d = |μ_p − μ_q|/b_p."""
    log_step = log_ratio(p.scale, q.scale)
    ratio = log_step.clamp(max=0.99 * math.log(torch.finfo(log_step.dtype).max)).exp()
    return log_excess(log_step) + ratio * log_excess(-(p.loc - q.loc).abs() / p.scale)


def _cauchy(p: Parameters, q: Parameters) -> Tensor:
    return _cauchy_kl(p.loc - q.loc, p.scale, q.scale)


def _half_cauchy(p: Parameters, q: Parameters) -> Tensor:
    return _cauchy_kl(torch.zeros_like(p.scale - q.scale), p.scale, q.scale)


def _cauchy_kl(gap: Tensor, scale_p: Tensor, scale_q: Tensor) -> Tensor:
    """`log(1 + a² + b²)`, a = (γ_p − γ_q)/m, b = (x_p − x_q)/m, m = 2√(γ_p γ_q)."""
    middle = 2 * scale_p.sqrt() * scale_q.sqrt()
    a, b = (scale_p - scale_q) / middle, gap / middle
    size = torch.maximum(a.abs(), b.abs()).clamp(min=1)  # keeps the squares below overflow
    return 2 * size.log() + torch.log1p((a / size) ** 2 + (b / size) ** 2 - (1 - size**-2))


def gamma_kl(shape_p: Tensor, rate_p: Tensor, shape_q: Tensor, rate_q: Tensor) -> Tensor:
    """Return `KL(Gamma(a_p, b_p)‖Gamma(a_q, b_q))`, concentrations and rates."""
    log_rate = log_ratio(rate_q, rate_p)
    return gamma_kl_of_steps(shape_p, shape_q - shape_p, log_rate, other=shape_q)


def gamma_kl_of_steps(
    shape: Tensor, step: Tensor, log_rate: Tensor, *, other: Tensor | None = None
) -> Tensor:
    """`D(a_q, a_p) + a_q (r − 1 − log r)`, r = m_p/m_q of the means a/b, D that of φ.

    `φ = log Γ(a) − a log a + a`, in Stirling's form `−½ log a + s(a)`, which has no large part.
    shape: a_p. step: a_q − a_p. log_rate: log b_q/b_p. other: a_q, where it is known.
    """
    other = shape + step if other is None else other
    log_shape = log_ratio(other, shape, step=step)
    shapes = 0.5 * log_excess(log_shape) + of_stirling(shape, step, y=other)
    return shapes + other * log_excess(log_rate - log_shape)


def _gamma(p: Parameters, q: Parameters) -> Tensor:
    return gamma_kl(p.concentration, p.rate, q.concentration, q.rate)


def _dirichlet(p: Parameters, q: Parameters) -> Tensor:
    first, second = p.concentration, q.concentration
    return dirichlet_kl_of_steps(first, second - first, q=second)


def dirichlet_kl_of_steps(p: Tensor, steps: Tensor, *, q: Tensor | None = None) -> Tensor:
    """`Σ D(q_k, p_k) − D(Q, P)`, D the Bregman divergence of log Γ, P and Q the sums.

    steps: q − p. q: where it is known; `p + steps` if None. In Stirling's form the large parts of D
    add up to `Q·KL(q/Q‖p/P)`, the logarithms' to
    `½ KL(p/P‖q/Q) + ½ Σ (1 − p_k/P)(r_k − 1 − log r_k)`, r = q/p.
    """
    p, steps = torch.broadcast_tensors(p, steps)  # type: ignore[no-untyped-call]
    q = p + steps if q is None else q.expand(p.shape)
    total_p, total_step, total_q = p.sum(-1), steps.sum(-1), q.sum(-1)
    share_p, share_q = p / total_p[..., None], q / total_q[..., None]
    log_steps = log_ratio(q, p, step=steps)
    turned = log_steps - log_ratio(total_q, total_p, step=total_step)[..., None]
    forward = _table_terms(share_p, share_q, turned).sum(-1)
    backward = _table_terms(share_q, share_p, -turned).sum(-1)
    logs = ((1 - share_p) * log_excess(log_steps)).sum(-1)
    rest = of_stirling(p, steps, y=q).sum(-1) - of_stirling(total_p, total_step, y=total_q)
    return total_q * backward + 0.5 * (forward + logs) + rest


def _table_terms(mass: Tensor, other: Tensor, log_step: Tensor) -> Tensor:
    """`p (e^l − 1 − l)`, l = log q/p, from q − p where l is large."""
    small = log_step.abs() < 1
    near = mass * log_excess(torch.where(small, log_step, 0))
    return torch.where(small, near, other - mass - mass * log_step)


def beta_kl(one_p: Tensor, zero_p: Tensor, one_q: Tensor, zero_q: Tensor) -> Tensor:
    """Return `KL(Beta(a_p, b_p)‖Beta(a_q, b_q))`: the Dirichlet of two."""
    given = torch.broadcast_tensors(one_p, zero_p, one_q, zero_q)  # type: ignore[no-untyped-call]
    p, q = torch.stack(given[:2], -1), torch.stack(given[2:], -1)
    return dirichlet_kl_of_steps(p, q - p, q=q)


def _beta(p: Parameters, q: Parameters) -> Tensor:
    return beta_kl(p.concentration1, p.concentration0, q.concentration1, q.concentration0)


def _gumbel_kl(shift: Tensor, ratio: Tensor, ratio_step: Tensor) -> Tensor:
    """`(e^y − 1 − y) + D(ρ, 1)`, ρ = β_p/β_q, y = (μ_q − μ_p)/β_q + log Γ(1 + ρ), D of log Γ."""
    one = torch.ones_like(ratio_step)
    bend = of_log_gamma(one, ratio_step, y=ratio)
    log_gamma = bend + log_ratio(ratio, one, step=ratio_step) - EULER * ratio_step
    return log_excess(shift + log_gamma) + bend


def _gumbel(p: Parameters, q: Parameters) -> Tensor:
    ratio_step = (p.scale - q.scale) / q.scale
    return _gumbel_kl((q.loc - p.loc) / q.scale, p.scale / q.scale, ratio_step)


def _weibull(p: Parameters, q: Parameters) -> Tensor:
    """As the Gumbel, of −log x: location −log λ, scale 1/k."""
    shift = q.concentration * log_ratio(p.scale, q.scale)
    step = (q.concentration - p.concentration) / p.concentration
    return _gumbel_kl(shift, q.concentration / p.concentration, step)


def _pareto(p: Parameters, q: Parameters) -> Tensor:
    """`α_q log(s_p/s_q) + (r − 1 − log r)`, r = α_q/α_p; +inf where s_p < s_q."""
    outside = p.scale < q.scale
    start = torch.where(outside, q.scale, p.scale)
    value = q.alpha * log_ratio(start, q.scale) + log_excess(log_ratio(q.alpha, p.alpha))
    return value.masked_fill(outside, math.inf)


def _uniform(p: Parameters, q: Parameters) -> Tensor:
    """`log(w_q/w_p)`, from the two gaps between the ends; +inf where p sticks out."""
    left, right = p.low / 2 - q.low / 2, q.high / 2 - p.high / 2  # halves do not overflow
    outside = (left < 0) | (right < 0)
    gaps = torch.where(outside, 0, left + right)
    return torch.log1p(gaps / (p.high / 2 - p.low / 2)).masked_fill(outside, math.inf)


def _von_mises(p: Parameters, q: Parameters) -> Tensor:
    """`D(κ_q, κ_p) + κ_q A(κ_p)(1 − cos(μ_p − μ_q))`, D of log I₀, A = I₁/I₀."""
    kappa = p.concentration
    mean = torch.special.i1e(kappa) / torch.special.i0e(kappa)
    turned: Tensor = 2 * q.concentration * mean * torch.sin((p.loc - q.loc) / 2).square()
    return of_log_bessel(kappa, q.concentration - kappa) + turned


def _inverse_gaussian(p: Parameters, q: Parameters) -> Tensor:
    """`½(r − 1 − log r) + λ_q (μ_p − μ_q)²/(2 μ_p μ_q²)`, r = λ_q/λ_p."""
    excess = log_excess(log_ratio(q.concentration, p.concentration))
    return 0.5 * (excess + q.concentration / p.loc * ((p.loc - q.loc) / q.loc).square())


def tilt(distribution: Parameters) -> Tensor:
    """Return η of the density `∝ e^(η x)` on [0, 1], the continuous Bernoulli's log odds."""
    if not _has_probs(distribution):
        return distribution.logits
    probs = distribution.probs
    return log_ratio(probs, 1 - probs)


def _tilt_step(p: Parameters, q: Parameters) -> Tensor:
    """Return `η_q − η_p`, from the difference of the probabilities where both were given."""
    if not (_has_probs(p) and _has_probs(q)):
        return tilt(q) - tilt(p)
    step = q.probs - p.probs
    up = log_ratio(q.probs, p.probs, step=step)
    return up - log_ratio(1 - q.probs, 1 - p.probs, step=-step)


def _has_probs(distribution: Parameters) -> bool:
    held = vars(distribution.given)
    return held.get("_param") is held.get("probs")


def _continuous_bernoulli(p: Parameters, q: Parameters) -> Tensor:
    return of_log_sinhc(tilt(p), _tilt_step(p, q))


def _wishart(p: Parameters, q: Parameters) -> Tensor:
    """`½ n_q (tr M − d − log|M|)` + the degrees' share, M = (n_q V_q)⁻¹ n_p V_p, V = L Lᵀ.

    The degrees' share is `Σ_i D(n_q/2 − i/2, n_p/2 − i/2) − d·D₀(n_q/2, n_p/2)`, D the Bregman
    divergence of log Γ and D₀ that of `x log x`.
    """
    size = p.scale_tril.shape[-1]
    half_p, half_q = p.df / 2, q.df / 2
    log_df = log_ratio(half_p, half_q)
    below = solve_lower(q.scale_tril, p.scale_tril - q.scale_tril).tril(-1)
    first, second = (d.scale_tril.diagonal(dim1=-2, dim2=-1) for d in (p, q))
    log_steps = 2 * log_ratio(first, second) + log_df[..., None]
    matrices = log_excess(log_steps).sum(-1) + log_df.exp() * below.square().sum((-1, -2))
    steps = torch.arange(size, device=p.df.device) / 2
    step = (half_q - half_p)[..., None]
    other = half_q[..., None]
    each = of_log_gamma(half_p[..., None] - steps, step, y=other - steps)
    each = each - relative_entropy(other, half_p[..., None], step=-step)
    return half_q * matrices + each.sum(-1)


def _lkj(p: Parameters, q: Parameters) -> Tensor:
    """`Σ_i KL(Beta(½(i − 1), η_p + ½(d − i))‖Beta(½(i − 1), η_q + ½(d − i)))`, i = 2, …, d.

    Row i of the Cholesky factor has a uniform direction, and the square of its length left of the
    diagonal has that Beta distribution (the onion construction); rows are independent.
    """
    size = int(p.given.dim)
    eta_p, eta_q = (d.concentration[..., None] for d in (p, q))
    rows = torch.arange(2, size + 1, dtype=eta_p.dtype, device=eta_p.device)
    below, rest = (rows - 1) / 2, (size - rows) / 2
    step = eta_q - eta_p
    none = torch.zeros_like(below)
    wide = torch.broadcast_tensors(below, eta_p + rest, none, step, eta_q + rest)  # type: ignore[no-untyped-call]
    first, steps = torch.stack(wide[:2], -1), torch.stack(wide[2:4], -1)
    second = torch.stack([wide[0], wide[4]], -1)
    return dirichlet_kl_of_steps(first, steps, q=second).sum(-1)


_GIL = "Gil, Alajaji and Linder 2013, table 2"
_BREGMAN = "Bregman divergence of the log-normaliser"

PAIRS: dict[tuple[type, type], Pair] = {
    (family, family): Pair(in_float64(formula), source)
    for family, formula, source in (
        (families.Normal, _normal, _GIL),
        (families.HalfNormal, _half_normal, "Normal, both folded at 0"),
        (families.Exponential, _exponential, _GIL),
        (families.Laplace, _laplace, _GIL),
        (families.Cauchy, _cauchy, "Chyzak and Nielsen 2019, theorem 1"),
        (families.HalfCauchy, _half_cauchy, "Cauchy, both folded at 0"),
        (families.Gamma, _gamma, _GIL),
        (families.InverseGamma, _gamma, "Gamma, of 1/x"),
        (families.Dirichlet, _dirichlet, _BREGMAN),
        (families.Beta, _beta, _GIL),
        (families.Gumbel, _gumbel, _GIL),
        (families.Weibull, _weibull, "Bauckhage 2013; the Gumbel, of −log x"),
        (families.Pareto, _pareto, _GIL),
        (families.Uniform, _uniform, _GIL),
        (families.VonMises, _von_mises, _BREGMAN),
        (InverseGaussian, _inverse_gaussian, "E[x] = μ, E[1/x] = 1/μ + 1/λ"),
        (families.ContinuousBernoulli, _continuous_bernoulli, _BREGMAN),
        (families.Wishart, _wishart, _BREGMAN),
        (
            families.LKJCholesky,
            _lkj,
            "a sum of Beta KLs: the onion construction of Lewandowski, Kurowicka and Joe 2009",
        ),
    )
}
