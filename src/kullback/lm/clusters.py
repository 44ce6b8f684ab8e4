"""Means over tokens whose errors are clustered: by document, by prompt, or by sequence.

Tokens of one document are correlated. An error bar that counts them as independent is too short:
with a correlation of 0.1 and 200 tokens a document it covers 33 % instead of 95 %.

Which to use: `ratio_mean` for a mean over tokens from sums by cluster; `ratio_difference` for two
such means over the same clusters, paired; `block_length` where there are fewer than ten clusters;
`gate` to decide about a limit by an interval.

The mean is the ratio estimator `R = Σ_c S_c / Σ_c n_c`, S_c the sum of the terms of cluster c and
n_c its tokens. Its variance is one of two estimates, equal for clusters of one size. With
`u_c = S_c − R n_c`, N all tokens and `h_c = n_c / N`:

- CR2, `Σ_c u_c² / (1 − h_c) / N²`: unbiased for equal variances a token. Few large clusters carry
  its sum, as `u_c² ∝ h_c²`: where these happen to be near R it is far too small.
- Random effects, `τ² Σ h_c² + σ²/N`, with σ² the variance within clusters and τ² that of their
  means, which counts a cluster by how well its mean is known and not by its tokens squared.

For 30 sequences whose lengths differ by factors of e^1.2 to e^2, with means of a chi-squared law,
95 % intervals by CR2 alone cover 87 to 91 %; these are too long where lengths differ that much, not
too short (tests/lm/test_clusters.py). On 23 families that chose nothing (sizes equal,
geometric, uniform, Pareto; 12, 30 and 100 clusters) they cover 94.5 to 100 %. Not covered is a mean
that depends on a cluster's size where most tokens are in a few clusters that a sample may miss
(sizes of Pareto index 1.5: 77 % of 12 clusters, 85 % of 30, 95 % of 100;
benchmarks/cluster_coverage.py). Student's t takes `G* − 1` degrees with CR2, `G* = 1 / Σ h_c²`, and
G − 1 with random effects; the longer interval of the two is given.

Reference: Cochran (1977), "Sampling Techniques", section 6; Bell and McCaffrey (2002), "Bias
reduction in standard errors"; Carter, Schnepel and Steigerwald (2017) for the effective number;
Paule and Mandel (1982), "Consensus values and weighting factors", for τ².
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kullback.core import Estimate, json_value, require, two_sided
from kullback.sampled import error_bars

from . import limits

__all__ = [
    "Clustered",
    "Clusters",
    "Gate",
    "block_length",
    "gate",
    "ratio_difference",
    "ratio_mean",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Clusters:
    """What the clusters are: their sizes, their name, and whether they are blocks of tokens.

    sizes: tokens of each, `[G]`. name: the plural, for messages. block: tokens of a contiguous
    block where there were too few clusters; 0 where clusters are whole.
    """

    sizes: Floats
    name: str = "documents"
    block: int = 0

    @property
    def shares(self) -> Floats:
        """The share `h_c` of all tokens that each cluster holds."""
        return np.asarray(self.sizes / self.sizes.sum(), dtype=np.float64)

    @property
    def effective(self) -> float:
        """`G* = 1 / Σ h²`: how many clusters of equal size would be as many."""
        return float(1.0 / np.square(self.shares).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Clustered:
    """A mean over tokens with its clustered error, and the error of independent tokens beside it.

    estimate: its `draws` are the degrees of freedom of its t, plus one. influence: `[G]`, what each
    cluster adds to the error; the sum is 0. naive_error: as if tokens were independent; NaN if
    unknown.
    """

    estimate: Estimate
    clusters: Clusters
    influence: Floats
    naive_error: float = math.nan

    @property
    def design_effect(self) -> float:
        """How many times the variance is that of independent tokens."""
        if not self.naive_error:
            return math.nan
        return float((self.estimate.standard_error / self.naive_error) ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: the estimate's, and what the clusters were."""
        low, high = self.estimate.interval()
        return self.estimate.to_dict() | {
            "interval": [json_value(low), json_value(high)],
            "clusters": len(self.clusters.sizes),
            "clusters_are": self.clusters.name,
            "block_tokens": self.clusters.block,
            "effective_clusters": self.clusters.effective,
            "naive_standard_error": json_value(self.naive_error),
            "design_effect": json_value(self.design_effect),
        }


def ratio_mean(
    sums: ArrayLike,
    clusters: Clusters,
    *,
    squares: float | None = None,
    rounding: float = 0.0,
    unit: str = "nats/token",
) -> Clustered:
    """Estimate a mean over tokens, `Σ_c S_c / Σ_c n_c`, with an error clustered by `clusters`.

    Args:
        sums: `[G]`, the sum of the terms of each cluster, in the first part of `unit`.
        clusters: Their sizes, all above 0, and their name.
        squares: The sum of the squared terms over all tokens: gives the naive error, the design
            effect and the variance within clusters. None: that variance counts as 0, which makes
            the error of very unequal clusters longer.
        rounding: The rounding floor of the mean.
        unit: Of the mean.

    Returns:
        A `Clustered`. The interval of its estimate uses t with `draws − 1` degrees and allows for
        the skewness of the clusters' sums. No error bar for a single cluster, for fewer than ten
        blocks, or for sums with so heavy a tail that no mean can be inferred.

    Raises:
        ValueError: Sums and sizes of different lengths, or none.

    Example:
        >>> found = ratio_mean([2.0, 6.0, 4.0, 4.0] * 6, Clusters(np.full(24, 4.0)), squares=200.0)
        >>> print(found.estimate.brief, f"{found.design_effect:.2f}")
        1.000 ± 0.074 nats/token 0.48
    """
    totals = np.asarray(sums, dtype=np.float64)
    _check(totals, clusters)
    tokens = clusters.sizes.sum()
    value = float(totals.sum() / tokens)
    influence = _residuals(totals, value, clusters.sizes) / tokens
    within = _within(totals, clusters.sizes, squares)
    estimate = _estimate(influence, value, clusters, within=within, rounding=rounding, unit=unit)
    return Clustered(estimate, clusters, influence, _naive(value, squares, tokens))


def ratio_difference(first: Clustered, second: Clustered) -> Clustered:
    """Return `first − second`, two means over the same clusters, with the error of the pairs.

    What both have in common (a document that is hard for both) leaves no error. The differences of
    tokens are not known here, and their variance within clusters counts as 0.

    Args:
        first: A mean over the clusters.
        second: Another over the same ones, in the same order.

    Returns:
        A `Clustered` without a naive error.

    Raises:
        ValueError: For clusters that differ.

    Example:
        >>> both = Clusters(np.full(24, 4.0))
        >>> hard = np.arange(24.0)
        >>> a, b = ratio_mean(hard + 1.0 + 0.1 * (hard % 2), both), ratio_mean(hard, both)
        >>> print(ratio_difference(a, b).estimate.brief)
        0.2625 ± 0.0026 nats/token
    """
    same = np.array_equal(first.clusters.sizes, second.clusters.sizes)
    require(same, "second", "a mean over the same clusters", "other clusters")
    value = first.estimate.value - second.estimate.value
    influence = first.influence - second.influence
    scale = np.abs(first.influence) + np.abs(second.influence)
    influence = np.where(np.abs(influence) <= limits.ROUNDING * scale, 0.0, influence)
    rounding = first.estimate.rounding + second.estimate.rounding
    unit = first.estimate.unit
    found = _estimate(influence, value, first.clusters, within=0.0, rounding=rounding, unit=unit)
    for reason in filter(None, {first.estimate.no_error, second.estimate.no_error}):
        found = found.without_error(reason)
    return Clustered(found, first.clusters, influence)


def block_length(tokens: int, clusters: int) -> int:
    """Return the tokens of a contiguous block where there are too few clusters; 0 where not.

    Blocks shorter than the range of the correlation leave errors too short: it is said with them,
    and none is shorter than `limits.MIN_BLOCK_TOKENS`.

    Example:
        >>> block_length(20_000, 3), block_length(30, 1), block_length(20_000, 10)
        (500, 50, 0)
    """
    if clusters >= limits.MIN_CLUSTERS:
        return 0
    return max(limits.MIN_BLOCK_TOKENS, tokens // limits.BLOCKS)


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gate decided: `failed`, and in `words` by which limits."""

    failed: bool
    words: str


def gate(
    estimates: Mapping[str, Estimate],
    *,
    fail_above: float | None = None,
    require_below: float | None = None,
    confidence: float = limits.CONFIDENCE,
) -> Gate:
    """Decide by one-sided intervals whether a divergence is surely too large, or surely small.

    `fail_above` fails where the lower limit of any estimate lies above it; the level is split over
    the estimates, so that where all are at the limit it fails with at most `1 − confidence`.
    `require_below` fails unless the upper limit of every estimate lies below it.

    Args:
        estimates: By label; several where there are groups.
        fail_above: In the estimates' unit.
        require_below: In the estimates' unit.
        confidence: Of each one-sided limit, between 0.5 and 1.

    Returns:
        A `Gate`. An estimate without error bar does not fail `fail_above`, and does not pass
        `require_below`: the words say so.

    Raises:
        ValueError: For a confidence outside 0.5 to 1, or no estimate.

    Example:
        >>> gate({"all": Estimate(0.02, 0.001, draws=50)}, fail_above=0.01).words
        'all: 0.0200 ± 0.0010 nats, lower limit 0.0183, above 0.01: failed'
    """
    require(0.5 < confidence < 1.0, "confidence", "a number between 0.5 and 1", confidence)
    require(len(estimates) > 0, "estimates", "at least one", "none")
    said = []
    for label, estimate in estimates.items():
        start = f"{label}: {estimate.brief}"
        if estimate.no_error:
            undecided = require_below is not None
            said.append((undecided, f"{start}, no error bar: cannot be decided"))
            continue
        if fail_above is not None:
            split = 1 - (1 - confidence) / len(estimates)
            low = estimate.interval(2 * split - 1)[0]
            said.append((low > fail_above, f"{start}, lower limit {low:.3g}, above {fail_above:g}"))
        if require_below is not None:
            high = estimate.interval(2 * confidence - 1)[1]
            words = f"{start}, upper limit {high:.3g}, not below {require_below:g}"
            said.append((not high < require_below, words))
    failed = [words for bad, words in said if bad]
    if failed:
        return Gate(failed=True, words="; ".join(f"{words}: failed" for words in failed))
    open_ones = [words for _, words in said if words.endswith("decided")]
    return Gate(failed=False, words="; ".join(open_ones) or "passed")


def _check(sums: Floats, clusters: Clusters) -> None:
    sizes = clusters.sizes
    fits = sums.ndim == 1 and sums.shape == sizes.shape and sums.size > 0
    require(fits, "sums", f"one sum for each of {sizes.size} clusters", list(sums.shape))
    require(bool((sizes > 0).all()), "sizes", "clusters with at least one token", "an empty one")


def _residuals(sums: Floats, value: float, sizes: Floats) -> Floats:
    """Return `S_c − R n_c`, 0 where that is rounding; NaN where the mean is not finite."""
    if not math.isfinite(value):
        return np.full_like(sums, math.nan)
    residual = sums - value * sizes
    return np.where(np.abs(residual) <= limits.ROUNDING * np.abs(sums), 0.0, residual)


def _within(sums: Floats, sizes: Floats, squares: float | None) -> float:
    """Return the variance of terms within clusters; 0 where it is not known."""
    spare = float(sizes.sum()) - len(sizes)
    if squares is None or spare <= 0:
        return 0.0
    found = (squares - float((sums * sums / sizes).sum())) / spare
    return found if found > limits.CONSTANT * squares else 0.0


def _random_effects(means: Floats, clusters: Clusters, within: float) -> float:
    """Return the variance of the mean, `τ² Σ h² + σ²/N`; 0 where clusters do not differ.

    means: of each cluster, less R. τ² solves `Σ w (mean − m)² = G − 1` for `w = 1 / (τ² + σ²/n)`
    and m the mean by these weights. Without σ² the weights are the shares of tokens.
    """
    shares = clusters.shares
    if not within:
        whole = 1.0 - float(np.square(shares).sum())
        return float((shares * means**2).sum()) / whole / clusters.effective
    own = within / clusters.sizes

    def excess(spread: float) -> float:
        weights = 1.0 / (spread + own)
        centre = float((weights * means).sum() / weights.sum())
        return float((weights * (means - centre) ** 2).sum()) - (len(means) - 1)

    low, high = 0.0, float(means.var() * len(means))
    if excess(low) <= 0.0:
        return 0.0
    for _ in range(limits.BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return high / clusters.effective + within / float(clusters.sizes.sum())


def _estimate(
    influence: Floats,
    value: float,
    clusters: Clusters,
    *,
    within: float,
    rounding: float,
    unit: str,
) -> Estimate:
    count, shares = len(influence), clusters.shares
    if count == 1 or (clusters.block and count < limits.MIN_CLUSTERS):
        alone = Estimate(value, math.nan, count, unit, rounding=rounding)
        return alone.without_error(_too_few(clusters))
    scaled = influence / np.sqrt(1.0 - shares) * math.sqrt(count * (count - 1))
    robust = float((influence**2 / (1.0 - shares)).sum())
    alike = bool((clusters.sizes == clusters.sizes[0]).all())  # then both are one number
    effective = max(2, int(clusters.effective))
    if robust > 0.0 and not alike and clusters.effective < limits.MANY_CLUSTERS:
        pooled = _random_effects(influence / shares, clusters, within)
        longer = two_sided(0.95, count - 1) / two_sided(0.95, effective - 1)
        if pooled * longer**2 > robust:  # the longer interval of the two
            scaled *= math.sqrt(pooled / robust)
            effective = count
    found = error_bars.estimate_of(
        torch.as_tensor(scaled),
        torch.tensor(value, dtype=torch.float64),
        size=torch.tensor(0.0, dtype=torch.float64),
        rounding=torch.tensor(rounding, dtype=torch.float64),
    )
    # the doubts are about the independent terms, which are the clusters here
    doubts = tuple(text.replace(" draws", f" {clusters.name}") for text in found.warnings)
    found = replace(found, unit=unit, draws=effective, warnings=doubts)
    found = replace(found, no_error=found.no_error.replace("these draws", f"these {clusters.name}"))
    if shares.max() > limits.DOMINANT_CLUSTER:
        found = found.warn(f"one of {count} {clusters.name} holds {shares.max():.0%} of the tokens")
    if clusters.block:
        named = clusters.name != "blocks"
        few = f"too few {clusters.name} for" if named else "nothing names the sequences, for"
        found = found.warn(
            f"{few} an error bar by them: the error is that of contiguous blocks of "
            f"{clusters.block:,} tokens, taken as independent"
        )
    return found


def _too_few(clusters: Clusters) -> str:
    if not clusters.block:
        return f"one {clusters.name.removesuffix('s')} only"
    tokens = f"{int(clusters.sizes.sum()):,} tokens"
    return f"{tokens} are fewer than {limits.MIN_CLUSTERS} blocks of {clusters.block:,}"


def _naive(value: float, squares: float | None, tokens: float) -> float:
    if squares is None or tokens < 2:
        return math.nan
    mean_square = squares / tokens
    variance = mean_square - value * value
    variance = variance if variance > limits.CONSTANT * mean_square else 0.0
    return math.sqrt(variance / (tokens - 1))
