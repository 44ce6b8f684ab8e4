"""A function of many points, evaluated a piece at a time: what it works on stays in the cache.

Which to use: `in_pieces` for values that may have to be differentiated, `score_in_pieces` for the
gradient itself. Either way no piece's graph outlives it: memory does not grow with the points.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["in_pieces", "score_in_pieces"]

Pointwise = Callable[[Tensor], Tensor]


def in_pieces(function: Pointwise, z: Tensor, size: int) -> Tensor:
    """Return function(z) for a function `[n, d]` to `[n]` of each point alone, `size` at a time.

    Where z wants a gradient, and there is more than one piece, the gradient is computed along with
    the value; it has no derivative of its own then.

    >>> z = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    >>> in_pieces(lambda z: z.square().sum(-1), z, 2).sum().backward()
    >>> z.grad.flatten()
    tensor([2., 4., 6.])
    """
    if len(z) <= size:
        return function(z)
    if torch.is_grad_enabled() and z.requires_grad:
        return _InPieces.apply(z, function, size)  # type: ignore[no-untyped-call, no-any-return]
    return torch.cat([function(part) for part in torch.split(z, size)])


def score_in_pieces(function: Pointwise, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return function(z) `[n]` and its gradient `[n, d]`, both without a graph.

    >>> score_in_pieces(lambda z: z.square().sum(-1), torch.tensor([[1.0], [3.0]]), 1)
    (tensor([1., 9.]), tensor([[2.],
            [6.]]))
    """
    parts = [_with_gradient(function, part) for part in torch.split(z.detach(), size)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _with_gradient(function: Pointwise, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = z.requires_grad_()
        value = function(leaf)
        if not value.requires_grad:  # a density that does not depend on z
            return value.detach(), torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, function: Pointwise, size: int) -> Tensor:
        value, slope = score_in_pieces(function, z, size)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient[:, None] * slope, None, None
