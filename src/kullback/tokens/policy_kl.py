"""What a policy loss returns: the loss, the divergence with its error bar, and what was done to it.

Everything but the loss is worked out when it is asked for, so a training step pays for none of it.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.sampled import effective_sample_size
from kullback.sampled.forms import WEIGHT
from kullback.sampled.terms import Estimator, coefficients

from .drawn import DIRECTIONS, Drawn
from .normalising import NORMALISATIONS
from .over_sequences import estimate_over, mean_over

__all__ = ["PolicyKL", "TrustRegion"]


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
    limits: tuple[float, float] | None = None  # of a trust region, in logs

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
        step, (low, high) = self.drawn.log_step, self.limits  # 0 where masked: inside
        return TrustRegion(int((step < low).sum()), int((step > high).sum()), self.tokens)

    @property
    def share_truncated(self) -> float:
        """The share of tokens whose weight was cut; 0 without `truncate`."""
        weight = self.drawn.uncut().weight
        if weight is None or self.drawn.truncate is None:
            return 0.0
        cut = weight > self.drawn.truncate
        cut = cut if self.drawn.mask is None else cut & self.drawn.mask
        return int(cut.sum()) / max(self.tokens, 1)

    @property
    def effective_sample_size(self) -> float:
        """Kong's `(Σ w)² / Σ w²` of the weights used, between 1 and the number of weights.

        Of tokens; at level "sequence" of whole sequences, each by its last weight.
        """
        weight, whole = self.drawn.weight, self.drawn.level == "sequence"
        if weight is None:
            return float(self.sequences if whole else self.tokens)
        logs, mask = weight.double().log(), self.drawn.mask
        if whole:  # masked tokens leave a cumulated weight as it is: the last place holds the whole
            logs = logs[:, -1][self._lengths > 0]
        elif mask is not None:
            logs = logs[mask]
        return float(effective_sample_size(logs.flatten())) if logs.numel() else 0.0

    def estimate(self, estimator: Estimator | None = None) -> Estimate:
        """Estimate the divergence with an error bar over sequences, which are the draws.

        estimator: "k1", "k2", "k3", a number λ, "best" (the λ of least variance, cross-fitted over
        sequences; with an exact KL also the best multiple of `Σ (k1 − exact)`, MATH 5.5, 5.7), or
        "exact" (the exact KL at the drawn prefixes); None for the loss's own. Errors: `ValueError`
        below 2 sequences (4 for "best"), for an unknown name, for "exact" where none was given.
        """
        estimator = self.estimator if estimator is None else estimator
        fewest = 4 if estimator == "best" else 2
        words = f"at least {fewest} sequences with a token that counts"
        require(self.sequences >= fewest, "log_current", words, self.sequences)
        if estimator != "exact":
            rows = torch.stack([self._sums(column) for column in self._columns()])
            return self._named(estimate_over(rows, self._kept, estimator, self.normalise))
        given = self.martingale is not None
        require(given, "estimator", "'k1', 'k2', 'k3', 'best' or a λ", "'exact' without exact_kl")
        return self._named(mean_over(self._sums(self.terms), self._kept, self.normalise))

    def truncation_bias(self) -> Estimate:
        """Estimate what truncation added to the value: the mean of `(cut weight − weight) · term`.

        Paired on the same draws, by the loss's estimator ("k3" if it is "best"); per sequence, or
        per token under "token" and "sequence_mean". 0 ± 0 without truncation. The gradient has the
        same tokens' share of bias. Errors: `ValueError` below 2 sequences.
        """
        form = coefficients("k3" if self.estimator in ("best", "exact") else self.estimator)
        change = self.drawn.value_terms(form) - self.drawn.uncut().value_terms(form)
        found = mean_over(self._sums(change), self._kept, self.normalise)
        return replace(self._named(found), bias="none", why="")

    @property
    def _lengths(self) -> Tensor:
        """How many tokens of each sequence count, `[batch]`."""
        mask, (batch, length) = self.drawn.mask, self.drawn.log_ratio.shape
        full = torch.full((batch,), length, device=self.drawn.log_ratio.device)
        return full if mask is None else mask.sum(-1)

    @property
    def _kept(self) -> Tensor:
        """The lengths of the sequences that have any, float64."""
        lengths = self._lengths
        return lengths[lengths > 0].double()

    def _columns(self) -> list[Tensor]:
        """Return the weighted features and controls of each token."""
        columns = [self.drawn.feature(column) for column in range(WEIGHT)]
        return columns if self.martingale is None else [*columns, self.martingale]

    def _sums(self, x: Tensor) -> Tensor:
        """Return the sums `[sequences]` of x `[batch, length]` over the tokens that count."""
        mask = self.drawn.mask
        x = x if mask is None else torch.where(mask, x, 0.0)
        return x[self._lengths > 0].double().sum(-1)

    def _named(self, found: Estimate) -> Estimate:
        """Give the unit, and say that truncated weights bias the value."""
        found = found * self.sequences if self.normalise == "batch" else found
        found = replace(found, unit=NORMALISATIONS[self.normalise])
        if self.share_truncated == 0.0:
            return found
        words = f"weights cut at {self.drawn.truncate:g} (see truncation_bias)"
        return replace(found, bias="unknown", why="; ".join(filter(None, (found.why, words))))
