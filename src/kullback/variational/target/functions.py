"""What a log density can be given as: a function of one point, of rows, or with its gradient.

Which to use: none of this directly, `Target` does. `checked_score` checks what another program
computes, log p and its gradient; by `Scored` they stand for a function that torch differentiates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require

__all__ = ["PointDensity", "RowsDensity", "Score", "Scored", "checked_score"]

PointDensity = Callable[..., Tensor]  # a user's function of one point: a scalar, in nats
RowsDensity = Callable[[Tensor, Tensor | None], Tensor]  # z `[n, d]`, rows or None: `[n]`
Score = Callable[[Tensor], tuple[Any, Any]]  # z `[n, d]`: log p `[n]` and its gradient `[n, d]`


class Scored(torch.autograd.Function):
    """Log p of z with the gradient that came with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, score: Score) -> Tensor:
        """Return log p `[n]` of z `[n, d]`."""
        value, gradient = score(z.detach())
        ctx.save_for_backward(gradient)
        log_p: Tensor = value.to(z.dtype)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, times what comes from above."""
        (gradient,) = ctx.saved_tensors
        return upstream[0][:, None] * gradient, None


def checked_score(score: Score, dim: int, *, pad: bool) -> Score:
    """Wrap a user's function: float64 in and out, shapes checked, padded where asked."""

    def checked(z: Tensor) -> tuple[Tensor, Tensor]:
        count = len(z)
        room = (1 << max(0, count - 1).bit_length()) - count if pad else 0
        asked = torch.cat([z, z[-1:].expand(room, dim)]) if room else z
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # far points are asked
            result = score(asked.double())
        pair = isinstance(result, tuple | list) and len(result) == 2
        require(pair, "score", "a pair: log p [n] and its gradient [n, dim]", type(result).__name__)
        value, gradient = (torch.as_tensor(part, dtype=torch.float64) for part in result)
        shapes = [tuple(value.shape), tuple(gradient.shape)]
        wanted = [(len(asked),), (len(asked), dim)]
        require(shapes == wanted, "score", f"shapes {wanted[0]} and {wanted[1]}", shapes)
        return value[:count], gradient[:count]

    return checked
