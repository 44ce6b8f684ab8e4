"""What a policy loss returns: the loss, the divergence with its error bar, and what was done to it.

Everything but the loss is worked out when it is asked for, so a training step pays for none of it.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.sampled import LogRatios, effective_sample_size, trust
from kullback.sampled.forms import WEIGHT
from kullback.sampled.moments import Moments
from kullback.sampled.tails import Tails
from kullback.sampled.terms import Estimator, coefficients

from .drawn import DIRECTIONS, Drawn
from .normalising import NORMALISATIONS

__all__ = ["PolicyKL", "TrustRegion", "ratios_of_rows"]


class TrustRegion(NamedTuple):
    """How often a trust region took a token's gradient away: its ratio π/μ was below or above.

    >>> TrustRegion(below=1, above=2, tokens=12).share
    0.25
    """

    below: int
    above: int
    tokens: int

    @property
    def share(self) -> float:
        """The share of tokens that it acted on."""
        return (self.below + self.above) / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class PolicyKL:
    """The loss `[]` to call `backward` on, and reports about the draws it came from.

    loss: its value estimates, and its gradient descends, the divergence that `divergence` names;
        the only thing here with a graph.
    estimate(): the same divergence with an error bar over sequences, by any estimator.
    terms: detached per-token terms of the value `[batch, length]`, 0 where masked, not normalised.
    effective_sample_size, share_truncated, truncation_bias(): what importance weights did.
    trust_region: how often one acted; None without one.

    It keeps the log-ratios, so let it go after logging.
    """

    loss: Tensor
    drawn: Drawn
    terms: Tensor
    normalise: str
    estimator: Estimator
    martingale: Tensor | None = None
    limits: tuple[float, float] | None = None

    @property
    def divergence(self) -> str:
        """Say in words what the loss is the divergence of."""
        whole = self.drawn.level == "sequence"
        where = "of whole sequences" if whole else "of each token, at the prefixes drawn"
        return f"{DIRECTIONS[self.drawn.direction]} {where}, {NORMALISATIONS[self.normalise]}"

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self._lengths.sum())

    @property
    def sequences(self) -> int:
        """How many sequences have a token that counts."""
        return int((self._lengths > 0).sum())

    @property
    def trust_region(self) -> TrustRegion | None:
        """How often the trust region acted; None without one."""
        if self.limits is None or self.drawn.log_step is None:
            return None
        ratio, tokens = self.drawn.log_step.exp(), self.tokens  # masked tokens have ratio 1, inside
        below, above = (ratio < self.limits[0]).sum(), (ratio > self.limits[1]).sum()
        return TrustRegion(int(below), int(above), tokens)

    @property
    def share_truncated(self) -> float:
        """The share of tokens whose weight was cut; 0 without `truncate`."""
        weight = self.drawn.weight(truncated=False)
        if weight is None or self.drawn.truncate is None:
            return 0.0
        return int((self._counted(weight) > self.drawn.truncate).sum()) / max(self.tokens, 1)

    @property
    def effective_sample_size(self) -> float:
        """Kong's `(Σ w)² / Σ w²` of the weights used: of tokens, or at level "sequence" of the whole
        sequences' (the last weight of each). On-policy the number of tokens or sequences.
        """
        weight = self.drawn.weight()
        whole = self.drawn.level == "sequence"
        if weight is None:
            return float(self.sequences if whole else self.tokens)
        # masked tokens add log 0 to a cumulated weight, so the last place holds the whole one
        logs = weight.double().log()
        kept = logs[:, -1][self._lengths > 0] if whole else logs.flatten()[self._flat()]
        return float(effective_sample_size(kept)) if kept.numel() else 0.0

    def estimate(self, estimator: Estimator | None = None) -> Estimate:
        """Estimate the divergence with an error bar over sequences, which are the draws.

        estimator: "k1", "k2", "k3", a number λ, "best" (the λ of least variance, cross-fitted over
        sequences; with an exact KL also the best multiple of `Σ (k1 − exact)`, MATH 5.5, 5.7), or
        "exact" (the exact KL at the drawn prefixes); None for the loss's own. Errors: `ValueError`
        below 2 sequences (4 for "best"), for an unknown name, for "exact" where none was given.
        """
        estimator = self.estimator if estimator is None else estimator
        kept = self._lengths > 0
        lengths = self._lengths[kept].double()
        if estimator == "exact":
            given = self.martingale is not None
            require(given, "estimator", "'k1', 'k2', 'k3', 'best' or λ", "'exact' without exact_kl")
            found = self._mean(self.terms[kept].double().sum(-1), lengths)
        else:
            if estimator != "best":
                coefficients(estimator)
            rows = self._columns(kept)
            ratio = self._ratio(lengths)
            rows = rows / lengths if self._per_token and not ratio else rows
            state = ratios_of_rows(rows, lengths / lengths.mean() if ratio else None)
            found = state.estimate(estimator, self_normalise=ratio)
            found = found / float(lengths.mean()) if ratio else found
        return self._named(found, int(kept.sum()))

    def truncation_bias(self) -> Estimate:
        """Estimate what truncation added to the value: the mean of `(cut weight − weight) · term`.

        Paired on the same draws, by the loss's estimator ("k3" if it is "best"); per sequence, or
        per token under "token" and "sequence_mean". 0 ± 0 without truncation. The gradient has the
        same tokens' share of bias. Errors: `ValueError` below 2 sequences.
        """
        form = coefficients("k3" if self.estimator in ("best", "exact") else self.estimator)
        plain = self.drawn._replace(truncate=None)
        change = self._counted(self.drawn.value_terms(form) - plain.value_terms(form), 0.0)
        kept = self._lengths > 0
        found = self._mean(change[kept].double().sum(-1), self._lengths[kept].double())
        return replace(self._named(found, int(kept.sum())), bias="none", why="")

    @property
    def _lengths(self) -> Tensor:
        mask, (batch, length) = self.drawn.mask, self.drawn.log_ratio.shape
        full = torch.full((batch,), length, device=self.drawn.log_ratio.device)
        return full if mask is None else mask.sum(-1)

    @property
    def _per_token(self) -> bool:
        return self.normalise in ("token", "sequence_mean")

    def _ratio(self, lengths: Tensor) -> bool:
        return self.normalise == "token" and not bool((lengths == lengths[:1]).all())

    def _counted(self, x: Tensor, instead: float = 0.0) -> Tensor:
        return x if self.drawn.mask is None else torch.where(self.drawn.mask, x, instead)

    def _flat(self) -> Tensor:
        mask = self.drawn.mask
        return (
            torch.ones_like(self.terms, dtype=torch.bool).flatten()
            if mask is None
            else mask.flatten()
        )

    def _columns(self, kept: Tensor) -> Tensor:
        """Return each sequence's sums `[F, sequences]` of the weighted features and controls."""
        weight = self.drawn.weight()
        columns = [self.drawn.feature(column, weight) for column in range(WEIGHT)]
        columns += [] if self.martingale is None else [self.martingale]
        return torch.stack([self._counted(column)[kept].double().sum(-1) for column in columns])

    def _mean(self, rows: Tensor, lengths: Tensor) -> Estimate:
        require(len(rows) >= 2, "mask", "at least 2 sequences with tokens that count", len(rows))
        if self._ratio(lengths):
            value = rows.sum() / lengths.sum()
            influence, why = (rows - value * lengths) / lengths.mean(), "a ratio of two means"
        else:
            rows = rows / lengths if self._per_token else rows
            value = rows.mean()
            influence, why = rows - value, ""
        error, doubts, k_hat = trust.mean_of(influence, value)
        bias = "unknown" if why else "none"
        return trust.judged(value, error, len(rows), k_hat, doubts, bias, why)

    def _named(self, found: Estimate, sequences: int) -> Estimate:
        """Give the unit, and say that truncated weights bias the value."""
        found = found * sequences if self.normalise == "batch" else found
        found = replace(found, unit=NORMALISATIONS[self.normalise])
        if self.share_truncated == 0.0:
            return found
        words = f"weights cut at {self.drawn.truncate:g} (see truncation_bias)"
        return replace(found, bias="unknown", why="; ".join(filter(None, (found.why, words))))


def ratios_of_rows(rows: Tensor, lengths: Tensor | None = None) -> LogRatios:
    """Return the state of draws whose features are sums over a sequence, `[F, sequences]`.

    rows: sums of `log r`, `r − 1 − log r`, `½ log² r`, then controls. lengths: what to divide the
    mean by, `[sequences]`, where it is a ratio.
    """
    rows = rows if lengths is None else torch.cat([rows[:WEIGHT], lengths[None], rows[WEIGHT:]])
    places = torch.arange(rows.shape[-1], device=rows.device)
    keys = torch.stack([rows[0], -rows[0], rows[1]])
    halves = Moments.of(rows[:, ::2]), Moments.of(rows[:, 1::2])
    tails, zero = Tails.of(keys, places, rows, rows.shape[-1]), rows.new_zeros(())
    return LogRatios(halves, tails, zero, zero, lengths is not None)
