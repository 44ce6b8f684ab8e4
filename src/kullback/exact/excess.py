"""`e^l − 1 − l`, the number under the closed forms: KL written so that it cannot come out negative.

Which to use: `log_excess` of a log ratio, wherever a closed form holds `r − 1 − log r` (MATH 5.4:
the tangent of log at 1 lies above it).
"""

import torch
from torch import Tensor

__all__ = ["log_excess"]


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
    return torch.where(small, series, torch.expm1(log_ratio) - log_ratio)
