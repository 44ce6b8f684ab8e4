"""Joint moments up to the third, of any number of features, that merge without loss.

`Moments.of(features)` looks at one piece of draws; `a + b` is the state of both pieces together
(Chan, Golub and LeVeque 1979; Pébay 2008), as if they had been seen at once. Everything is kept
about the mean, in float64, so a billion draws lose no more digits than a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

__all__ = ["Moments", "Sums", "central_sums"]


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
        """Take the moments of features `[*batch, F, draws]`, float64, in two passes over them."""
        return cls.merged([central_sums(features)])

    @classmethod
    def merged(cls, pieces: Sequence["Sums"]) -> "Moments":
        """Merge the `central_sums` of pieces; the empty ones count for nothing."""
        pieces = [piece for piece in pieces if piece.count]
        if not pieces:
            return cls(0, *[torch.empty(0, dtype=torch.float64)] * 3)
        means = torch.stack([piece.mean for piece in pieces])
        seconds = torch.stack([piece.second for piece in pieces])
        thirds = torch.stack([piece.third for piece in pieces])
        two, three = (place.to(means.device) for place in _places(means.shape[-1]))
        counts = [piece.count for piece in pieces]
        return _pooled(counts, means, seconds[..., two], thirds[..., three])

    def __add__(self, other: "Moments") -> "Moments":
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        return _pooled(
            [self.count, other.count],
            torch.stack([self.mean, other.mean]),
            torch.stack([self.second, other.second]),
            torch.stack([self.third, other.third]),
        )

    def scaled(self, factor: Tensor) -> "Moments":
        """Return the moments of `factor · features`, factor `[*batch]`."""
        one, two = factor[..., None], factor[..., None, None]
        return Moments(
            self.count, self.mean * one, self.second * two**2, self.third * two[..., None] ** 3
        )

    def sums(self, form: Tensor) -> tuple[Tensor, Tensor]:
        """Return `Σ δ²` and `Σ δ³` of the linear form `[*batch, F]`, each `[*batch]`.

        A feature with coefficient 0 plays no part, even where it is infinite.
        """
        pair = form[..., :, None] * form[..., None, :]
        second = torch.where(pair == 0, 0.0, self.second * pair).sum((-2, -1))
        cube = pair[..., None] * form[..., None, None, :]
        return second, torch.where(cube == 0, 0.0, self.third * cube).sum((-3, -2, -1))

    def at(self, form: Tensor) -> Tensor:
        """Return the mean of the linear form `[*batch, F]`, `[*batch]`; zeros as in `sums`."""
        return torch.where(form == 0, 0.0, self.mean * form).sum(-1)


@dataclass(frozen=True, slots=True)
class Sums:
    """Count, mean, and the distinct `Σ δδ` and `Σ δδδ` in lexicographic order."""

    count: int
    mean: Tensor
    second: Tensor
    third: Tensor


def central_sums(features: Tensor) -> Sums:
    """Take the sums of one piece of features `[*batch, F, draws]`, not yet spread out."""
    mean = features.mean(-1) if features.shape[-1] else features[..., 0:0].sum(-1)
    delta = features - mean[..., None]
    seconds, thirds = [], []
    for i in range(features.shape[-2]):
        for j in range(i, features.shape[-2]):
            pair = delta[..., i, :] * delta[..., j, :]
            seconds.append(pair.sum(-1))
            thirds.append(_dot(delta[..., j:, :], pair))
    return Sums(features.shape[-1], mean, torch.stack(seconds, -1), torch.cat(thirds, -1))


def _dot(rows: Tensor, column: Tensor) -> Tensor:
    one = rows.dim() == 2  # a matrix times a vector is several times faster than times a column
    return torch.mv(rows, column) if one else (rows @ column[..., None]).squeeze(-1)


def _pooled(counts: Sequence[int], means: Tensor, second: Tensor, third: Tensor) -> Moments:
    """Merge pieces stacked on the first axis: their sums, and what their means add to them."""
    total = sum(counts)
    count = torch.tensor(counts, dtype=means.dtype, device=means.device)
    count = count.reshape(-1, *[1] * (means.dim() - 1))
    mean = (count / total * means).sum(0)
    gap = means - mean
    pair = gap[..., :, None] * gap[..., None, :]
    cross = second[..., None] * gap[..., None, None, :]
    cube = pair[..., None] * gap[..., None, None, :] * count[..., None, None]
    third = third + cube + cross + cross.transpose(-1, -2) + cross.transpose(-1, -3)
    return Moments(total, mean, (second + pair * count[..., None]).sum(0), third.sum(0))


@cache
def _places(size: int) -> tuple[Tensor, Tensor]:
    """Return where each entry of the symmetric sums lies among the distinct ones, in order."""
    twos = list(combinations_with_replacement(range(size), 2))
    threes = list(combinations_with_replacement(range(size), 3))
    two = torch.empty(size, size, dtype=torch.long)
    three = torch.empty(size, size, size, dtype=torch.long)
    for i, j in product(range(size), repeat=2):
        two[i, j] = twos.index((min(i, j), max(i, j)))
    for i, j, k in product(range(size), repeat=3):
        low, middle, high = sorted((i, j, k))
        three[i, j, k] = threes.index((low, middle, high))
    return two, three
