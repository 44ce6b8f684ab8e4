"""Lots of draws on their way into the tails: most have none that enters, and are not looked at."""

import math
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from .draws import Draws
from .tails import Tails

__all__ = ["Entrants"]

_LESS = 1 - 1e-12  # so that the rounding of a logarithm shuts nobody out


class Entrants:
    """The tails of one piece's draws, seen lot by lot; `joined()` are those at its end.

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
        """Return the tails with all draws seen among them."""
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
