"""What is remembered of draws once they have been looked at: their moments and their tails."""

from dataclasses import dataclass

from torch import Tensor

from .moments import Moments
from .tails import Tails

__all__ = ["Seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """Moments and tails of the same draws; `a + b` is what both saw together.

    >>> import torch
    >>> piece = Seen(Moments.of(torch.ones(1, 6, dtype=torch.float64)), Tails.none())
    >>> (piece + piece).moments.count
    12
    """

    moments: Moments
    tails: Tails

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.moments + other.moments, self.tails + other.tails)

    def scaled(self, factor: Tensor) -> "Seen":
        """Return what would have been seen of `factor · features`, factor `[*batch]`."""
        return Seen(self.moments.scaled(factor), self.tails.scaled(factor))

    def skewness(self, form: Tensor) -> Tensor:
        """Return the skewness of the mean of a form, `Σ δ³ / (Σ δ²)^{3/2}`, `[*batch]`."""
        return self.tails.skewness(form, self.moments.at(form), self.moments.squares(form))
