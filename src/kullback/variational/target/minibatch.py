"""Data rows behind a target: mini-batches scaled without bias, full passes in constant memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kullback.core import require, require_type

__all__ = ["Rows"]

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
        size = min(lengths[0], 8192 if batch_size is None else batch_size)
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
