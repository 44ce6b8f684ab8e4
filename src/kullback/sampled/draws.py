"""One piece of draws in hand: its features and its extremes. See `forms` for the columns."""

from typing import NamedTuple

import torch
from torch import Tensor

from .forms import WEIGHT
from .tails import Tails
from .terms import bregman_together

__all__ = ["Draws"]


class Draws(NamedTuple):
    """log r, log weights, and a tuple of control variates, each `[*batch, draws]` in float64.

    scale: `[*batch]`, the log of what the weights are divided by.
    """

    log_r: Tensor
    log_weights: Tensor | None
    controls: tuple[Tensor, ...]
    scale: Tensor

    def features(self) -> Tensor:
        """Return the features `[*batch, F, draws]`."""
        weighted = self.log_weights is not None
        rows, (*batch, draws) = WEIGHT + weighted + len(self.controls), self.log_r.shape
        found = self.log_r.new_empty(*batch, rows, draws)
        found[..., 0, :] = self.log_r
        found[..., 1, :] = bregman_together(self.log_r)
        found[..., 2, :] = (0.5 * self.log_r).mul_(self.log_r)
        for row, control in enumerate(self.controls, WEIGHT + weighted):
            found[..., row, :] = control
        if self.log_weights is not None:
            weight = (self.log_weights - self.scale[..., None]).exp()[..., None, :]
            found[..., WEIGHT, :] = 1.0
            found = torch.where(weight == 0, 0.0, weight * found)
        return found

    def into(self, tails: Tails, features: Tensor) -> Tails:
        """Return the tails with these draws, whose features are at hand, among them."""
        keys, draws = self._keys(), self.log_r.shape[-1]
        if self.log_r.dim() > 1 or not tails.full:
            places = torch.arange(draws, device=self.log_r.device)
            return tails + Tails.of(torch.stack(keys, -2), places, features, draws)
        places = tails.open_to(keys)
        if not len(places):
            return tails.passing(draws)
        entering = torch.stack([key[places] for key in keys])
        return tails + Tails.of(entering, places, features[:, places], draws)

    def _keys(self) -> list[Tensor]:
        """Return by what a draw is extreme: log r, −log r; weighted: w r, −w log r, w, in logs."""
        if self.log_weights is None:
            return [self.log_r, -self.log_r]
        down = self.log_weights + (-self.log_r).clamp_min(0.0).log()
        return [self.log_weights + self.log_r, down, self.log_weights]
