"""Mean, squares and range of training examples, column by column, in one pass over blocks.

Which to use: `moments_of` for a tensor, or `Summing` while rows are read from disk. Rows are taken
in blocks of a size that depends on their shape alone, so the result is the same to the last bit
wherever the rows are.

Reference: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import limits

__all__ = ["Moments", "Summing", "block_rows", "moments_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of `[count, *event]`, in float64.

    mean: `[*event]`. squares: sums of squared differences from the mean, `[*event]`. low, high: the
    least and the greatest value, `[*event]`.
    """

    count: int
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of_block(cls, rows: Tensor) -> "Moments":
        """Return those of a few rows, two passes over them."""
        values = rows.contiguous().double()  # strides decide the order of a sum
        mean = values.mean(0)
        return cls(len(rows), mean, (values - mean).square().sum(0), values.amin(0), values.amax(0))

    def joined(self, more: "Moments") -> "Moments":
        """Return those of both sets of rows together."""
        count, apart = self.count + more.count, more.mean - self.mean
        share = more.count / count
        squares = self.squares + more.squares + apart.square() * (self.count * share)
        low, high = torch.minimum(self.low, more.low), torch.maximum(self.high, more.high)
        return Moments(count, self.mean + apart * share, squares, low, high)


class Summing:
    """Sums up rows as they come, `add`, for the `Moments` of all of them, `result`.

    Example:
        >>> sums = Summing()
        >>> sums.add(torch.tensor([[1.0], [5.0]]))
        >>> sums.result().mean.tolist(), sums.result().squares.tolist()
        ([3.0], [8.0])
    """

    def __init__(self) -> None:
        self.found: Moments | None = None
        self.held: list[Tensor] = []
        self.waiting = 0

    def add(self, rows: Tensor) -> None:
        """Take rows `[n, *event]`; they are summed once a whole block is there."""
        self.held.append(rows)
        self.waiting += len(rows)
        size = block_rows(rows)
        if self.waiting >= size:
            every = torch.cat(self.held)
            whole = len(every) // size * size
            for block in torch.split(every[:whole], size):
                self.found = _joined(self.found, block)
            self.held, self.waiting = [every[whole:].clone()], len(every) - whole

    def result(self) -> Moments:
        """Return those of all rows so far."""
        rest = torch.cat(self.held)
        found = _joined(self.found, rest) if len(rest) else self.found
        if found is None:
            raise ValueError("rows: expected at least 1; got none")
        return found


def _joined(found: Moments | None, block: Tensor) -> Moments:
    more = Moments.of_block(block)
    return more if found is None else found.joined(more)


def block_rows(rows: Tensor) -> int:
    """Return how many rows of this shape are summed at once."""
    return max(1, min(limits.MOMENT_ROWS, limits.MOMENT_NUMBERS // max(1, rows[:1].numel())))


def moments_of(rows: Tensor) -> Moments:
    """Return the moments of `[N, *event]`.

    Args:
        rows: At least one, on any device; float64 is used where the device has it.

    Returns:
        On the CPU.

    Example:
        >>> moments_of(torch.tensor([[1, 0], [3, 0]], dtype=torch.uint8)).mean
        tensor([2., 0.], dtype=torch.float64)
    """
    sums = Summing()
    for block in torch.split(rows, block_rows(rows)):
        sums.add(block.cpu())
    return sums.result()
