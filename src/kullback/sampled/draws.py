"""One piece of draws in hand: its features and its extremes. See `forms` for the columns."""

from typing import NamedTuple

import torch
from torch import Tensor

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
        columns = [self.log_r, bregman_together(self.log_r), 0.5 * self.log_r * self.log_r]
        if self.log_weights is None:
            return torch.stack([*columns, *self.controls], -2)
        weight = (self.log_weights - self.scale[..., None]).exp()
        columns = [*columns, torch.ones_like(weight), *self.controls]
        return torch.stack([torch.where(weight == 0, 0.0, weight * c) for c in columns], -2)

    def into(self, tails: Tails, features: Tensor) -> Tails:
        """Return the tails with these draws, whose features are at hand, among them."""
        keys = self._keys()
        if keys.dim() > 2 or not tails.full:
            return tails + Tails.of(keys, features)
        places = tails.places(keys)
        return tails + Tails.of(keys[:, places], features[:, places]) if len(places) else tails

    def _keys(self) -> Tensor:
        """Return by what a draw is extreme: log r, −log r; weighted: w r, −w log r, w, in logs."""
        if self.log_weights is None:
            return torch.stack([self.log_r, -self.log_r], -2)
        down = self.log_weights + (-self.log_r).clamp_min(0.0).log()
        return torch.stack([self.log_weights + self.log_r, down, self.log_weights], -2)
