"""Tests that importance weights and ratios have the mean 1 that they must have.

For tokens drawn from μ, `E[π/μ] = 1` at every prefix, and on-policy `E[π_ref/π] = 1`: over the
tokens of a sequence the differences from 1 are a martingale, uncorrelated although tokens are not
independent. A mean that is off says that the tokens were not drawn from what was scored as μ (a
truncated sampler, another temperature, a shifted column), and then weights and k3 are biased.

Which to use: nothing here directly. `PolicyKL.weight_identity` and `PolicyKL.ratio_identity` give
the test itself (`kullback.sampled.Identity`), which `tested` makes; `UnitSums.odd` is the quick
look that every loss takes first, and `report` warns or raises.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, require
from kullback.core.checks import message
from kullback.sampled import Identity, ratio_identity, weight_identity
from kullback.sampled.identity import half_ulps

from . import limits
from .arguments import InputWarning
from .drawn import Drawn

__all__ = ["UnitSums", "check_on_mismatch", "mismatch", "report", "tested"]


class UnitSums(NamedTuple):
    """Sums over the tokens that count of x − 1, x being what has mean 1.

    gap, square: Σ (x − 1) and Σ (x − 1)². by_sequence: Σ over sequences of their squared
    Σ (x − 1). log_square: Σ log² x.
    """

    tokens: float
    sequences: float
    gap: float
    square: float
    by_sequence: float
    log_square: float

    @classmethod
    def of(cls, log_x: Tensor, mask: Tensor | None) -> "UnitSums":
        """Sum over log x `[batch, length]`, 0 where masked.

        >>> round(UnitSums.of(torch.tensor([[0.5, 1.75]]).log(), None).gap, 4)
        0.25
        """
        less_one = torch.expm1(log_x.double())
        rows = less_one.sum(-1)
        sums = (rows, less_one.square(), rows.square(), log_x.double().square())
        sizes = [torch.tensor(log_x.numel()), torch.tensor(len(log_x))]
        if mask is not None:
            sizes = [mask.sum(), mask.any(-1).sum()]
        found = [size.to(log_x.device, torch.float64) for size in sizes]
        return cls(*torch.stack([*found, *(part.sum() for part in sums)]).tolist())

    @property
    def odd(self) -> bool:
        """Say whether the mean is far from 1, for these many tokens and this scatter.

        The statistic is the self-normalised Σ(x−1)/√Σ(x−1)², with the scatter between sequences if
        that is larger. A mean below 1 counts only where the logs scatter little: from a standard
        deviation of 1.5 on, the mean of lognormal weights is mostly far below 1.

        >>> UnitSums(1000, 250, -100.0, 12.5, 40.0, 12.5).odd
        True
        """
        if not self.tokens or not math.isfinite(self.square):
            return False
        between = self.by_sequence - self.gap**2 / max(self.sequences, 1)
        error = math.sqrt(max(self.square, between))
        off = abs(self.gap) > limits.MEAN_GAP * self.tokens
        off = off and abs(self.gap) > limits.MEAN_ERRORS * error
        heavy = self.log_square > limits.HEAVY_LOGS**2 * self.tokens
        return off and (self.gap > 0 or not heavy)


def check_on_mismatch(on_mismatch: str) -> None:
    """Require one of the three words.

    >>> check_on_mismatch("warn")
    """
    known = on_mismatch in ("warn", "raise", "ignore")
    require(known, "on_mismatch", "'warn', 'raise' or 'ignore'", repr(on_mismatch))


def tested(drawn: Drawn, logs: list[Tensor], *, ratio: bool = False) -> list[Identity]:
    """Test that weights p/μ have mean 1, or with `ratio` that q/μ has: over tokens, then sequences.

    logs: the log-probabilities that `drawn` was made of, for their rounding. Sequences are tested
    at level "sequence", where their weights are used. Empty where p = μ and so every weight is 1.
    """
    log_x, mask = _log_unit(drawn, ratio=ratio), drawn.mask
    if log_x is None:
        return []
    off = torch.stack([half_ulps(x if mask is None else x.where(mask, 0.0)) for x in logs]).sum(0)
    live = torch.ones_like(log_x, dtype=torch.bool) if mask is None else mask
    if ratio:
        zeros = torch.zeros_like(log_x[live])
        return [ratio_identity(zeros, log_x[live], rounding=off[live])]
    found = [weight_identity(log_x[live], rounding=off[live])]
    if drawn.level == "sequence" and drawn.log_weight is not None:
        there = live.any(-1)
        whole = drawn.log_weight[there][:, -1]
        found.append(weight_identity(whole, rounding=off.sum(-1)[there]))
    return found


def mismatch(drawn: Drawn, logs: list[Tensor], *, ratio: bool = False) -> str:
    """Return why a mean that must be 1 is not, in words; "" where draws leave it standing.

    The quick look comes first: a mean nearer to 1 than `MEAN_GAP` does not matter.
    """
    log_x = _log_unit(drawn, ratio=ratio)
    if log_x is None or log_x.numel() <= limits.MEAN_ERRORS**2:  # no gap can be that many errors
        return ""
    odd = UnitSums.of(log_x, drawn.mask).odd
    if not odd and not ratio and drawn.level == "sequence" and drawn.log_weight is not None:
        there = None if drawn.mask is None else drawn.mask.any(-1, keepdim=True)
        odd = UnitSums.of(drawn.log_weight[:, -1:], there).odd
    reasons = [test.reason for test in tested(drawn, logs, ratio=ratio)] if odd else []
    return next(filter(None, reasons), "")


def report(reason: str, name: str, on_mismatch: str) -> None:
    """Warn of a mean that is not 1, or raise."""
    if not reason or on_mismatch == "ignore":
        return
    if on_mismatch == "raise":
        hint = "on_mismatch='warn' to go on; the estimate then has no standard error"
        raise ArgumentValueError(message(name, "draws whose mean ratio is 1", reason, hint))
    warnings.warn(f"{name}: {reason}", InputWarning, stacklevel=3)  # the caller of the loss


def _log_unit(drawn: Drawn, *, ratio: bool) -> Tensor | None:
    """Return the log of what has mean 1, of each token, 0 where masked; None where it is 1."""
    own = drawn.log_own_weight
    if not ratio:
        return own
    log_x = drawn.log_ratio if own is None else drawn.log_ratio + own
    return None if own is not None and drawn.log_step is None else log_x  # forward: q = μ
