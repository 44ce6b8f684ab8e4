"""One piece of draws in hand: its features and its extremes. See `forms` for the columns.

What is remembered of draws once they have been looked at: their moments and their tails.

Lots of draws on their way into the tails: most have none that enters, and are not looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.exact import log_excess, write_log_excess

from .estimators import WEIGHT, Moments
from .tails import Tails

__all__ = ["Draws", "Entrants", "SummaryStats"]


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
            found[..., 1, :] = log_excess(log_r)
        else:
            write_log_excess(log_r, found[..., 1, :], self.span)
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


@dataclass(frozen=True, slots=True)
class SummaryStats:
    """Moments and tails of the same draws; `a + b` is what both saw together.

    >>> import torch
    >>> piece = SummaryStats(Moments.of(torch.ones(1, 6, dtype=torch.float64)), Tails.none())
    >>> (piece + piece).moments.count
    12
    """

    moments: Moments
    tails: Tails

    def __add__(self, other: "SummaryStats") -> "SummaryStats":
        return SummaryStats(self.moments + other.moments, self.tails + other.tails)

    def scaled(self, factor: Tensor) -> "SummaryStats":
        """Return those of `factor · features`, factor `[*batch]`."""
        return SummaryStats(self.moments.scaled(factor), self.tails.scaled(factor))

    def skewness(self, form: Tensor) -> Tensor:
        """Return the skewness of the mean of a form, `Σ δ³ / (Σ δ²)^{3/2}`, `[*batch]`."""
        return self.tails.skewness(form, self.moments.at(form), self.moments.squares(form))


_LESS = 1 - 1e-12  # so that the rounding of a logarithm leaves out no draw


class Entrants:
    """The tails of one piece's draws, collected lot by lot; `joined()` are those at its end.

    Full tails are added to once a piece: until then the draws that are beyond the least of those
    kept wait, which are few.
    """

    def __init__(self, tails: Tails | None = None) -> None:
        self._tails, self._passed = tails or Tails.none(), 0
        self._waiting: list[tuple[Tensor, Draws]] = []

    def see(self, draws: Draws) -> None:
        """Look at one lot."""
        count = draws.log_r.shape[-1]
        if draws.log_r.dim() > 1 or not self._tails.full:
            everywhere = torch.arange(count, device=draws.log_r.device)
            self._tails = self._tails + _tails(draws, everywhere, count)
            return
        places = self._beyond(draws)
        if places is not None:
            self._waiting.append((places + self._passed, draws.at(places)))
        self._passed += count

    def joined(self) -> Tails:
        """Return the tails of all draws."""
        if not self._waiting:
            return replace(self._tails, draws=self._tails.draws + self._passed)
        places, lots = zip(*self._waiting, strict=True)
        return self._tails + _tails(Draws.joined(lots), torch.cat(places), self._passed)

    def _beyond(self, draws: Draws) -> Tensor | None:
        """Return the places of those that the tails may keep; no logarithm of every draw."""
        least = self._tails.least
        if draws.log_weights is not None:
            return _any([key > each for key, each in zip(draws.keys(), least, strict=True)])
        sizes = self._tails.keys[:, -1].exp().mul_(_LESS).tolist()  # not for r: its log is at hand
        low, high = draws.span or (-math.inf, math.inf)
        above = [] if low >= -sizes[0] else [draws.log_r < -sizes[0]]
        above += [] if high <= least[1] else [draws.log_r > least[1]]
        above += [each.abs() > size for each, size in zip(draws.controls, sizes[2:], strict=True)]
        return _any(above)


def _tails(draws: Draws, places: Tensor, count: int) -> Tails:
    return Tails.of(torch.stack(draws.keys(), -2), places, draws.features(), count)


def _any(conditions: list[Tensor]) -> Tensor | None:
    """Return the places where any of the conditions holds; None where none can."""
    return None if not conditions else reduce(torch.logical_or, conditions).nonzero()[:, 0]
