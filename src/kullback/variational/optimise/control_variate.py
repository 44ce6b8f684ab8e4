"""Mini-batches with little noise: a control variate anchored at one point of a full pass.

Which to use: `anchor` climbs to near the top of the full data's posterior with a few passes;
`anchored` is then an unbiased mini-batch log density whose noise is that of the second-order rest,
small when q is narrow about the anchor, which is what many rows make it.
Reference: Johnson and Zhang (2013), "Accelerating stochastic gradient descent using predictive
variance reduction"; Baker et al. (2019), "Control variates for stochastic gradient MCMC".
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target
from kullback.variational.target.minibatch import Rows

__all__ = ["anchor", "anchored"]


def anchor(target: Target, frame: Frame, *, passes: int = 5, close: float = 0.05) -> Frame:
    """Move a frame's centre uphill by full passes over the rows, `u ← u + ∂ log p/∂u` from u = 0.

    One Newton step where the frame's covariance is the inverse curvature. Ends when a step is
    shorter than `close` in every coordinate (standard deviations), or after `passes` passes; a step
    that does not raise log p is halved.
    """
    z, step = frame.shift, 1.0
    value, slope = target.score(z[None])
    for _ in range(passes):
        move = slope[0] @ frame.factor  # the gradient in u
        if float((step * move).abs().max()) < close:
            break
        new = frame.outwards(frame.inwards(z) + step * move)
        higher, turned = target.score(new[None])
        if bool(higher >= value):
            z, value, slope, step = new, higher, turned, min(1.0, 2 * step)
        else:
            step *= 0.25
    return Frame(z, frame.scale)


def anchored(target: Target, at: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return `log_density(z, rows)`, unbiased for the full log density, quiet near `at` `[d]`.

    `log p(z) ≈ prior(z) + L(a) + ∂L(a)·(z − a) + N/B Σ_batch [l(z) − l(a) − ∂l(a)·(z − a)]`, with
    L the log likelihood of all rows, computed once, here. Errors: `ArgumentValueError` without
    rows.
    """
    data = cast(Rows, target.rows)
    require(data is not None, "target", "one with data rows", "none")

    def likelihood(z: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return data.everything(z, target.constrain)
        return data.scaled(target.constrain(z), rows)

    def tangent(rows: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = at.detach()[None].requires_grad_()
            value = likelihood(leaf, rows)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope[0]

    whole, whole_slope = tangent(None)

    def log_density(z: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return target.log_density(z)
        part, slope = tangent(rows)
        linear = (whole - part) + (z - at) @ (whole_slope - slope)
        return target.prior(z) + likelihood(z, rows) + linear

    return log_density
