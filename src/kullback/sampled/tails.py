"""The draws at the ends: a bounded, mergeable memory of the tails, and their Pareto shape.

Each end has a key; the draws with the largest keys are kept with all their features, up to
`KEPT`. The largest of two pieces are among the largest of each, so pieces merge without loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .pareto import fit_tail, tail_length

__all__ = ["KEPT", "Tails"]

KEPT = 513  # a tail of at most 512 above one cutoff: k̂ is then known to ±0.07


@dataclass(frozen=True, slots=True)
class Tails:
    """Keys `[*batch, ends, kept]` and features `[*batch, ends, F, kept]` of the extreme draws."""

    keys: Tensor
    rows: Tensor

    @classmethod
    def of(cls, keys: Tensor, features: Tensor) -> "Tails":
        """Keep the extremes of features `[*batch, F, draws]` by keys `[*batch, ends, draws]`."""
        rows = features[..., None, :, :].expand(*keys.shape[:-1], *features.shape[-2:])
        return cls(keys, rows)._cut()

    @classmethod
    def none(cls) -> "Tails":
        """Return the tails of no draws at all, what a sum starts from."""
        return cls(torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64))

    @property
    def full(self) -> bool:
        """Whether something has to leave for every draw that enters."""
        return self.keys.shape[-1] == KEPT

    def places(self, keys: Tensor) -> Tensor:
        """Return the places of those draws, by keys `[ends, draws]`, that full tails would keep."""
        if not bool((keys.amax(-1) > self.keys[..., -1]).any()):
            return torch.empty(0, dtype=torch.long, device=keys.device)
        enters = [key > own[-1] for key, own in zip(keys, self.keys, strict=True)]
        return torch.stack(enters).any(0).nonzero().squeeze(-1)

    def __add__(self, other: "Tails") -> "Tails":
        if not self.keys.numel():
            return other
        keys = torch.cat([self.keys, other.keys], -1)
        return Tails(keys, torch.cat([self.rows, other.rows], -1))._cut()

    def scaled(self, factor: Tensor) -> "Tails":
        """Return the tails of `factor · features`, factor `[*batch]`."""
        return Tails(self.keys, self.rows * factor[..., None, None, None])

    def shape(self, form: Tensor, draws: int) -> Tensor:
        """Return k̂ `[*batch]` of the linear form `[*batch, F]` on its heavier side.

        draws: how many there were in all. NaN when there are too few (25) to fit a tail.
        """
        size = min(tail_length(draws), KEPT - 1)
        if size < 5:
            return torch.full(form.shape[:-1], torch.nan, dtype=form.dtype, device=form.device)
        weights = form[..., None, :, None]
        terms = torch.where(weights == 0, 0.0, self.rows * weights).sum(-2).flatten(-2)
        both = torch.stack([terms, -terms]).sort(-1, descending=True).values
        twice = both[..., 1:] == both[..., :-1]  # a draw that is extreme at two ends
        both[..., 1:].masked_fill_(twice, -torch.inf)
        top = both.topk(size + 1, -1).values.flip(-1)
        return fit_tail(top[..., 1:] - top[..., :1])[0].nan_to_num(nan=-torch.inf).amax(0)

    def _cut(self) -> "Tails":
        keys, places = self.keys.topk(min(KEPT, self.keys.shape[-1]), -1)
        index = places[..., None, :].expand(*self.rows.shape[:-1], -1)
        return Tails(keys, self.rows.gather(-1, index))
