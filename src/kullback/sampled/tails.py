"""The draws at the ends: a bounded, mergeable memory of the tails, and what they tell.

Each end has a key; the draws with the largest keys are kept with all their features, up to
`KEPT`. The largest of two pieces are among the largest of each, so pieces merge without loss.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .pareto import fit_tail, tail_length

__all__ = ["KEPT", "Tails"]

KEPT = 513  # a tail of at most 512 above one cutoff: k̂ is then known to ±0.07


@dataclass(frozen=True, slots=True)
class Tails:
    """Keys and places `[*batch, ends, kept]` and features `[*batch, ends, F, kept]` at the ends.

    draws: how many have been seen; places number them, so that one kept at two ends counts once.
    """

    keys: Tensor
    places: Tensor
    rows: Tensor
    draws: int

    @classmethod
    def none(cls) -> "Tails":
        """Return the tails of no draws at all, what a sum starts from."""
        empty = torch.empty(0)
        return cls(empty, empty, empty, 0)

    @classmethod
    def of(cls, keys: Tensor, places: Tensor, features: Tensor, draws: int) -> "Tails":
        """Keep the extremes of features `[*batch, F, some]` by keys `[*batch, ends, some]`.

        places: `[some]`, where they stand among the `draws` of their piece.
        """
        rows = features[..., None, :, :].expand(*keys.shape[:-1], *features.shape[-2:])
        return cls(keys, places.expand(keys.shape), rows, draws)._cut()

    @property
    def full(self) -> bool:
        """Whether something has to leave for every draw that enters."""
        return self.draws > 0 and self.keys.shape[-1] == KEPT

    @property
    def least(self) -> list[float]:
        """The least key kept at each end, of tails without a batch."""
        least: list[float] = self.keys[:, -1].tolist()
        return least

    def __add__(self, other: "Tails") -> "Tails":
        if not (self.draws and other.draws):
            return other if other.draws else self
        return Tails(
            torch.cat([self.keys, other.keys], -1),
            torch.cat([self.places, other.places + self.draws], -1),
            torch.cat([self.rows, other.rows], -1),
            self.draws + other.draws,
        )._cut()

    def scaled(self, factor: Tensor) -> "Tails":
        """Return the tails of `factor · features`, factor `[*batch]`."""
        return replace(self, rows=self.rows * factor[..., None, None, None])

    def terms(self, form: Tensor) -> Tensor:
        """Return the kept values of a linear form `[*batch, F]`, each draw once, others NaN."""
        weights = form[..., None, :, None]
        terms = torch.where(weights == 0, 0.0, self.rows * weights).sum(-2).flatten(-2)
        places, order = self.places.flatten(-2).sort(-1)
        terms = terms.gather(-1, order)
        terms[..., 1:].masked_fill_(places[..., 1:] == places[..., :-1], math.nan)
        return terms

    def skewness(self, form: Tensor, mean: Tensor, squares: Tensor) -> Tensor:
        """Return the skewness of the mean of a form, `Σ δ³ / (Σ δ²)^{3/2}`, `[*batch]`.

        mean, squares: of the form over all draws. The sum runs over the draws kept, all of them
        up to 513 and 513 at each end of more, which leaves out at most (the deviation at the last
        draw kept) / √(Σ δ²), 0.02 in practice.
        """
        cubes = ((self.terms(form) - mean[..., None]) ** 3).nansum(-1)
        return torch.where(squares > 0, cubes / squares**1.5, 0.0)

    def shape(self, end: int, *, power: float = 1.0, log: bool = False) -> Tensor:
        """Return k̂ `[*batch]` at one end of exp(key), or of the key itself (`log`).

        Of that to a power, of a key where it is above 0; NaN below 25 draws.
        """
        size = min(tail_length(self.draws), KEPT - 1)
        if size < 5:
            nan = torch.nan
            return torch.full(self.keys.shape[:-2], nan, dtype=torch.float64).to(self.keys.device)
        top = self.keys[..., end, : size + 1].flip(-1)
        if log and power == 1:  # no cut at 0: with few above it the zeros would pass for a tail
            cutoff = torch.where(top[..., :1] > -math.inf, top[..., :1], 0.0)
            return fit_tail((top[..., 1:] - cutoff).clamp_min(0.0))[0]
        top = power * (top.clamp_min(0.0).log() if log else top)
        cutoff, above, largest = top[..., :1], top[..., 1:], top[..., -1:]
        excess = -torch.expm1(cutoff - above) * torch.exp(above - largest)
        level = (above == cutoff) | (largest == -math.inf)
        return fit_tail(torch.where(level, 0.0, excess))[0]

    def _cut(self) -> "Tails":
        keys, order = self.keys.topk(min(KEPT, self.keys.shape[-1]), -1)
        rows = self.rows.gather(-1, order[..., None, :].expand(*self.rows.shape[:-1], -1))
        return Tails(keys, self.places.gather(-1, order), rows, self.draws)
