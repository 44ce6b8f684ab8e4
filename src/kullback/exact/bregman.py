"""`e^l − 1 − l`, the number under the closed forms: KL written so that it cannot come out negative.

Which to use: `log_ratio` for `log y/x` of two positive parameters that may be nearly equal;
`log_excess` of it, wherever a closed form holds `r − 1 − log r` (MATH 5.4: the tangent of log at 1
lies above it); `relative_entropy` for `x log(x/y) − x + y`.

Bregman divergences `f(x + h) − f(x) − h f′(x)`, without cancellation for small steps h.

Which to use: `of_log_gamma`, `of_log_bessel` (I₀) and `of_log_sinhc` for the log-normalisers of the
Gamma, von Mises and continuous Bernoulli families; `of_softplus` for the Bernoulli's;
`stirling` for log Γ without its large part. Two nearly equal distributions have a small h, where
the definition loses all digits; the integral `h² ∫₀¹ (1 − t) f″(x + t h) dt` has none to lose, f″
being positive. All in float64.

Reference: DLMF 5.11.1 (Stirling), 10.40.1 (Bessel), 3.5.v (Gauss-Legendre).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import limits

__all__ = [
    "HALF_LOG_2PI",
    "NORMAL_ENTROPY",
    "inverse_sinh_mean",
    "log1mexp",
    "log_excess",
    "log_ratio",
    "log_sinhc",
    "of_log_bessel",
    "of_log_gamma",
    "of_log_sinhc",
    "of_softplus",
    "of_stirling",
    "relative_entropy",
    "sinhc_bend",
    "stirling",
    "stirling_slope",
    "stirling_slope_step",
    "write_log_excess",
]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)  # nats: −log N(0; 0, 1)
NORMAL_ENTROPY = HALF_LOG_2PI + 0.5  # nats: the entropy of N(0, 1), ½ log 2πe


def log_excess(log_ratio: Tensor) -> Tensor:
    """Return `e^l − 1 − l ≥ 0`, elementwise.

    Accurate to `2·eps/|l|` or better: below |l| = 0.026 (0.061 in float32) its Taylor series takes
    over, up to the term `l⁷/7!` (`l⁴/4!`). ±inf gives +inf, NaN stays NaN. The gradient is
    `e^l − 1`.

    Args:
        log_ratio: Any shape, float.

    Returns:
        The same shape.

    Example:
        >>> log_excess(torch.tensor([0.0, 1e-6, -1.0]))
        tensor([0.0000e+00, 5.0000e-13, 3.6788e-01])
    """
    factors, limit = _excess_series(log_ratio.dtype)
    small = log_ratio.abs() < limit
    near = torch.where(small, log_ratio, 0)
    series = near * near * _polynomial(near, factors)
    rest = torch.where(log_ratio == math.inf, 0, log_ratio)  # inf − inf would be NaN
    return torch.where(small, series, torch.expm1(log_ratio) - rest)


def write_log_excess(
    log_ratio: Tensor, out: Tensor, span: tuple[float, float] | None = None
) -> None:
    """Write `e^l − 1 − l` of values that will be averaged into `out`: quicker, with the same mean.

    One form for all values: where the largest |l| is not small, the digits that the direct form
    loses on small ones do not count in a sum. No gradient.

    Args:
        log_ratio: `[draws]`, float.
        out: `[draws]`, the same dtype.
        span: Two numbers that all values lie between; found if None.
    """
    if not log_ratio.numel():
        return
    least, most = span or (float(end) for end in log_ratio.aminmax())
    factors, limit = _excess_series(log_ratio.dtype)
    if not math.isfinite(most - least):
        out.copy_(log_excess(log_ratio))
    elif max(-least, most) >= limit:
        torch.expm1(log_ratio, out=out).sub_(log_ratio)
    else:
        torch.mul(log_ratio, factors[-1], out=out)
        for factor in reversed(factors[:-1]):
            out.add_(factor).mul_(log_ratio)
        out.mul_(log_ratio)


@lru_cache
def _excess_series(dtype: torch.dtype) -> tuple[list[float], float]:
    """Return the k factors of `e^l − 1 − l = l² Σ l^n/(n + 2)!`, and the |l| up to which to use it.

    There the first term left out, `l^(k+2)/(k + 2)!`, is the rounding `eps·|l|` of the direct form.
    """
    terms = 6 if dtype == torch.float64 else 3
    factors = [1 / math.factorial(n) for n in range(2, terms + 2)]
    return factors, (math.factorial(terms + 2) * torch.finfo(dtype).eps) ** (1 / (terms + 1))


def log_ratio(above: Tensor, below: Tensor, *, step: Tensor | None = None) -> Tensor:
    """Return `log(above/below)` to a few eps relative to itself, also where the two nearly agree.

    above, below: positive, broadcastable. step: `above − below`, where it is known more exactly
    than their rounded difference.

    >>> one = torch.tensor(1.0, dtype=torch.float64)
    >>> float(log_ratio(one + 2**-40, one)) == 2**-40 - 2**-81
    True
    """
    near = (above <= 2 * below) & (below <= 2 * above)
    gap = torch.where(near, above - below if step is None else step, 0)
    return torch.where(near, torch.log1p(gap / below), above.log() - below.log())


def relative_entropy(x: Tensor, y: Tensor, *, step: Tensor | None = None) -> Tensor:
    """Return `x log(x/y) − x + y ≥ 0`, elementwise: a KL between Poisson rates, or a table's term.

    x, y: at least 0, the same shape. step: `y − x`, where known more exactly. y where x is 0, +inf
    where only y is 0; such entries count as constants in the gradient of x.

    >>> relative_entropy(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([2.0, 3.0, 0.0]))
    tensor([0.3069, 3.0000,    inf])
    """
    live = (x > 0) & (y > 0)
    a, b = torch.where(live, x, 1), torch.where(live, y, 1)
    step = torch.where(live, y - x if step is None else step, 0)
    log_step = log_ratio(b, a, step=step)
    small = log_step.abs() < 1
    near = a * log_excess(torch.where(small, log_step, 0))
    terms = torch.where(small, near, step - a * log_step)
    return torch.where(live, terms, torch.where(x > 0, math.inf, y))


_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798)
_STIRLING = [(2 * k - 1, b / (2 * k * (2 * k - 1))) for k, b in enumerate(_BERNOULLI, 1)]


def stirling(x: Tensor) -> Tensor:
    """Return `s(x) = log Γ(x) − (x − ½) log x + x − ½ log 2π > 0`, to a few eps of itself.

    x: positive, float64. Gudermann's series `s(x) = Σ_k g(x + k)`, its tail by Stirling's.

    >>> round(float(stirling(torch.tensor(1e3, dtype=torch.float64)) * 12e3), 12)
    0.999999966667
    """
    below, z = _shifted(x)
    direct = torch.log1p(1 / below) * (below + 0.5) - 1
    series = z**2 * _polynomial(z**2, [1 / (2 * n + 1) for n in range(1, 16)])
    return torch.where(z < limits.MAX_STIRLING_STEP_SERIES, series, direct).sum(-1) + _tail(
        x + limits.STIRLING_SHIFT, _STIRLING
    )


def stirling_slope(x: Tensor) -> Tensor:
    """Return `s′(x) = ψ(x) − log x + 1/(2x) < 0`, to a few eps of itself.

    >>> round(float(stirling_slope(torch.tensor(1.0, dtype=torch.float64))), 14)  # ½ − γ
    -0.07721566490153
    """
    below, z = _shifted(x)
    direct = 0.5 * (1 / below + 1 / (below + 1)) - torch.log1p(1 / below)
    series = 2 * z**3 * _polynomial(z**2, [2 * n / (2 * n + 1) for n in range(1, 16)])
    powers = [(power + 1, -power * factor) for power, factor in _STIRLING]
    return _tail(x + limits.STIRLING_SHIFT, powers) - torch.where(
        z < limits.MAX_STIRLING_STEP_SERIES, series, direct
    ).sum(-1)


def stirling_bend(x: Tensor) -> Tensor:
    """Return `s″(x) = ½ Σ_k 1/((x + k)(x + k + 1))² > 0`.

    >>> round(float(stirling_bend(torch.tensor(1.0, dtype=torch.float64))), 14)  # π²/6 − 3/2
    0.14493406684823
    """
    below, _ = _shifted(x)
    powers = [(power + 2, power * (power + 1) * factor) for power, factor in _STIRLING]
    return 0.5 * ((below * (below + 1)) ** -2).sum(-1) + _tail(x + limits.STIRLING_SHIFT, powers)


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x + k` and `1/(2(x + k) + 1)` for k < STIRLING_SHIFT, along a new last axis."""
    below = x[..., None] + torch.arange(limits.STIRLING_SHIFT, dtype=x.dtype, device=x.device)
    return below, 1 / (2 * below + 1)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return `c₀ + c₁ x + …` by Horner's rule."""
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def _tail(y: Tensor, powers: Sequence[tuple[int, float]]) -> Tensor:
    """Sum `c y^−n` over the terms (n, c), every other n, of Stirling's series or a derivative."""
    coefficients = [coefficient for _, coefficient in powers]
    return y ** -powers[0][0] * _polynomial(y**-2, coefficients)


def stirling_slope_step(x: Tensor, h: Tensor) -> Tensor:
    """Return `s′(x + h) − s′(x)`, also for h much smaller than x."""
    near = h.abs() <= x / 2
    base, step = torch.where(near, x, 1), torch.where(near, h, 0)
    integral = step * _integral(stirling_bend, base, step, weighted=False)
    return torch.where(near, integral, stirling_slope(x + h) - stirling_slope(x))


def of_stirling(x: Tensor, h: Tensor, *, y: Tensor | None = None) -> Tensor:
    """Return `s(x + h) − s(x) − h s′(x) ≥ 0` for x > 0, x + h > 0.

    y: `x + h`, where it is known: the sum loses all its digits where y is far below x.
    """
    y = x + h if y is None else y
    near = h.abs() <= x / 2
    base, step = torch.where(near, x, 1), torch.where(near, h, 0)
    largest = torch.finfo(x.dtype).max ** 0.49  # beyond it s is below rounding, and h² overflows
    integral = step.clamp(-largest, largest) ** 2 * _integral(stirling_bend, base, step)
    far_x, far_y = torch.where(near, 1, x), torch.where(near, 2, y)
    far = stirling(far_y) - stirling(far_x) - (far_y - far_x) * stirling_slope(far_x)
    return torch.where(near, integral, far)


def of_log_gamma(x: Tensor, h: Tensor, *, y: Tensor | None = None) -> Tensor:
    """Return `log Γ(x + h) − log Γ(x) − h ψ(x) ≥ 0` for x > 0, x + h > 0; y as in `of_stirling`.

    >>> x, h = torch.tensor(2.0).double(), torch.tensor(1e-9).double()
    >>> round(float(of_log_gamma(x, h) / h**2 * 2), 9) == round(math.pi**2 / 6 - 1, 9)
    True
    """
    y = x + h if y is None else y
    log_step = log_ratio(y, x, step=h)
    bend = of_stirling(x, h, y=y)
    return relative_entropy(y, x, step=-h) + 0.5 * log_excess(log_step) + bend


def of_softplus(x: Tensor, h: Tensor) -> Tensor:
    """Return `log(1 + e^(x+h)) − log(1 + e^x) − h σ(x) ≥ 0` for |h| ≤ 1."""
    return h**2 * _integral(lambda y: torch.sigmoid(y) * torch.sigmoid(-y), x, h)


def log_sinhc(x: Tensor) -> Tensor:
    """Return `log(sinh(x/2)/(x/2)) ≥ 0`: the log-normaliser of `e^(x u)` over |u| ≤ ½.

    >>> log_sinhc(torch.tensor([0.0, 1.0, 4.0]).double())
    tensor([0.0000, 0.0413, 0.5952], dtype=torch.float64)
    """
    size = x.abs()
    near = size < 1
    small = torch.where(near, size, 0) / 2
    square = small**2
    series = square * _polynomial(square, [1 / math.factorial(2 * n + 1) for n in range(1, 10)])
    large = torch.where(near, 1, size)
    return torch.where(near, torch.log1p(series), large / 2 - large.log() + log1mexp(large))


def inverse_sinh_mean(x: Tensor) -> Tensor:
    """Return `1/|x| − 1/(e^|x| − 1)`, in (0, ½]: the mean of density `∝ e^(−|x| u)` on [0, 1]."""
    size = x.abs()
    near = size < 0.5
    small, large = torch.where(near, size, 0), torch.where(near, 1, size)
    series = 0.5 - sum(
        b / math.factorial(2 * k) * small ** (2 * k - 1) for k, b in enumerate(_BERNOULLI, 1)
    )
    decay = torch.exp(-large) / -torch.expm1(-large)
    return torch.where(near, series, 1 / large - decay)


def of_log_sinhc(x: Tensor, h: Tensor) -> Tensor:
    """Return the Bregman divergence of `log_sinhc` from x to x + h, x any real number."""
    y = x + h
    near = (h.abs() <= 2) | (h.abs() <= x.abs() / 2)
    base, step = torch.where(near, x, 0), torch.where(near, h, 0)
    integral = step**2 * _integral(sinhc_bend, base, step)
    slope = torch.sign(x) * (0.5 - inverse_sinh_mean(x))
    return torch.where(near, integral, log_sinhc(y) - log_sinhc(x) - h * slope)


def of_log_bessel(x: Tensor, h: Tensor) -> Tensor:
    """Return `log I₀(x + h) − log I₀(x) − h I₁(x)/I₀(x) ≥ 0` for x ≥ 0, x + h ≥ 0."""
    y = x + h
    near = (h.abs() <= 1) | (h.abs() <= x / 2)
    base, step = torch.where(near, x, 1), torch.where(near, h, 0)
    integral = step**2 * _integral(_bessel_bend, base, step)
    i0e = torch.special.i0e
    mean = torch.special.i1e(x) / i0e(x)
    far: Tensor = i0e(y).log() - i0e(x).log() + h * (1 - mean)
    return torch.where(near, integral, far)


def _bessel_bend(x: Tensor) -> Tensor:
    """`1 − A/x − A²` with A = I₁/I₀; the series of log I₀ where that cancels."""
    large = x > limits.MIN_BESSEL_SERIES
    small = torch.where(large, 1, x).clamp(min=1e-12)
    mean = torch.special.i1e(small) / torch.special.i0e(small)
    direct = 1 - mean / small - mean**2
    inverse = 1 / torch.where(large, x, limits.MIN_BESSEL_SERIES)
    series = sum(k * (k + 1) * c * inverse ** (k + 2) for k, c in enumerate(_log_bessel_terms(), 1))
    return torch.where(large, 0.5 * inverse**2 + series, direct)


@lru_cache(maxsize=1)
def _log_bessel_terms(count: int = 14) -> tuple[float, ...]:
    """Return c₁, c₂, … of `log I₀(x) = x − ½ log 2πx + Σ c_k x^−k` (from DLMF 10.40.1)."""
    terms = [1.0]
    for k in range(1, count + 1):
        terms.append(terms[-1] * (2 * k - 1) ** 2 / (8 * k))
    logs: list[float] = []
    for k in range(1, count + 1):
        inner = sum(j * logs[j - 1] * terms[k - j] for j in range(1, k))
        logs.append(terms[k] - inner / k)
    return tuple(logs)


def sinhc_bend(x: Tensor) -> Tensor:
    """`1/x² − 1/(4 sinh²(x/2))`, the variance of density `∝ e^(x u)` on [0, 1]."""
    size = x.abs()
    near = size < 1
    small, large = torch.where(near, size, 0), torch.where(near, 1, size)
    series = sum(
        b * (2 * k - 1) / math.factorial(2 * k) * small ** (2 * k - 2)
        for k, b in enumerate(_BERNOULLI, 1)
    )
    decay = torch.exp(-large)
    return torch.where(near, series, large**-2 - decay / torch.expm1(-large) ** 2)


def log1mexp(x: Tensor) -> Tensor:
    """Return `log(1 − e^−x)` for x > 0, to a few eps of itself."""
    large = x > math.log(2)
    near, far = torch.where(large, 1, x), torch.where(large, x, 1)
    return torch.where(large, torch.log1p(-torch.exp(-far)), torch.log(-torch.expm1(-near)))


def _integral(
    bend: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, *, weighted: bool = True
) -> Tensor:
    """Return `∫₀¹ (1 − t) f″(x + t h) dt`, or without the weight `1 − t`."""
    nodes, weights = _unit_nodes()
    value = torch.zeros_like(x + h)
    for t, weight in zip(nodes, weights, strict=True):
        value = value + (weight * (1 - t) if weighted else weight) * bend(x + t * h)
    return value


@lru_cache(maxsize=1)
def _unit_nodes() -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(limits.GAUSS_LEGENDRE_NODES)
    return list((nodes + 1) / 2), list(weights / 2)
