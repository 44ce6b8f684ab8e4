"""One piece of draws in hand: its features and its extremes. See `forms` for the columns."""

import math
from collections.abc import Callable
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

    def features(self, room: Tensor | None = None) -> Tensor:
        """Return the features `[*batch, F, draws]`, in the room of an earlier piece if it fits."""
        weighted = self.log_weights is not None
        rows, (*batch, draws) = WEIGHT + weighted + len(self.controls), self.log_r.shape
        if room is None or room.shape != (*batch, rows, draws):
            room = self.log_r.new_empty(*batch, rows, draws)
        found = room
        found[..., 0, :] = self.log_r
        bregman_together(self.log_r, found[..., 1, :])
        torch.mul(self.log_r, self.log_r, out=found[..., 2, :]).mul_(0.5)
        for row, control in enumerate(self.controls, WEIGHT + weighted):
            found[..., row, :] = control
        if self.log_weights is not None:
            weight = (self.log_weights - self.scale[..., None]).exp()[..., None, :]
            found[..., WEIGHT, :] = 1.0
            found = torch.where(weight == 0, 0.0, weight * found)
        return found

    def half(self, first: int) -> "Draws":
        """Return every other draw from the first or second (0 or 1) on, side by side in memory."""
        return self._map(lambda x: x[..., first::2].contiguous())

    def into(self, tails: Tails) -> Tails:
        """Return the tails with these draws among them."""
        draws = self.log_r.shape[-1]
        if self.log_r.dim() > 1 or not tails.full:
            places = torch.arange(draws, device=self.log_r.device)
            return tails + Tails.of(torch.stack(self.keys(), -2), places, self.features(), draws)
        places = self._entering(tails)
        if not len(places):
            return tails.passing(draws)
        some = self._map(lambda x: x[places])
        return tails + Tails.of(torch.stack(some.keys()), places, some.features(), draws)

    def _entering(self, tails: Tails) -> Tensor:
        """Return the places of those that full tails may keep; no logarithm of every draw."""
        if self.log_weights is not None:
            return tails.open_to(self.keys())
        ends = tails.keys[:, -1].exp() * (1 - 1e-12)  # so that rounding shuts nobody out
        ends[1] = tails.keys[1, -1]
        sizes = [-self.log_r, self.log_r, *(control.abs() for control in self.controls)]
        return tails.open_to(sizes, ends.tolist())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        weights = None if self.log_weights is None else change(self.log_weights)
        return Draws(change(self.log_r), weights, tuple(map(change, self.controls)), self.scale)

    def keys(self) -> list[Tensor]:
        """Return by what a draw is extreme, in logs: −log r, r, the weight, each |control|.

        Where draws are weighted all are times the weight. A control's column in the features is
        one after its place here, as is the weight's.
        """
        keys = [(-self.log_r).clamp_min(0.0).log(), self.log_r]
        if self.log_weights is not None:
            keys.append(torch.zeros_like(self.log_r))
        keys += [control.abs().log() for control in self.controls]
        if self.log_weights is None:
            return keys
        none = self.log_weights == -math.inf
        return [torch.where(none, -math.inf, self.log_weights + key) for key in keys]
