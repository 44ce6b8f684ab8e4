"""`e^l − 1 − l`, the number under the closed forms: KL written so that it cannot come out negative.

Which to use: `log_ratio` for `log y/x` of two positive parameters that may be nearly equal;
`log_excess` of it, wherever a closed form holds `r − 1 − log r` (MATH 5.4: the tangent of log at 1
lies above it); `relative_entropy` for `x log(x/y) − x + y`.
"""

import math

import torch
from torch import Tensor

__all__ = ["log_excess", "log_ratio", "relative_entropy"]


def log_excess(log_ratio: Tensor) -> Tensor:
    """Return `e^l − 1 − l ≥ 0`, elementwise.

    log_ratio: any shape, float. Accurate to `2·eps/|l|` or better: below `|l| = (120·eps)^¼` the
    series `l²/2 + l³/6 + l⁴/24` takes over, where its error equals that of the direct form.
    ±inf gives +inf, NaN stays NaN. The gradient is `e^l − 1`.

    >>> log_excess(torch.tensor([0.0, 1e-6, -1.0]))
    tensor([0.0000e+00, 5.0000e-13, 3.6788e-01])
    """
    limit = (120 * torch.finfo(log_ratio.dtype).eps) ** 0.25
    small = log_ratio.abs() < limit
    near = torch.where(small, log_ratio, 0)
    series = near * near * (0.5 + near * (1 / 6 + near / 24))
    rest = torch.where(log_ratio == math.inf, 0, log_ratio)  # inf − inf would be NaN
    return torch.where(small, series, torch.expm1(log_ratio) - rest)


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
