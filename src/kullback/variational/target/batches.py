"""Rows of data in mini-batches, and many points a piece at a time.

Which to use: `Rows` holds data behind a target: mini-batches scaled without bias, full passes in
constant memory. `in_pieces` evaluates a function of many points so that what it works on stays in
the cache, for values that may have to be differentiated; `score_in_pieces` gives the gradient
itself. Either way no piece's graph outlives it: memory does not grow with the points.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require, require_type
from kullback.variational import limits

__all__ = ["LogDensity", "Rows", "in_pieces", "score_in_pieces"]

LogDensity = Callable[[Tensor], Tensor]


def in_pieces(function: LogDensity, z: Tensor, size: int) -> Tensor:
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


def score_in_pieces(function: LogDensity, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return function(z) `[n]` and its gradient `[n, d]`, both without a graph.

    >>> score_in_pieces(lambda z: z.square().sum(-1), torch.tensor([[1.0], [3.0]]), 1)
    (tensor([1., 9.]), tensor([[2.],
            [6.]]))
    """
    parts = [_with_gradient(function, part) for part in torch.split(z.detach(), size)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _with_gradient(function: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = z.requires_grad_()
        value = function(leaf)
        if not value.requires_grad:  # a density that does not depend on z
            return value.detach(), torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, function: LogDensity, size: int) -> Tensor:
        value, slope = score_in_pieces(function, z, size)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient[:, None] * slope, None, None


Values = dict[str, Tensor]
Terms = Callable[[Values, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """Data tensors with N leading rows, and the log likelihood of each row.

    data: tensors `[N, …]`. batch_size: rows evaluated together. terms: maps values with a leading
    `[n]` and a batch of rows to log-likelihoods `[n, rows]`. Sums over rows are made in float64.

    >>> rows = Rows.of([torch.arange(6.0)], batch_size=4)
    >>> [len(batch[0]) for batch in rows.batches()]
    [4, 2]
    """

    data: tuple[Tensor, ...]
    batch_size: int
    terms: Terms

    @classmethod
    def of(cls, data: Sequence[Tensor], *, batch_size: int | None) -> "Rows":
        """Check the data: tensors with the same, non-zero number of rows.

        Errors: `ArgumentTypeError` for what is no tensor; `ArgumentValueError` for lengths that
        differ or a batch of no rows.
        """
        for tensor in data:
            require_type(tensor, Tensor, "data", "a tensor, or a list of tensors, one row a case")
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in data]
        same = len(set(lengths)) == 1 and lengths[0] > 0
        require(same, "data", "tensors with the same number of rows", lengths)
        size = min(lengths[0], limits.MAX_ROWS_TOGETHER if batch_size is None else batch_size)
        require(size >= 1, "batch_size", "at least 1 row", batch_size)
        return cls(tuple(data), size, _missing)

    def with_terms(self, terms: Terms) -> "Rows":
        """Return the same rows with their likelihood."""
        return replace(self, terms=terms)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.data[0])

    def first(self) -> tuple[Tensor, ...]:
        """Return the first few rows, to try a function on."""
        return tuple(tensor[:3] for tensor in self.data)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Go through all rows in order, views of `batch_size` rows."""
        for start in range(0, self.count, self.batch_size):
            yield tuple(tensor[start : start + self.batch_size] for tensor in self.data)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the indices of a mini-batch, uniformly and with replacement."""
        return torch.randint(self.count, (self.batch_size,), generator=generator)

    def scaled(self, values: Values, rows: Tensor) -> Tensor:
        """Return `N/B Σ_batch log p(row|z)`, `[n]`: unbiased for the sum over all rows."""
        batch = tuple(tensor[rows] for tensor in self.data)
        return self._sum(values, batch) * (self.count / len(rows))

    def everything(self, z: Tensor, constrain: Callable[[Tensor], Values]) -> Tensor:
        """Return `Σ log p(row|z)` over all rows for z `[n, dim]`, `[n]`, keeping no graph of rows.

        The gradient is computed along with the value, a batch at a time, when z requires one.
        """
        return _Everything.apply(z, self, constrain)  # type: ignore[no-untyped-call, no-any-return]

    def explain(self, values: Values) -> str:
        """Say which row's likelihood is not finite at one point; the empty string if none is."""
        start = 0
        for batch in self.batches():
            bad = (~self.terms(values, batch)[0].isfinite()).nonzero().flatten()
            if len(bad):
                return f"; the first such data row is {start + int(bad[0])} (counted from 0)"
            start += self.batch_size
        return ""

    def _sum(self, values: Values, batch: tuple[Tensor, ...]) -> Tensor:
        return self.terms(values, batch).sum(-1, dtype=torch.float64)


class _Everything(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Rows, constrain: Callable[[Tensor], Values]) -> Tensor:
        wanted = bool(ctx.needs_input_grad[0])
        total, score = z.new_zeros(len(z)), torch.zeros_like(z)
        for batch in rows.batches():
            with torch.set_grad_enabled(wanted):
                leaf = z.detach().requires_grad_(wanted)
                value = rows._sum(constrain(leaf), batch)
                if wanted:
                    score += torch.autograd.grad(value.sum(), leaf)[0]
            total += value.detach()
        ctx.save_for_backward(score)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (score,) = ctx.saved_tensors
        return gradient[:, None] * score, None, None


def _missing(values: Values, batch: tuple[Tensor, ...]) -> Tensor:
    raise NotImplementedError
