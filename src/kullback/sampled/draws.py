"""One piece of draws in hand: its features and its extremes. See `forms` for the columns."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .forms import WEIGHT
from .terms import bregman, bregman_together

__all__ = ["Draws"]


class Draws(NamedTuple):
    """log r, log weights, and a tuple of control variates, each `[*batch, draws]` in float64.

    scale: `[*batch]`, the log of what the weights are divided by. span: two numbers that all log r
    lie between; None in a batch.
    """

    log_r: Tensor
    log_weights: Tensor | None
    controls: tuple[Tensor, ...]
    scale: Tensor
    span: tuple[float, float] | None

    def features(self, room: Tensor | None = None) -> Tensor:
        """Return the features `[*batch, F, draws]`, in the room of an earlier piece if it fits."""
        weighted = self.log_weights is not None
        rows, (*batch, draws) = WEIGHT + weighted + len(self.controls), self.log_r.shape
        if room is None or room.shape != (*batch, rows, draws):
            room = self.log_r.new_empty(*batch, rows, draws)
        found = room
        log_r = found[..., 0, :].copy_(self.log_r)
        if self.span is None:
            found[..., 1, :] = bregman(log_r)
        else:
            bregman_together(log_r, found[..., 1, :], self.span)
        torch.mul(log_r, log_r, out=found[..., 2, :]).mul_(0.5)
        for row, control in enumerate(self.controls, WEIGHT + weighted):
            found[..., row, :] = control
        if self.log_weights is not None:
            weight = (self.log_weights - self.scale[..., None]).exp()[..., None, :]
            found[..., WEIGHT, :] = 1.0
            found = torch.where(weight == 0, 0.0, weight * found)
        return found

    def half(self, first: int) -> "Draws":
        """Return every other draw, from the first or second (0 or 1) on."""
        return self.at(slice(first, None, 2))

    def at(self, places: slice | Tensor) -> "Draws":
        """Return the draws at some places; the span stays that of all."""
        weights = None if self.log_weights is None else self.log_weights[..., places]
        controls = tuple(control[..., places] for control in self.controls)
        return self._replace(log_r=self.log_r[..., places], log_weights=weights, controls=controls)

    @classmethod
    def joined(cls, lots: Sequence["Draws"]) -> "Draws":
        """Return several lots as one."""
        log_r, weights, controls, (scale, *_), _ = zip(*lots, strict=True)
        weighted = None if weights[0] is None else torch.cat(weights, -1)
        others = tuple(torch.cat(each, -1) for each in zip(*controls, strict=True))
        return cls(torch.cat(log_r, -1), weighted, others, scale, None)

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
