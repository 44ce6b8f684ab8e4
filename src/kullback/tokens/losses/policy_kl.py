"""What a policy loss returns: the loss, the divergence with its error bar, and what was done to it.

Everything but the loss is worked out when it is asked for, so a training step pays for none of it.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate, describe, require, require_type
from kullback.sampled import (
    WEIGHT,
    Estimator,
    Identity,
    coefficients,
    effective_sample_size,
    half_ulps,
)
from kullback.tokens import limits

from .input_checks import mismatch, tested
from .sampled_tokens import DIRECTIONS, Drawn
from .sequence_sums import NORMALISATIONS, estimate_over, mean_over, row_scale

__all__ = ["PolicyKL", "TrustRegion"]


class TrustRegion(NamedTuple):
    """How often a trust region took a token's gradient away: its ratio π/μ was below or above.

    Example:
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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PolicyKL:
    """The loss `[]` to call `backward` on, and reports about the draws it came from.

    `policy_kl_loss` and `rao_blackwell_kl_loss` make it. `estimate()` is the same divergence with
    an error bar over sequences, by any estimator; `effective_sample_size`, `share_truncated` and
    `truncation_bias()` say what importance weights did; `weight_identity` and `ratio_identity` test
    that the draws come from what was scored as their policy. It keeps the log-probabilities and
    log-ratios, so let it go after logging.

    Attributes:
        loss: Its value estimates, and its gradient descends, the divergence that `divergence`
            names; the only thing here with a graph.
        drawn: The tokens' log-ratios and weights, without a graph.
        terms: The value's terms `[batch, length]`, 0 where masked, not normalised, no graph.
        normalise: What the sum over tokens is divided by (`sequence_sums`).
        estimator: The one the value is by, or "exact".
        martingale: k1's terms less exact KLs, `[batch, length]`, of mean zero; None without them.
        log_limits: The ends of a trust region, in logs.

    Example:
        >>> from kullback.tokens import policy_kl_loss
        >>> logs = {"log_current": torch.tensor([[-1.0], [-2.0], [-1.5], [-0.5]])}
        >>> logs["log_reference"] = torch.tensor([[-1.1], [-1.8], [-1.6], [-0.4]])
        >>> found = policy_kl_loss(**logs)
        >>> found.estimate("k1").unit, found.sequences
        ('nats/sequence', 4)
    """

    loss: Tensor
    drawn: Drawn
    terms: Tensor
    normalise: str
    estimator: Estimator
    martingale: Tensor | None = None
    log_limits: tuple[float, float] | None = None  # of a trust region, in logs

    def __repr__(self) -> str:
        """Say in one line what the loss is, its value, and how many tokens and sequences count."""
        counts = f"{self.tokens:,} tokens of {self.sequences:,} sequences"
        estimator = f"estimator {self.estimator!r}"
        return f"PolicyKL(loss {self.loss.item():.6g}: {self.divergence}; {counts}, {estimator})"

    @property
    def divergence(self) -> str:
        """Say in words what the loss is the divergence of."""
        whole = self.drawn.level == "sequence"
        where = "of whole sequences" if whole else "of each token, at the prefixes drawn"
        return f"{DIRECTIONS[self.drawn.direction]} {where}, {NORMALISATIONS[self.normalise]}"

    @property
    def skipped(self) -> int:
        """How many tokens missing="skip" left out."""
        return self.drawn.skipped

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
        if self.log_limits is None or self.drawn.log_step is None:
            return None
        step, (low, high) = self.drawn.log_step, self.log_limits  # 0 where masked: inside
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

    @property
    def weight_identity(self) -> Identity | None:
        """Test that the mean of the weights p/μ is 1, over tokens; None where all are 1.

        At level "sequence" that of whole sequences, if the tokens do not refute it already.
        """
        return next(iter(sorted(tested(self.drawn), key=bool)), None)

    @property
    def ratio_identity(self) -> Identity | None:
        """Test that the mean of q/μ is 1 over tokens, which k3 and every λ but 0 need."""
        return next(iter(tested(self.drawn, ratio=True)), None)

    def mismatch(self, estimator: Estimator | None = None) -> str:
        """Say why the draws do not fit what was scored, as far as an estimator needs it, or "".

        Args:
            estimator: As in `estimate`; None for the loss's own.
        """
        estimator = self.estimator if estimator is None else estimator
        reason = mismatch(self.drawn)
        if reason or estimator in ("k1", "k2", "exact"):
            return reason
        return mismatch(self.drawn, ratio=True)

    def estimate(
        self, estimator: Estimator | None = None, *, groups: Tensor | None = None
    ) -> Estimate:
        """Estimate the divergence with an error bar over sequences, or over groups of them.

        Sequences of one prompt are draws of its KL; of all prompts' KL they say less the more
        prompts differ. With groups, prompts are the draws.

        Where the draws refute the mean of weights, or of r if the estimator has it, there is no
        standard error (`no_error` says why); "best" then does without r. `rounding` is the floor
        that the dtype of the log-probabilities makes.

        Args:
            estimator: "k1", "k2", "k3", a number λ, "best" (the λ of least variance, cross-fitted
                over sequences; with an exact KL also the best multiple of `Σ (k1 − exact)`, MATH
                5.5, 5.7), or "exact" (the exact KL at the drawn prefixes). None: the loss's own if
                that is k1, k2 or "exact", else k1, which needs nothing of the sampler. To name k3,
                λ or "best" is to assert that q has no mass where the sampler had none (full
                softmaxes, no top-p, no top-k): a gap below what the draws resolve, about 4.5
                standard errors of k1, cannot be detected.
            groups: Integers `[batch]`, the same for sequences of one prompt; None where every
                sequence has a prompt of its own, or the prompts are all there are.

        Returns:
            An `Estimate` in the unit of `normalise`.

        Raises:
            ValueError: Below 2 sequences (4 for "best"), or groups, for an unknown name, for
                "exact" where none was given, for groups of another shape.
        """
        if estimator is None:
            estimator = self.estimator if self.estimator in ("k1", "k2", "exact") else "k1"
        fewest = 4 if estimator == "best" else 2
        words = f"at least {fewest} sequences with a token that counts"
        require(self.sequences >= fewest, "log_current", words, self.sequences)
        labels = None if groups is None else self._labels(groups, fewest)
        reason, how = self.mismatch(estimator), ""
        if estimator == "exact":
            given, words = self.martingale is not None, "'k1', 'k2', 'k3', 'best' or a λ"
            require(given, "estimator", words, "'exact' without exact_kl")
            sums = self._sums(self.terms)
            found = self._named(mean_over(sums, self._kept, self.normalise, labels))
        else:
            rows = torch.stack([self._sums(column) for column in self._columns()])
            if estimator == "best" and reason:  # without r − 1, as k1 is
                reason, how = self.mismatch("k1"), "λ = 0: the mean of q/μ is not 1 on these draws"
                rows[1] = -rows[0]
            found = estimate_over(rows, self._kept, estimator, self.normalise, labels)
            found = self._named(found)
            found = replace(found, rounding=self._rounding(estimator), how=how or found.how)
        return found.without_error(reason) if reason else found

    def truncation_bias(self) -> Estimate:
        """Estimate what truncation added to the value: the mean of `(cut weight − weight) · term`.

        Paired on the same draws, by the loss's estimator ("k3" if it is "best"). 0 ± 0 without
        truncation. The gradient has the same tokens' share of bias.

        Returns:
            An `Estimate` per sequence, or per token under "token" and "sequence_mean".

        Raises:
            ValueError: Below 2 sequences.
        """
        form = coefficients("k3" if self.estimator in ("best", "exact") else self.estimator)
        change = self.drawn.value_terms(form) - self.drawn.uncut().value_terms(form)
        found = mean_over(self._sums(change), self._kept, self.normalise)
        return replace(self._named(found), bias="none", why="")

    def _rounding(self, estimator: Estimator) -> float:
        """Return how far rounding of the log-probabilities may have moved the value.

        A log-ratio is off by δ, of variance s²: its terms by (∂term/∂log r) δ, which averages out,
        and by the mean of ½ λ r s² (½ s² for k2), which does not (MATH 5.3).
        """
        form = coefficients("k3" if estimator == "best" else estimator)
        drawn, mask = self.drawn, self.drawn.mask
        pair = [x if mask is None else torch.where(mask, x, 0.0) for x in drawn.logs[:2]]
        variance = sum(half_ulps(x).square() / 3 for x in pair)
        r = drawn.log_ratio.double().clamp_max(limits.LARGEST_LOG).exp()
        weight = 1.0 if drawn.weight is None else drawn.weight.double()
        # of on_log log r + on_bregman (r − 1 − log r) + on_square ½ log² r
        slope = form[0] + form[1] * (r - 1) + form[2] * drawn.log_ratio
        scale = row_scale(mask, drawn.log_ratio.double(), self.normalise)
        lasting = 0.5 * variance * weight * (form[1] * r + form[2])
        passing = variance * (weight * slope * scale).square()
        errors = float((lasting.abs() * scale).sum()), float(passing.sum().sqrt())
        return errors[0] + limits.ROUNDING_ERRORS * errors[1]

    def _labels(self, groups: Tensor, fewest: int) -> Tensor:
        """Return the groups of the sequences that have a token, numbered from 0."""
        require_type(groups, Tensor, "groups", "torch.tensor([...])")
        whole = not (groups.is_floating_point() or groups.is_complex())
        fits = whole and groups.shape == self._lengths.shape
        words = f"an integer tensor [{len(self._lengths)}], the prompt of every sequence"
        require(fits, "groups", words, describe(groups))
        kept: Tensor = groups.to(self._lengths.device)[self._lengths > 0]
        labels: Tensor = torch.unique(kept, return_inverse=True)[1]
        count = int(labels.max()) + 1
        require(count >= fewest, "groups", f"at least {fewest} groups", count)
        return labels

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
