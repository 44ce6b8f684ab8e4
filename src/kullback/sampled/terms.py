"""The table of log-ratio estimators: each is a per-draw term in `log r`, r = q(x)/p(x), x ~ p.

Every estimator is a linear form in three features of a draw, so that a mean, a variance and a
best coefficient all come from the joint moments of the same three numbers:

| name | term | coefficients on (log r, r - 1 - log r, ½ log² r) |
|---|---|---|
| k1 | −log r | (−1, 0, 0) |
| k2 | ½ log² r | (0, 0, 1) |
| k3 | r − 1 − log r | (0, 1, 0) |
| λ | −log r + λ (r − 1) | (λ − 1, λ, 0) |

The control variate `r − 1` is the sum of the first two. Which to use: `log_ratio_terms` for the
terms themselves, one a draw; `log_ratio` (beside this file) for their mean with its error.

Reference: MATH 5.1 to 5.5; Schulman (2020), "Approximating KL divergence".
"""

import math

import torch
from torch import Tensor

from kullback.core import require

__all__ = ["CONTROL", "ESTIMATORS", "Estimator", "bregman", "coefficients", "log_ratio_terms"]

Estimator = str | float

ESTIMATORS: dict[str, tuple[float, float, float]] = {
    "k1": (-1.0, 0.0, 0.0),
    "k2": (0.0, 0.0, 1.0),
    "k3": (0.0, 1.0, 0.0),
}
CONTROL = (1.0, 1.0, 0.0)  # r − 1

_NEAR = 0.01  # below it the series is exact to rounding, above it the difference is to 2e-14
_SERIES = 7  # the first term left out is below |log r|^6 / 20160 of the sum: 5e-17


def coefficients(estimator: Estimator) -> tuple[float, float, float]:
    """Return an estimator's coefficients on `(log r, r − 1 − log r, ½ log² r)`.

    estimator: a name in the table, or a number λ for `−log r + λ (r − 1)`.
    Errors: `ValueError` for a name outside the table.

    >>> coefficients("k3")
    (0.0, 1.0, 0.0)
    >>> coefficients(0.75)
    (-0.25, 0.75, 0.0)
    """
    if isinstance(estimator, str) and estimator in ESTIMATORS:
        return ESTIMATORS[estimator]
    real = isinstance(estimator, int | float) and not isinstance(estimator, bool)
    number = real and math.isfinite(float(estimator))
    expected = f"a number λ or one of {', '.join(ESTIMATORS)}"
    require(number, "estimator", expected, repr(estimator))
    return (float(estimator) - 1.0, float(estimator), 0.0)


def bregman(log_r: Tensor) -> Tensor:
    """Return `r − 1 − log r ≥ 0` elementwise, accurate also where r is close to 1.

    log_r: any shape and floating type. Relative error at most a hundred ulps everywhere (about
    2e-14 in float64), where the plain difference loses every digit below |log r| = 1e-16.
    −inf and +inf give +inf; NaN stays NaN. The gradient with respect to log r is `r − 1`.

    >>> bregman(torch.tensor([0.0, 1e-10], dtype=torch.float64))
    tensor([0.0000e+00, 5.0000e-21], dtype=torch.float64)
    """
    terms = torch.expm1(log_r) - log_r
    near = (log_r.abs() < _NEAR) | (log_r == torch.inf)
    terms[near] = _series(log_r[near])
    return terms


def log_ratio_terms(log_p: Tensor, log_q: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """Return one term a draw, e.g. `r − 1 − log r` for k3, whose mean under p estimates KL(p‖q).

    log_p, log_q: log densities at draws x ~ p, shapes that broadcast; the result has that shape,
    in nats. estimator: "k1", "k2", "k3" or a number λ (MATH 5.3).

    Exact per draw up to rounding; k3 and k2 are never negative. log q = −inf (q has no mass at a
    draw) gives +inf. Differentiable in both arguments; what the gradient of a mean of these terms
    is the gradient *of* differs from one estimator to the next (MATH 5.8).

    Errors: `ValueError` for a name outside the table.

    >>> log_p = torch.tensor([0.5, 0.5]).log()
    >>> log_ratio_terms(log_p, torch.tensor([0.25, 0.75]).log(), estimator="k3")
    tensor([0.1931, 0.0945])
    """
    log_r, features = log_q - log_p, []
    on_log_r, on_bregman, on_square = coefficients(estimator)
    if on_log_r:
        features.append(on_log_r * log_r)
    if on_bregman:
        features.append(on_bregman * bregman(log_r))
    if on_square:
        features.append(on_square * 0.5 * log_r**2)
    return torch.stack(features).sum(0)


def bregman_together(log_r: Tensor, out: Tensor, span: tuple[float, float] | None = None) -> None:
    """Write `bregman(log_r)`, `[draws]`, that will be averaged into `out`: quicker, same mean.

    span: two numbers that all log r lie between; found if not given. Where the largest |log r| is
    not small, the digits lost on the small ones do not count in a sum.
    """
    if not log_r.numel():
        return
    least, most = span or (float(end) for end in log_r.aminmax())
    if not math.isfinite(most - least):
        out.copy_(bregman(log_r))
    elif max(-least, most) >= _NEAR:
        torch.expm1(log_r, out=out).sub_(log_r)
    else:
        _series_together(log_r, out)


def _series_together(log_r: Tensor, out: Tensor) -> None:
    """Write `_series` into `out`, without room of its own and as far as the type's digits go."""
    last = _SERIES if log_r.dtype == torch.float64 else 4  # 0.01³/60 = 2e-8 of the sum
    torch.mul(log_r, 1 / math.factorial(last), out=out)
    for order in range(last - 1, 1, -1):
        out.add_(1 / math.factorial(order)).mul_(log_r)
    out.mul_(log_r)


def _series(log_r: Tensor) -> Tensor:
    total = log_r / _SERIES + 1.0
    for order in range(_SERIES - 1, 2, -1):
        total = total * log_r / order + 1.0
    return 0.5 * log_r * log_r * total
