"""Running moments of a window of vectors, and whether its two halves tell the same story."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Window"]


@dataclass
class Window:
    """Running mean and variance of the two halves of a window of vectors, in constant memory.

    >>> import torch
    >>> window = Window.of(torch.zeros(1), 4)
    >>> for value in (1.0, 2.0, 1.0, 2.0):
    ...     window.add(torch.tensor([value]))
    >>> window.r_hat(), window.mean
    (tensor(1.), tensor([1.5000]))
    """

    means: Tensor
    squares: Tensor
    size: int
    count: int = 0

    @classmethod
    def of(cls, like: Tensor, size: int) -> "Window":
        """Make an empty window for `size` vectors."""
        return cls(like.new_zeros(2, len(like)), like.new_zeros(2, len(like)), size)

    def add(self, vector: Tensor) -> None:
        """Take in the next vector (Welford's recurrence)."""
        half = int(self.count >= self.size // 2)
        seen = self.count - half * (self.size // 2) + 1
        change = vector - self.means[half]
        self.means[half] += change / seen
        self.squares[half] += change * (vector - self.means[half])
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """The mean of all vectors, once the window is full."""
        return self.means.mean(0)

    def r_hat(self) -> Tensor:
        """Return the split R-hat `√(1 + variance of means / mean of variances)`, a scalar.

        Of all entries the one that nine in ten do not exceed: among thousands the largest is noise.
        """
        within = self.squares.mean(0) / (self.size // 2 - 1)
        between = (self.means[0] - self.means[1]).square() / 2
        ratios = (1 + between / within.clamp_min(1e-300)).sqrt()
        return ratios.sort().values[int(0.9 * (len(ratios) - 1))]
