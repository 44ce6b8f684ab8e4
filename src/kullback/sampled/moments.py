"""Joint moments up to the third, of any number of features, that merge without loss.

`Moments.of(features)` looks at one piece of draws; `a + b` is the state of both pieces together
(Chan, Golub and LeVeque 1979; Pébay 2008), as if they had been seen at once. Everything is kept
about the mean, in float64, so a billion draws lose no more digits than a thousand.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean `[*batch, F]` and central sums `Σ δδ`, `Σ δδδ` of F features of some draws.

    A linear form `a · features` has sums `aᵀ second a` and `third a a a`.

    >>> piece = torch.arange(6.0, dtype=torch.float64).reshape(1, 6)
    >>> whole, parts = Moments.of(piece), Moments.of(piece[:, :2]) + Moments.of(piece[:, 2:])
    >>> whole.second.item(), parts.second.item()
    (17.5, 17.5)
    """

    count: int
    mean: Tensor
    second: Tensor
    third: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Take the moments of features `[*batch, F, draws]`, float64, two passes over them."""
        count = features.shape[-1]
        mean = features.mean(-1) if count else features.new_zeros(features.shape[:-1])
        delta = features - mean[..., None]
        pairs = delta[..., :, None, :] * delta[..., None, :, :]
        size = features.shape[-2]
        third = pairs.flatten(-3, -2) @ delta.mT
        return cls(count, mean, pairs.sum(-1), third.unflatten(-2, (size, size)))

    def __add__(self, other: "Moments") -> "Moments":
        a, b = self.count, other.count
        if a == 0 or b == 0:
            return self if b == 0 else other
        n, gap = a + b, other.mean - self.mean
        square = gap[..., :, None] * gap[..., None, :]
        third = self.third + other.third
        third = third + square[..., None] * gap[..., None, None, :] * (a * b / n * (a - b) / n)
        spread = (a / n) * other.second - (b / n) * self.second
        crossed = spread[..., None] * gap[..., None, None, :]
        third = third + crossed + crossed.transpose(-1, -2) + crossed.transpose(-1, -3)
        return Moments(
            n,
            (a / n) * self.mean + (b / n) * other.mean,
            self.second + other.second + square * (a * b / n),
            third,
        )

    def scaled(self, factor: Tensor) -> "Moments":
        """Return the moments of `factor · features`, factor `[*batch]`."""
        one, two = factor[..., None], factor[..., None, None]
        return Moments(
            self.count, self.mean * one, self.second * two**2, self.third * two[..., None] ** 3
        )

    def sums(self, form: Tensor) -> tuple[Tensor, Tensor]:
        """Return `Σ δ²` and `Σ δ³` of the linear form `[*batch, F]`, each `[*batch]`."""
        second = torch.einsum("...ij,...i,...j->...", self.second, form, form)
        return second, torch.einsum("...ijk,...i,...j,...k->...", self.third, form, form, form)
