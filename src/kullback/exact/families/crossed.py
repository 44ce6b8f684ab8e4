"""Closed forms between different families of one dimension, in terms that do not cancel.

Which to use: `FINITE` and `INFINITE` through `closed_forms.kl`; the latter are the pairs whose p
always has mass outside q's support. Against a Normal the KL is p's negentropy (the KL to the Normal
of the same mean and variance) plus a KL between Normals; against a Gamma, a Gumbel or a truncated
law likewise a sum of terms that are ≥ 0, or whose sum stays above a constant.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from kullback.exact import limits
from kullback.exact.bregman import (
    HALF_LOG_2PI,
    NORMAL_ENTROPY,
    inverse_sinh_mean,
    log1mexp,
    log_excess,
    log_ratio,
    log_sinhc,
    of_log_sinhc,
    of_stirling,
    sinhc_bend,
    stirling,
    stirling_slope,
    stirling_slope_step,
)

from .continuous import EULER, beta_kl, gamma_kl, tilt
from .pair import Pair, Parameters, float_dtype, in_float64

__all__ = ["CROSSED", "INFINITE", "beta_negentropy", "gamma_negentropy"]


def gamma_negentropy(shape: Tensor) -> Tensor:
    """Return `J = 1/(2a) − s(a) + (a − 1) s′(a)`, about 1/(3a), s being `bregman.stirling`.

    The entropy at rate 1 is `½ log 2πe a − J`.
    """
    return 0.5 / shape - stirling(shape) + (shape - 1) * stirling_slope(shape)


def beta_negentropy(a: Tensor, b: Tensor) -> Tensor:
    """Return `J = 1/(2a) + 1/(2b) − 1/n − ½ log(1 + 1/n) − h₁(a) − h₁(b) + h₂(n)`, n = a + b.

    `h_m(x) = s(x) − (x − m) s′(x)`. At a = b the terms of order 1/n cancel and leave 3/(4n²).
    """
    n = a + b
    logs = 0.5 / a + 0.5 / b - 1 / n - 0.5 * torch.log1p(1 / n)
    return logs - _stirling_share(a, 1) - _stirling_share(b, 1) + _stirling_share(n, 2)


def _stirling_share(x: Tensor, shift: float) -> Tensor:
    return stirling(x) - (x - shift) * stirling_slope(x)


def _to_normal(negentropy: Tensor | float, log_scale: Tensor, gap: Tensor, q: Parameters) -> Tensor:
    """Return `J(p) + ½(r² − 1 − log r²) + ½(gap/σ_q)²`: log r = log_scale, gap = E x − μ_q."""
    spread, shift = log_excess(2 * log_scale), (gap / q.scale) ** 2
    return 0.5 * (spread + shift) + negentropy


def _gamma_normal(p: Parameters, q: Parameters) -> Tensor:
    return _gamma_to_normal(p.concentration, p.rate, q)


def _exponential_normal(p: Parameters, q: Parameters) -> Tensor:
    return _gamma_to_normal(torch.ones_like(p.rate), p.rate, q)


def _gamma_to_normal(shape: Tensor, rate: Tensor, q: Parameters) -> Tensor:
    log_scale = log_ratio(shape.sqrt() / rate, q.scale)
    return _to_normal(gamma_negentropy(shape), log_scale, shape / rate - q.loc, q)


def _beta_normal(p: Parameters, q: Parameters) -> Tensor:
    a, b = p.concentration1, p.concentration0
    n = a + b
    scale = a.sqrt() * b.sqrt() / (n * (n + 1).sqrt())
    gap = (a * (1 - q.loc) - q.loc * b) / n
    return _to_normal(beta_negentropy(a, b), log_ratio(scale, q.scale), gap, q)


def _gumbel_normal(p: Parameters, q: Parameters) -> Tensor:
    scale = math.pi / math.sqrt(6) * p.scale
    negentropy = NORMAL_ENTROPY + math.log(math.pi / math.sqrt(6)) - 1 - EULER
    gap = (p.loc - q.loc) + EULER * p.scale
    return _to_normal(negentropy, log_ratio(scale, q.scale), gap, q)


def _laplace_normal(p: Parameters, q: Parameters) -> Tensor:
    negentropy = NORMAL_ENTROPY - 0.5 * math.log(2) - 1
    return _to_normal(negentropy, log_ratio(math.sqrt(2) * p.scale, q.scale), p.loc - q.loc, q)


def _uniform_normal(p: Parameters, q: Parameters) -> Tensor:
    negentropy = NORMAL_ENTROPY - 0.5 * math.log(12)
    scale = (p.high - p.low) / math.sqrt(12)
    gap = ((p.low - q.loc) + (p.high - q.loc)) / 2
    return _to_normal(negentropy, log_ratio(scale, q.scale), gap, q)


def _pareto_normal(p: Parameters, q: Parameters) -> Tensor:
    """`J` with variance `s² α/((α − 1)²(α − 2))` and entropy `log(s/α) + 1 + 1/α`; α > 2."""
    heavy = p.alpha <= 2
    alpha = torch.where(heavy, 3, p.alpha)
    log_scale = 0.5 * alpha.log() - (alpha - 1).log() - 0.5 * (alpha - 2).log()
    negentropy = NORMAL_ENTROPY - 1 + log_scale + alpha.log() - 1 / alpha
    gap = (p.scale - q.loc) + p.scale / (alpha - 1)
    value = _to_normal(negentropy, log_scale + log_ratio(p.scale, q.scale), gap, q)
    return value.masked_fill(heavy, math.inf)


def _continuous_bernoulli_normal(p: Parameters, q: Parameters) -> Tensor:
    """`J` with variance `L″(η)` and entropy `L(η) − η L′(η)`, L = log sinh(η/2)/(η/2)."""
    eta = tilt(p)
    low = inverse_sinh_mean(eta)  # the mean's distance from the nearer end
    variance = sinhc_bend(eta)
    entropy = -of_log_sinhc(eta, -eta)
    negentropy = NORMAL_ENTROPY + 0.5 * variance.log() - entropy
    gap = torch.where(eta > 0, (1 - q.loc) - low, low - q.loc)
    return _to_normal(negentropy, 0.5 * variance.log() - q.scale.log(), gap, q)


def _normal_laplace(p: Parameters, q: Parameters) -> Tensor:
    """`log 2 − log t − ½ log 2πe + t E|z + d|`, t = σ/b, d = (μ_p − μ_q)/σ; at least 0.048."""
    gap, log_step = (p.loc - q.loc) / p.scale, log_ratio(p.scale, q.scale)
    folded = math.sqrt(2 / math.pi) * torch.exp(-0.5 * gap**2)
    folded = folded + gap * torch.erf(gap / math.sqrt(2))
    return math.log(2) - NORMAL_ENTROPY - log_step + p.scale / q.scale * folded


def _normal_gumbel(p: Parameters, q: Parameters) -> Tensor:
    """`½(v − 1 − log v) + 1 − ½ log 2π + (e^y − 1 − y)`, v = (σ/β)², y = v/2 − (μ_p − μ_q)/β."""
    log_step = log_ratio(p.scale, q.scale)
    half = 0.5 * torch.exp(2 * log_step)
    tilted = half - (p.loc - q.loc) / q.scale
    return 0.5 * log_excess(2 * log_step) + 1 - HALF_LOG_2PI + log_excess(tilted)


def _gamma_gumbel(p: Parameters, q: Parameters) -> Tensor:
    return _gamma_to_gumbel(p.concentration, p.rate, q)


def _exponential_gumbel(p: Parameters, q: Parameters) -> Tensor:
    return _gamma_to_gumbel(torch.ones_like(p.rate), p.rate, q)


def _gamma_to_gumbel(shape: Tensor, rate: Tensor, q: Parameters) -> Tensor:
    """`log c − H(a) + a(1/c − log(1 + 1/c)) + 1 + (e^y − 1 − y)`, c = b β.

    H(a) is the entropy at rate 1, and `e^y = E e^(−(x − μ)/β)`, y = μ/β − a log(1 + 1/c).
    """
    scaled = rate * q.scale
    log_more = torch.log1p(1 / scaled)
    entropy = 0.5 * shape.log() + NORMAL_ENTROPY - gamma_negentropy(shape)
    tilted = q.loc / q.scale - shape * log_more
    return scaled.log() - entropy + shape * log_excess(log_more) + 1 + log_excess(tilted)


def _uniform_gumbel(p: Parameters, q: Parameters) -> Tensor:
    """`L(v) − log v + 1 + (e^y − 1 − y)`, v = w/β, y = L(v) − (mid − μ)/β, L = log_sinhc."""
    width = (p.high - p.low) / q.scale
    middle = ((p.low - q.loc) + (p.high - q.loc)) / (2 * q.scale)
    bend = log_sinhc(width)
    return bend - width.log() + 1 + log_excess(bend - middle)


def _exponential_gamma(p: Parameters, q: Parameters) -> Tensor:
    return gamma_kl(torch.ones_like(p.rate), p.rate, q.concentration, q.rate)


def _gamma_exponential(p: Parameters, q: Parameters) -> Tensor:
    return gamma_kl(p.concentration, p.rate, torch.ones_like(q.rate), q.rate)


def _beta_gamma(p: Parameters, q: Parameters) -> Tensor:
    return _beta_to_gamma(p.concentration1, p.concentration0, q.concentration, q.rate)


def _beta_exponential(p: Parameters, q: Parameters) -> Tensor:
    one = torch.ones_like(q.rate)
    return _beta_to_gamma(p.concentration1, p.concentration0, one, q.rate)


def _beta_to_gamma(a: Tensor, b: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
    """`½(r − 1 − log r) + D_s(k, a) + k(m − 1 − log m) + R + (k − a)(s′(n) − 1/(2n))`.

    r = k/a, m the ratio of the means, n = a + b, and R the KL to `Gamma(a, n)`:
    `½(t − 1 − log t) + a/(2bn) + s(n) − s(b) + (b − 1)(s′(b) − s′(n))`, t = b/n.
    """
    n, step = a + b, shape - a
    log_shape = log_ratio(shape, a)
    own = 0.5 * log_excess(log_shape) + of_stirling(a, step, y=shape)
    means = shape * log_excess(log_ratio(rate, n) - log_shape)
    slope_b = stirling_slope(b)
    rest = 0.5 * log_excess(-torch.log1p(a / b)) + a / (2 * b * n)
    rest = rest + of_stirling(b, a) + a * slope_b - (b - 1) * stirling_slope_step(b, a)
    return own + means + rest + step * (stirling_slope(n) - 0.5 / n)


def _beta_uniform(p: Parameters, q: Parameters) -> Tensor:
    """`KL(p‖Uniform(0, 1)) + log(b − a)` where [a, b] covers [0, 1], +inf elsewhere."""
    outside = (q.low > 0) | (q.high < 1)
    wide = torch.where(outside, 0, (q.high - 1) - q.low)
    return (_beta_to_unit(p) + torch.log1p(wide)).masked_fill(outside, math.inf)


def _beta_to_unit(p: Parameters) -> Tensor:
    one = torch.ones_like(p.concentration1)
    return beta_kl(p.concentration1, p.concentration0, one, one)


def _beta_continuous_bernoulli(p: Parameters, q: Parameters) -> Tensor:
    """`KL(p‖Uniform) + L(η) − η(E x − ½)`; for |η| > 4 through the Exponential that it cuts off.

    `KL(p‖q) = KL(p‖Exponential(|η|)) + log(1 − e^−|η|)`, of 1 − x for η > 0.
    """
    eta = tilt(q)
    a, b = torch.broadcast_tensors(p.concentration1, p.concentration0)  # type: ignore[no-untyped-call]
    near = eta.abs() <= limits.MIN_EXPONENTIAL_TILT
    small, large = torch.where(near, eta, 0), torch.where(near, 1, eta.abs())
    flat = _beta_to_unit(p) + log_sinhc(small) - small * (a - b) / (2 * (a + b))
    one, zero = torch.where(eta > 0, b, a), torch.where(eta > 0, a, b)
    steep = _beta_to_gamma(one, zero, torch.ones_like(large), large)
    return torch.where(near, flat, steep + log1mexp(large))


def _continuous_bernoulli_exponential(p: Parameters, q: Parameters) -> Tensor:
    """`KL(p‖q cut off at 1) − log(1 − e^−λ)`: the former is a continuous Bernoulli of η = −λ."""
    eta = tilt(p)
    return of_log_sinhc(eta, -q.rate - eta) - log1mexp(q.rate)


def _continuous_bernoulli_uniform(p: Parameters, q: Parameters) -> Tensor:
    """`KL(p‖Uniform(0, 1)) + log(b − a)` where [a, b] covers [0, 1], +inf elsewhere."""
    eta = tilt(p)
    outside = (q.low > 0) | (q.high < 1)
    wide = torch.where(outside, 0, (q.high - 1) - q.low)
    return (of_log_sinhc(eta, -eta) + torch.log1p(wide)).masked_fill(outside, math.inf)


def _uniform_continuous_bernoulli(p: Parameters, q: Parameters) -> Tensor:
    """`L(η) − log w − η(mid − ½)` where [a, b] lies in [0, 1], +inf elsewhere."""
    eta = tilt(q)
    outside = (p.low < 0) | (p.high > 1)
    middle = (p.low + (p.high - 1)) / 2
    value = log_sinhc(eta) - _log_width(p) - eta * torch.where(outside, 0, middle)
    return value.masked_fill(outside, math.inf)


def _log_width(p: Parameters) -> Tensor:
    """Return `log(high − low)`, from the distances to 0 and 1 where that is near 0."""
    width = p.high - p.low
    return log_ratio(width, torch.ones_like(width), step=(p.high - 1) - p.low)


def _uniform_exponential(p: Parameters, q: Parameters) -> Tensor:
    """`λ mid − log(λ w)`, at least 1 − log 2; +inf below 0."""
    width = (p.high - p.low) * q.rate
    value = q.rate * (p.low / 2 + p.high / 2) - width.log()
    return value.masked_fill(p.low < 0, math.inf)


def _uniform_gamma(p: Parameters, q: Parameters) -> Tensor:
    """`φ(a) + a(r − 1 − log r) + (1 − a) m − log(w/mid)`, r = b·mid/a; at least 0.17.

    φ = −½ log a + ½ log 2π + s(a), and m = E log(x/mid) ≤ 0; +inf below 0.
    """
    outside = p.low < 0
    low = torch.where(outside, p.high / 2, p.low)
    middle, shape = low / 2 + p.high / 2, q.concentration
    shapes = HALF_LOG_2PI + stirling(shape) - 0.5 * shape.log()
    means = shape * log_excess(q.rate.log() + middle.log() - shape.log())
    spread = log_ratio(p.high - low, middle)
    value = shapes + means + (1 - shape) * _mean_log(low, p.high, middle) - spread
    return value.masked_fill(outside, math.inf)


def _mean_log(low: Tensor, high: Tensor, middle: Tensor) -> Tensor:
    """Return `E log(x/mid)` of x uniform: for small ρ = w/(2 mid) `−Σ ρ^2k/(2k(2k + 1))`."""
    half = (high - low) / (2 * middle)
    near = half < limits.MAX_MEAN_LOG_SERIES
    small, large = torch.where(near, half, 0), torch.where(near, 0.5, half)
    series = sum(small ** (2 * k) / (2 * k * (2 * k + 1)) for k in range(1, 16))
    ends = torch.xlogy(high / middle, high / middle) - torch.xlogy(low / middle, low / middle)
    return torch.where(near, -series, ends / (2 * large) - 1)


def _uniform_beta(p: Parameters, q: Parameters) -> Tensor:
    """`KL(Uniform(0, 1)‖q) − log w − (a − 1)(1 + E log x) − (b − 1)(1 + E log(1 − x))`.

    +inf where [low, high] sticks out of [0, 1].
    """
    outside = (p.low < 0) | (p.high > 1)
    low, high = torch.where(outside, 0.25, p.low), torch.where(outside, 0.75, p.high)
    a, b = q.concentration1, q.concentration0
    flat = beta_kl(torch.ones_like(a), torch.ones_like(b), a, b)
    logs = (a - 1) * _log_surplus(low, high) + (b - 1) * _log_surplus(1 - high, 1 - low)
    width = log_ratio(high - low, torch.ones_like(high), step=(high - 1) - low)
    return (flat - width - logs).masked_fill(outside, math.inf)


def _log_surplus(low: Tensor, high: Tensor) -> Tensor:
    """Return `1 + E log x` of x uniform on [low, high] ⊂ [0, 1]: 0 on the whole of it."""
    middle, wide = (low + high) / 2, high - low > 0.5
    ends = (high * torch.log(torch.where(wide, high, 1)) - torch.xlogy(low, low)) / (high - low)
    narrow_low = torch.where(wide, 0.4, low)
    narrow_high = torch.where(wide, 0.6, high)
    inner = torch.where(wide, 0.5, middle)
    return torch.where(wide, ends, 1 + inner.log() + _mean_log(narrow_low, narrow_high, inner))


def _uniform_pareto(p: Parameters, q: Parameters) -> Tensor:
    """`(α + 1) E log(x/low) + α log(low/s) − log(α w/low)`; +inf below the Pareto's support."""
    outside = p.low < q.scale
    low = torch.where(outside, q.scale, p.low)
    high = torch.where(outside, 2 * q.scale, p.high)
    middle, alpha = low / 2 + high / 2, q.alpha
    above = log_ratio(middle, low, step=(high - low) / 2) + _mean_log(low, high, middle)
    start = alpha * log_ratio(low, q.scale)
    value = (alpha + 1) * above + start - alpha.log() - (high - low).log() + low.log()
    return value.masked_fill(outside, math.inf)


def _pareto_exponential(p: Parameters, q: Parameters) -> Tensor:
    return _pareto_to_gamma(p, torch.ones_like(q.rate), q.rate)


def _pareto_gamma(p: Parameters, q: Parameters) -> Tensor:
    return _pareto_to_gamma(p, q.concentration, q.rate)


def _pareto_to_gamma(p: Parameters, shape: Tensor, rate: Tensor) -> Tensor:
    """`log α − 1 + φ(k) + k(r − 1 − log r) + k g`, g = log E x − E log x; α > 1.

    r is the ratio of the means, φ as in `_uniform_gamma`; at least 0.4.
    """
    heavy = p.alpha <= 1
    alpha = torch.where(heavy, 2, p.alpha)
    less = torch.log1p(-1 / alpha)
    shapes = HALF_LOG_2PI + stirling(shape) - 0.5 * shape.log()
    means = log_excess(rate.log() + p.scale.log() - less - shape.log())
    value = alpha.log() - 1 + shapes + shape * (means + log_excess(less))
    return value.masked_fill(heavy, math.inf)


def _infinite(p: Any, q: Any) -> Tensor:
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)  # type: ignore[no-untyped-call]
    return torch.full(shape, torch.inf, dtype=float_dtype(p.mean.dtype), device=p.mean.device)


_UNIT = (families.Beta, families.ContinuousBernoulli)
_HALF_LINE = (families.Exponential, families.Gamma)
_BOUNDED = (families.Pareto, families.Uniform)
INFINITE: dict[type, tuple[type, ...]] = {
    families.Beta: (families.Pareto,),
    families.ContinuousBernoulli: (families.Pareto,),
    families.Exponential: (*_UNIT, *_BOUNDED),
    families.Gamma: (*_UNIT, *_BOUNDED),
    families.Pareto: (*_UNIT, families.Uniform),
    families.Gumbel: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Laplace: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Normal: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Poisson: (families.Bernoulli, families.Binomial),
}
_MOMENTS = "negentropy, and the Normal of p's mean and variance"
_MEANS = "E x and E log x in Stirling's form"
_GAMMA = "Gamma; an Exponential has shape 1"
_MGF = "the moment generating function of p at −1/β"

_FINITE: tuple[tuple[type, type, Callable[[Parameters, Parameters], Tensor], str], ...] = (
    (families.Beta, families.ContinuousBernoulli, _beta_continuous_bernoulli, "log q is linear"),
    (families.Beta, families.Exponential, _beta_exponential, _MEANS),
    (families.Beta, families.Gamma, _beta_gamma, _MEANS),
    (families.Beta, families.Normal, _beta_normal, _MOMENTS),
    (families.Beta, families.Uniform, _beta_uniform, "−H(p) + log(b − a)"),
    (
        families.ContinuousBernoulli,
        families.Exponential,
        _continuous_bernoulli_exponential,
        "q cut off at 1 is a continuous Bernoulli",
    ),
    (families.ContinuousBernoulli, families.Normal, _continuous_bernoulli_normal, _MOMENTS),
    (
        families.ContinuousBernoulli,
        families.Uniform,
        _continuous_bernoulli_uniform,
        "−H(p) + log(b − a)",
    ),
    (families.Exponential, families.Gamma, _exponential_gamma, _GAMMA),
    (families.Exponential, families.Gumbel, _exponential_gumbel, _MGF),
    (families.Exponential, families.Normal, _exponential_normal, _MOMENTS),
    (families.Gamma, families.Exponential, _gamma_exponential, _GAMMA),
    (families.Gamma, families.Gumbel, _gamma_gumbel, _MGF),
    (families.Gamma, families.Normal, _gamma_normal, _MOMENTS),
    (families.Gumbel, families.Normal, _gumbel_normal, _MOMENTS),
    (families.Laplace, families.Normal, _laplace_normal, _MOMENTS),
    (families.Normal, families.Gumbel, _normal_gumbel, _MGF),
    (families.Normal, families.Laplace, _normal_laplace, "E|x − μ| of a Normal"),
    (families.Pareto, families.Exponential, _pareto_exponential, _MEANS),
    (families.Pareto, families.Gamma, _pareto_gamma, _MEANS),
    (families.Pareto, families.Normal, _pareto_normal, _MOMENTS),
    (families.Uniform, families.Beta, _uniform_beta, "E log x and E log(1 − x), Uniform"),
    (
        families.Uniform,
        families.ContinuousBernoulli,
        _uniform_continuous_bernoulli,
        "log q is linear in x",
    ),
    (families.Uniform, families.Exponential, _uniform_exponential, "log q is linear in x"),
    (families.Uniform, families.Gamma, _uniform_gamma, "E log x, Uniform"),
    (families.Uniform, families.Gumbel, _uniform_gumbel, _MGF),
    (families.Uniform, families.Normal, _uniform_normal, _MOMENTS),
    (families.Uniform, families.Pareto, _uniform_pareto, "E log x, Uniform"),
)

CROSSED: dict[tuple[type, type], Pair] = {
    **{(p, q): Pair(in_float64(formula), source) for p, q, formula, source in _FINITE},
    **{
        (p, q): Pair(_infinite, "+inf: p has mass outside q's support")
        for p in INFINITE
        for q in INFINITE[p]
    },
}
