"""Tests that importance weights and ratios have the mean 1 that they must have.

For tokens drawn from μ, `E[π/μ] = 1` at every prefix, and on-policy `E[π_ref/π] = 1`: over the
tokens of a sequence the differences from 1 are a martingale, uncorrelated although tokens are not
independent. A mean that is off says that the tokens were not drawn from what was scored as μ (a
truncated sampler, another temperature, a shifted column), and then weights and k3 are biased.

Which to use: nothing here directly. `PolicyKL.weight_identity` and `PolicyKL.ratio_identity` give
the test itself (`kullback.sampled.Identity`), which `tested` makes; `UnitSums.odd` is the quick
look that every loss takes first, and `report` warns or raises. `refuse_infinite` says where a loss
or penalty is not finite, by which values, and what to do about it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, message, require, warn_caller
from kullback.sampled import Identity, half_ulps, ratio_identity, weight_identity
from kullback.tokens import limits
from kullback.tokens.divergences.logits import InputWarning

from .sampled_tokens import NAMES, Drawn

__all__ = ["UnitSums", "mismatch", "refuse_infinite", "report", "tested"]


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
        return cls._make(torch.stack([*found, *(part.sum() for part in sums)]).tolist())

    @property
    def odd(self) -> bool:
        """Say whether the mean weight is far from 1, for these many tokens and this scatter.

        The statistic is the self-normalised Σ(x−1)/√Σ(x−1)², with the scatter between sequences if
        that is larger. A mean below 1 counts only where the logs scatter little: from a standard
        deviation of 1.5 on, the mean of lognormal weights is mostly far below 1.

        >>> UnitSums(1000, 250, -100.0, 12.5, 40.0, 12.5).odd
        True
        """
        return self._beyond(limits.MEAN_GAP)

    @property
    def odd_ratio(self) -> bool:
        """Say the same of the mean of r = q/p, where a smaller gap matters.

        k3 is off by the gap itself, in nats a token, and a divergence may be less than that.

        >>> UnitSums(1e5, 2e3, -50.0, 10.0, 10.0, 10.0).odd_ratio
        True
        """
        return self._beyond(limits.RATIO_GAP)

    def _beyond(self, least: float) -> bool:
        if not self.tokens or not math.isfinite(self.square):
            return False
        between = self.by_sequence - self.gap**2 / max(self.sequences, 1)
        error = math.sqrt(max(self.square, between))
        off = abs(self.gap) > least * self.tokens
        off = off and abs(self.gap) > limits.MEAN_ERRORS * error
        heavy = self.log_square > limits.HEAVY_LOGS**2 * self.tokens
        return off and (self.gap > 0 or not heavy)


def tested(drawn: Drawn, *, ratio: bool = False) -> list[Identity]:
    """Test that weights p/μ have mean 1, or with `ratio` that q/μ has: over tokens, then sequences.

    Sequences are tested at level "sequence", where their weights are used. Empty where p = μ and so
    every weight is 1.
    """
    log_x, mask = _log_unit(drawn, ratio=ratio), drawn.mask
    if log_x is None:
        return []
    given = [x if mask is None else x.where(mask, 0.0) for x in drawn.logs]
    off = torch.stack([half_ulps(x) for x in given]).sum(0)
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


def mismatch(drawn: Drawn, *, ratio: bool = False) -> str:
    """Return why a mean that must be 1 is not, in words; "" where draws leave it standing.

    The quick look comes first: a mean nearer to 1 than `MEAN_GAP`, or `RATIO_GAP`, does not matter.
    """
    log_x = _log_unit(drawn, ratio=ratio)
    if log_x is None or log_x.numel() <= limits.MEAN_ERRORS**2:  # no gap can be that many errors
        return ""
    sums = UnitSums.of(log_x, drawn.mask)
    odd = sums.odd_ratio if ratio else sums.odd
    if not odd and not ratio and drawn.level == "sequence" and drawn.log_weight is not None:
        there = None if drawn.mask is None else drawn.mask.any(-1, keepdim=True)
        odd = UnitSums.of(drawn.log_weight[:, -1:], there).odd
    reasons = [test.reason for test in tested(drawn, ratio=ratio)] if odd else []
    return next(filter(None, reasons), "")


def report(reason: str, name: str, on_mismatch: str) -> None:
    """Warn of a mean that is not 1, or raise."""
    if not reason or on_mismatch == "ignore":
        return
    if on_mismatch == "raise":
        hint = "on_mismatch='warn' to go on; the estimate then has no standard error"
        raise ArgumentValueError(message(name, "draws whose mean ratio is 1", reason, hint))
    warn_caller(f"{name}: {reason}", InputWarning)


def _log_unit(drawn: Drawn, *, ratio: bool) -> Tensor | None:
    """Return the log of what has mean 1, of each token, 0 where masked; None where it is 1."""
    own = drawn.log_own_weight
    if not ratio:
        return own
    log_x = drawn.log_ratio if own is None else drawn.log_ratio + own
    return None if own is not None and drawn.log_step is None else log_x  # forward: q = μ


def refuse_infinite(
    drawn: Drawn,
    terms: Tensor,
    slope: Tensor,
    *,
    exact_kl: Tensor | None = None,
    loss: Tensor | None = None,
) -> None:
    """Require finite terms, slopes and loss; say where, and with which values, one is not.

    terms, slope: `[batch, length]`; loss: the sum of terms, if there is one. It waits for a GPU.
    """
    total = terms.sum() if loss is None else loss.detach()
    if math.isfinite(float(total.detach() + 0 * slope.sum())):
        return
    bad = ~terms.isfinite()
    bad = bad if bool(bad.any()) else ~slope.isfinite()  # slopes hold the terms of later tokens too
    if not bool(bad.any()) and bool(total.isfinite()):
        return  # only the sum that this check takes overflows
    place = int(torch.where(bad, math.inf, terms.abs()).argmax())
    at = [place // terms.shape[1], place % terms.shape[1]]
    known = zip(NAMES, drawn.logs, strict=False)
    words = ", ".join(f"{name} = {float(log[*at].detach()):g}" for name, log in known)
    name, cause, hint = _why_infinite(drawn, at, exact_kl)
    count = f"{max(int(bad.sum()), 1)} of {bad.numel()} positions"
    got = f"{float(total):g}: at {at} ({count}) {words}, {cause}"
    require(False, name, "a loss and gradient that are finite", got, hint)  # noqa: FBT003


def _why_infinite(drawn: Drawn, at: list[int], exact_kl: Tensor | None) -> tuple[str, str, str]:
    """Return the argument, the cause and what to try, of a term that is not finite."""
    row, column = at
    keep = "missing='keep' returns it as it is"
    if exact_kl is not None and not bool(exact_kl[row, column].isfinite()):
        cause = f"exact_kl = {float(exact_kl[row, column].detach()):g}"
        return "exact_kl", cause, f"mask= to leave such positions out; {keep}"
    for name, log in zip(NAMES, drawn.logs, strict=False):
        if not bool(log[row, column].isfinite()):
            cause = "a probability of 0 at a token that was drawn"
            hint = "mask= or missing='skip' to leave such tokens out; probabilities that ban none"
            return name, cause, f"{hint}; {keep}"
    own = drawn.log_own_weight
    gap = float(drawn.log_ratio[row, column])
    aligned = "check that columns stand at the same tokens and hold no fill value (−100)"
    weight = 0.0 if drawn.log_weight is None else float(drawn.log_weight[row, column])
    if own is not None and weight > max(gap, 0.0):
        kind = "of the sequence up to there " if drawn.level == "sequence" else ""
        cause = f"and the importance weight {kind}e^{weight:.4g} overflows"
        hint = f"truncate=, which cuts weights, or level='token'; {aligned}; {keep}"
        return "log_behaviour" if len(drawn.logs) > 2 else "log_reference", cause, hint
    cause = f"and the ratio e^{gap:.4g} overflows {str(drawn.log_ratio.dtype)[6:]}"
    hint = (
        "estimator='k1', which takes no exponential (the token's own gradient is the same), "
        f"or mask= to leave the token out; {aligned}; {keep}"
    )
    return "log_current", cause, hint
