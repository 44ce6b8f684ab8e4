"""Joint means and covariances of any number of features, that merge without loss.

`Moments.of(features)` looks at one piece of draws; `a + b` is the state of both pieces together
(Chan, Golub and LeVeque 1979), as if they had been seen at once. Everything is kept about the
mean, in float64, so a billion draws lose no more digits than a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean `[*batch, F]` and central sums `Σ δ δᵀ` `[*batch, F, F]` of F features of draws.

    >>> piece = torch.arange(6.0, dtype=torch.float64).reshape(1, 6)
    >>> whole, parts = Moments.of(piece), Moments.of(piece[:, :2]) + Moments.of(piece[:, 2:])
    >>> whole.second.item(), parts.second.item()
    (17.5, 17.5)
    """

    count: int
    mean: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Take the moments of features `[*batch, F, draws]`, float64, in two passes over them."""
        return cls.using_up(features.clone())

    @classmethod
    def using_up(cls, features: Tensor) -> "Moments":
        """Do as `of` in the features' own memory, which is several times faster and spoils them."""
        mean = features.mean(-1) if features.shape[-1] else features.sum(-1)
        features.sub_(mean[..., None])
        return cls(features.shape[-1], mean, features @ features.mT)

    @classmethod
    def merged(cls, pieces: Sequence["Moments"]) -> "Moments":
        """Merge pieces: their sums, and what the distances between their means add to them."""
        pieces = [piece for piece in pieces if piece.count] or list(pieces[:1])
        means = torch.stack([piece.mean for piece in pieces])
        total = sum(piece.count for piece in pieces)
        count = torch.tensor([piece.count for piece in pieces]).to(means)
        count = count.reshape(-1, *[1] * (means.dim() - 1))
        mean = (count / max(total, 1) * means).sum(0)
        gap = means - mean
        between = (count * gap)[..., :, None] * gap[..., None, :]
        within = torch.stack([piece.second for piece in pieces])
        return cls(total, mean, (within + between).sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments.merged([self, other])

    def scaled(self, factor: Tensor) -> "Moments":
        """Return the moments of `factor · features`, factor `[*batch]`."""
        second = self.second * (factor**2)[..., None, None]
        return Moments(self.count, self.mean * factor[..., None], second)

    def at(self, form: Tensor) -> Tensor:
        """Return the mean `[*batch]` of the linear form `[*batch, F]`.

        A feature with coefficient 0 plays no part, even where it is infinite.
        """
        return torch.where(form == 0, 0.0, self.mean * form).sum(-1)

    def squares(self, form: Tensor) -> Tensor:
        """Return `Σ δ²` of the linear form, `[*batch]`; zeros as in `at`."""
        pair = form[..., :, None] * form[..., None, :]
        return torch.where(pair == 0, 0.0, self.second * pair).sum((-2, -1))
