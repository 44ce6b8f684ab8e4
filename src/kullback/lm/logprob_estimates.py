"""KL(p‖q) from logged log-probabilities: k1, k2, k3, best λ, with errors clustered by sequence.

Which to use: `figures_of` for the figures of one group and one other model, `paired` for the
difference of two on the same draws. Token level: the mean over tokens of the KL of the next token,
at the prefixes that were drawn. Sequence level: the KL of whole sequences.

What needs `E_p[q/p] = 1` (k3, best λ, the reverse direction) is left out, with the reason, where
the draws refute it. Off-policy, tokens are weighted by `w = p/m` given the prefix: the KL of the
next token, at prefixes drawn by the behaviour policy; sequences by the product of their weights.

Reference: MATH 5.1 to 5.7; Schulman (2020), "Approximating KL divergence"; Kong (1992) for the
effective sample size; Vehtari et al. (2024) for Pareto k-hat.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import Estimate, json_value
from kullback.sampled import (
    FINITE_VARIANCE_PARETO_K,
    MAX_SKEWNESS_OF_MEAN,
    MIN_DRAWS_FOR_PARETO_K,
    RATIO_CAUSES,
    WEIGHT_CAUSES,
    Identity,
    Known,
    Tails,
    coefficients,
    effective_sample_size,
    error_bars,
    known_mean,
    missed_ratio,
    pareto_k,
    ratio_identity,
)

from . import limits
from .clusters import Clustered, Clusters, Floats, ratio_difference, ratio_mean
from .logprob_sums import Draws, Sums, dense_codes

__all__ = ["Figures", "Rounding", "Tail", "figures_of", "identities", "paired"]

NEED_IDENTITY = ("k3", "best", "reverse")
SAME = (
    "every token gave the same term: no error can be seen. A ratio q/p that is the same everywhere "
    "and not 1 means that p was truncated (top-p, top-k), or that a column is not what it is said"
)


@dataclass(frozen=True, slots=True)
class Rounding:
    """How far log r may be off because log-probabilities were stored rounded: `E|d|` and `E d²`."""

    mean: float = 0.0
    square: float = 0.0


@dataclass(frozen=True, slots=True)
class Tail:
    """The largest log-ratios of some draws: the largest, and the Pareto shape of the ratios."""

    largest: float
    k_hat: float

    @classmethod
    def of(cls, logs: Floats, draws: int) -> "Tail":
        """Fit the tail of exp(logs), descending: the largest of so many draws.

        Example:
            >>> Tail.of(np.log(np.arange(1.0, 600.0))[::-1], 599).k_hat < 0.5
            True
        """
        if not len(logs):
            return cls(-math.inf, math.nan)
        keys = torch.as_tensor(np.array(logs, dtype=np.float64))[None]
        places = torch.arange(len(logs))[None]
        tails = Tails(keys, places, keys[:, None], draws)
        return cls(float(keys[0, 0]), float(tails.shape(0)))


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What was estimated of one group of tokens and one other model.

    label: the group's, "all" for all. other: the other model's column. token, sequence: estimates
    by name: "k1", "k2", "k3", "best", "reverse" (the other direction, by weights), or for data
    "log_ratio". left_out: why an estimate is not there, by its name. identity: the test of
    E_p[q/p] = 1, None for data. ess, k_hat: of the ratios q/p (off-policy, of the weights p/m) of
    tokens; sequence_ess, sequence_k_hat of sequences. high, low: the shares of ratios above and
    below the clipping range.
    """

    label: str
    other: str
    tokens: int
    sequences: int
    token: dict[str, Clustered]
    sequence: dict[str, Clustered] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    identity: Identity | None = None
    ess: float = math.nan
    k_hat: float = math.nan
    sequence_ess: float = math.nan
    sequence_k_hat: float = math.nan
    high: float = math.nan
    low: float = math.nan
    log_likelihoods: tuple[float, float] = (math.nan, math.nan)

    @property
    def main(self) -> Clustered:
        """The estimate to read first: the best λ, else k1; for data the mean log-ratio."""
        return next(self.token[name] for name in ("best", "k1", "log_ratio") if name in self.token)

    @property
    def main_name(self) -> str:
        """The name of `main`."""
        return next(name for name in ("best", "k1", "log_ratio") if name in self.token)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        plain = ("ess", "k_hat", "sequence_ess", "sequence_k_hat", "high", "low")
        levels = {"token": self.token, "sequence": self.sequence}
        return {
            "group": self.label,
            "q": self.other,
            "tokens": self.tokens,
            "sequences": self.sequences,
            **{level: {name: one.to_dict() for name, one in found.items()}
               for level, found in levels.items()},
            "left_out": self.left_out,
            "mean_ratio": None if self.identity is None else json_value(self.identity.mean),
            "mean_ratio_z": None if self.identity is None else json_value(self.identity.z),
            **{name: json_value(getattr(self, name)) for name in plain},
            "log_likelihoods": [json_value(value) for value in self.log_likelihoods],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What to estimate: whose draws, of which other model (its place), and what is known of them.

    name: of the other model. rounding: of the log-ratios. tail: of the token ratios, or weights.
    identity: of the group, for tokens. refused: a reason why no estimate may have an error bar.
    unit: of the figures a row. group: its code; None for all tokens.
    """

    draws: Draws
    place: int
    name: str
    label: str
    rounding: Rounding = Rounding()
    tail: Tail = Tail(math.nan, math.nan)
    identity: Identity | None = None
    refused: str = ""
    unit: str = "nats/token"
    group: int | None = None


def figures_of(sums: Sums, asked: Asked, *, whole: Sums | None = None) -> Figures:
    """Estimate everything of one group of tokens and one other model.

    Args:
        sums: The group's; by blocks where it has too few clusters.
        asked: What to estimate.
        whole: The group's by sequence, where `sums` is by blocks; for the sequence level.

    Returns:
        The `Figures`.
    """
    features = _features(sums, asked)
    clusters = _clusters(sums, features.n)
    if asked.draws.data:
        return _data_figures(features, clusters, asked, sums)
    token, left_out = _token_level(features, clusters, asked)
    whole = sums if whole is None and not sums.block else whole
    found = _Sequences.of(whole, asked) if whole is not None else None
    sequence, why = _sequence_level(found, asked) if found is not None else ({}, {})
    tokens = features.tokens
    return Figures(
        asked.label,
        asked.name,
        int(tokens),
        sums.sequences if sums.sequences_known else 0,
        token,
        sequence,
        left_out | {f"sequence {name}": reason for name, reason in why.items()},
        asked.identity,
        features.effective_size(asked.draws) / max(tokens, 1),
        asked.tail.k_hat,
        found.ess if found is not None else math.nan,
        found.k_hat if found is not None else math.nan,
        features.high / max(tokens, 1),
        features.low / max(tokens, 1),
    )


def paired(first: Figures, second: Figures) -> dict[str, Clustered]:
    """Return KL(p‖q₁) − KL(p‖q₂) on the same draws by each estimator that both have, paired.

    Names are the estimator's, with "sequence " before those of sequences.
    """
    found = {}
    for start, one, other in (("", first.token, second.token),
                              ("sequence ", first.sequence, second.sequence)):  # fmt: skip
        for name in one:
            same = name in other and len(one[name].influence) == len(other[name].influence)
            if same and name != "reverse":
                found[start + name] = ratio_difference(one[name], other[name])
    return found


def identities(sums: Sums, asked: Sequence[Asked]) -> list[Identity]:
    """Test E_p[q/p] = 1 (and E[w] = 1) in every group at once: the level is split over them.

    The terms r_t − 1 have mean 0 given the tokens before (they are martingale differences), so that
    tokens count as uncorrelated here whatever their sequence.
    """
    parts = [sums if one.group is None else sums.of_group(one.group) for one in asked]
    features = [_features(part, one) for part, one in zip(parts, asked, strict=True)]
    pairs = list(zip(features, asked, strict=True))
    found = _tested([f.known_ratio(one) for f, one in pairs], "q/p", RATIO_CAUSES)
    if not asked[0].draws.weighted:
        return found
    weights = _tested([f.known_weight(one) for f, one in pairs], "the weights", WEIGHT_CAUSES)
    return [b if b.refuted else a for a, b in zip(found, weights, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """Sums of one other model's features by row, and their totals."""

    n: Floats
    cluster: Any
    f1: Floats
    f2: Floats
    f3: Floats
    f11: Floats
    f12: Floats
    f22: Floats
    f33: Floats
    d: Floats
    totals: dict[str, float]
    high: float
    low: float

    @property
    def tokens(self) -> float:
        return float(self.n.sum())

    def terms(self, form: tuple[Any, Any, float]) -> Floats:
        """Return the rows' sums of the linear form; its coefficients may differ by row."""
        on_log_r, on_bregman, on_square = form
        found = on_log_r * self.f1 + on_bregman * self.f2 + on_square * self.f3
        return np.asarray(found, dtype=np.float64)

    def squares(self, estimator: str | float) -> float:
        """Return the sum over tokens of an estimator's squared terms."""
        a, b, c = coefficients(estimator)
        f = self.totals
        return a * a * f["f11"] + 2 * a * b * f["f12"] + b * b * f["f22"] + c * c * f["f33"]

    def effective_size(self, draws: Draws) -> float:
        """Return Kong's effective number of tokens of the weights p/m, or of the ratios q/p."""
        f, tokens = self.totals, self.tokens
        if draws.weighted:
            return f["w1"] ** 2 / f["w2"] if f["w2"] else math.nan
        one = tokens + f["f1"] + f["f2"]
        control = f["f11"] + 2 * f["f12"] + f["f22"]
        two = control + 2 * (f["f1"] + f["f2"]) + tokens
        return one**2 / two if two else math.nan

    def mean_square_control(self) -> float:
        f = self.totals
        return max(f["f11"] + 2 * f["f12"] + f["f22"], 0.0) / max(self.tokens, 1.0)

    def skewness(self) -> float:
        """Return the skewness of the mean of w (r − 1)."""
        mean = (self.totals["f1"] + self.totals["f2"]) / max(self.tokens, 1.0)
        return _skewness(mean, self.mean_square_control(), self.totals["ccc"], self.tokens)

    def known_ratio(self, asked: Asked) -> Known:
        """Return the moments of the mean of q/p, known to be 1."""
        tokens, second = max(self.tokens, 1.0), self.mean_square_control()
        mean = (self.totals["f1"] + self.totals["f2"]) / tokens
        own = self.totals["w1"] / tokens if asked.draws.weighted else 1.0
        root = math.sqrt(second + (mean + own) ** 2)
        moments = (mean, second, self.totals["ccc"], mean + own, root)
        return _known(moments, tokens, asked)

    def known_weight(self, asked: Asked) -> Known:
        """Return the moments of the mean weight p/m, known to be 1."""
        tokens = max(self.tokens, 1.0)
        one, two, three = (self.totals[f"w{power}"] / tokens for power in (1, 2, 3))
        return _known((one, two, three * tokens, one, math.sqrt(two)), tokens, asked)


def _features(sums: Sums, asked: Asked) -> _Features:
    j, get = asked.place, sums.columns.get
    none = np.zeros_like(sums.columns["n"])
    names = ("f1", "f2", "f3", "f11", "f12", "f22", "f33")
    own = {name: get(f"{name}_{j}", none) for name in names}
    own["f3"] = own["f3"] if asked.draws.weighted else 0.5 * own["f11"]
    totals = {name: float(values.sum()) for name, values in own.items()}
    totals |= {"ccc": float(get(f"ccc_{j}", none).sum())}
    totals |= {name: float(get(name, none).sum()) for name in ("w1", "w2", "w3")}
    high, low = (float(get(f"{side}_{j}", none).sum()) for side in ("high", "low"))
    return _Features(sums.columns["n"], sums.cluster, d=sums.columns["d"], totals=totals,
                     high=high, low=low, **own)  # fmt: skip


def _clusters(sums: Sums, n: Floats) -> "_By":
    return _By.of(sums.cluster, n, sums.cluster_name, sums.block)


@dataclass(frozen=True, slots=True, eq=False)
class _By:
    """Which cluster each row belongs to, by a number, and the clusters that hold something."""

    codes: Any
    clusters: Clusters
    kept: Any

    @classmethod
    def of(cls, cluster: Any, n: Floats, name: str, block: int = 0) -> "_By":
        codes = dense_codes(cluster)
        sizes = np.bincount(codes, weights=n).astype(np.float64)
        return cls(codes, Clusters(sizes[sizes > 0], name, block), sizes > 0)

    def sums(self, rows: Floats) -> Floats:
        return np.asarray(np.bincount(self.codes, weights=rows)[self.kept], dtype=np.float64)

    @property
    def halves(self) -> Any:
        """Which half each row's cluster belongs to: every other cluster."""
        return self.codes % 2


def _token_level(
    features: _Features, by: _By, asked: Asked
) -> tuple[dict[str, Clustered], dict[str, str]]:
    found, left_out = {}, _reasons(asked.identity)
    if not features.tokens:
        return {}, {"k1": "no tokens"}
    for name in ("k1", "k2", "k3"):
        if name in left_out:
            continue
        terms = by.sums(features.terms(coefficients(name)))
        floor = _floor(features, coefficients(name), asked)
        squares = features.squares(name)
        found[name] = ratio_mean(
            terms, by.clusters, squares=squares, rounding=floor, unit=asked.unit
        )
    if "best" not in left_out:
        found["best"] = _best(features, by, asked)
    if "reverse" not in left_out and not asked.draws.weighted:
        terms = by.sums(features.f11 + features.f12 - features.f2)
        found["reverse"] = ratio_mean(terms, by.clusters, unit=asked.unit)
    found = {name: _doubted(name, one, features, asked) for name, one in found.items()}
    return found, left_out


def _best(features: _Features, by: _By, asked: Asked) -> Clustered:
    """Estimate with the λ of least variance, each half of the clusters taking the other half's.

    λ is 0 where q/p has so heavy a tail that its variance is infinite as far as draws can tell.
    """
    skewness = abs(features.skewness())
    heavy = (
        asked.tail.k_hat > FINITE_VARIANCE_PARETO_K
        and skewness > MAX_SKEWNESS_OF_MEAN
        and features.tokens >= MIN_DRAWS_FOR_PARETO_K
    )
    few = len(by.clusters.sizes) < limits.MIN_CROSS_FIT
    if heavy or few:
        lambdas, how = np.zeros(2), "k1, as q/p has a heavy tail" if heavy else "k1, few clusters"
    else:
        lambdas = np.array([_lambda(features, by.halves == 1 - half) for half in (0, 1)])
        ends = [f"{each:.3g}" for each in sorted(lambdas)]
        how = f"best λ = {' to '.join(dict.fromkeys(ends))}"
    own = lambdas[by.halves]
    terms = by.sums(features.terms((own - 1.0, own, 0.0)))
    floor = _floor(features, coefficients(float(lambdas.mean())), asked)
    squares = features.squares(float(lambdas.mean()))
    found = ratio_mean(terms, by.clusters, squares=squares, rounding=floor, unit=asked.unit)
    return replace(found, estimate=replace(found.estimate, how=how))


def _lambda(features: _Features, rows: Any) -> float:
    """Return λ* = Cov(log r, r) / Var(r) over some rows' tokens (MATH 5.5)."""
    names = ("f1", "f2", "f11", "f12", "f22")
    f1, f2, f11, f12, f22 = (float(getattr(features, name)[rows].sum()) for name in names)
    tokens = max(float(features.n[rows].sum()), 1.0)
    control = f1 + f2
    variance = f11 + 2 * f12 + f22 - control**2 / tokens
    covariance = f11 + f12 - f1 * control / tokens
    return covariance / variance if variance > 0 else 1.0


def _floor(features: _Features, form: tuple[float, float, float], asked: Asked) -> float:
    """Return how far rounding of the inputs can move a form's mean: `E|f' d| + E f'' d²/2`.

    With `f' = c₀ + c₁ (r − 1) + c₂ log r`, means of products bounded by Cauchy and Schwarz, as for
    `sampled.log_ratio`.
    """
    off, f, tokens = asked.rounding, features.totals, max(features.tokens, 1.0)
    on_log_r, on_r, on_square = (abs(each) for each in form)
    weights = math.sqrt(f["w2"] / tokens) if asked.draws.weighted else 1.0
    root = math.sqrt(off.square)
    first = on_log_r * (weights * root if asked.draws.weighted else off.mean)
    first += on_r * math.sqrt(features.mean_square_control()) * root
    first += on_square * math.sqrt(max(f["f11"], 0.0) / tokens) * root
    r = max((f["f1"] + f["f2"]) / tokens + weights, 0.0)
    return first + 0.5 * (on_r * r + on_square * weights) * off.square


def _reasons(identity: Identity | None) -> dict[str, str]:
    """Say why estimates that need the mean of q/p are not given; empty where it holds."""
    if identity is None or not identity.refuted:
        return {}
    return dict.fromkeys(NEED_IDENTITY, identity.reason)


def _doubted(name: str, found: Clustered, features: _Features, asked: Asked) -> Clustered:
    """Add to an estimate what the ratios, the identity and the checks say against it."""
    estimate = found.estimate
    if asked.refused:
        return replace(found, estimate=estimate.without_error(asked.refused))
    identity = asked.identity
    if not found.naive_error and abs(estimate.value) > limits.ROUNDING:
        estimate = estimate.without_error(SAME)
    if identity is not None and identity.refuted:
        estimate = _told(estimate, identity, asked.draws)
    if name == "k2":
        why = "k2's expectation is half the mean of log² r, not KL (MATH 5.2)"
        estimate = replace(estimate, bias="unknown", why=why)
    if name in NEED_IDENTITY and estimate.how[:2] != "k1":
        skewness, k_hat = torch.tensor(features.skewness()), torch.tensor(asked.tail.k_hat)
        tokens = int(features.tokens)
        doubts = [error_bars.about_control("q/p", skewness, k_hat, tokens)]
        doubts.append(error_bars.about_rare_events(tokens, skewness))
        for doubt in doubts:
            if bool(doubt.where):
                estimate = estimate.warn(doubt.words.format(float(doubt.size)))
    return replace(found, estimate=estimate)


def _told(estimate: Estimate, identity: Identity, draws: Draws) -> Estimate:
    """Say with k1 and k2 that the mean of q/p is not 1: of unknown bias, without error above 1.

    Weights that are wrong leave no estimate right.
    """
    if identity.mean > identity.expected or draws.weighted:
        return replace(estimate.without_error(identity.reason), bias="unknown")
    why = f"right for p as it was sampled if p was truncated, else wrong: {identity.reason}"
    return replace(estimate, bias="unknown", why=why)


@dataclass(frozen=True, slots=True, eq=False)
class _Sequences:
    """Whole sequences: log-ratios, log-weights (None for plain draws), and their clusters."""

    log_r: Tensor
    log_w: Tensor | None
    by: _By
    identity: Identity

    @classmethod
    def of(cls, sums: Sums, asked: Asked) -> "_Sequences | None":
        """Add up each sequence's tokens; None where rows are not sequences."""
        if not sums.sequences_known or sums.block or not len(sums.sequence):
            return None
        codes = dense_codes(sums.sequence)
        n, rows = (np.bincount(codes, weights=sums.columns[name]) for name in ("n", "rows"))
        complete = (n == rows) & (n > 0)  # a sequence that lacks a token has no log-ratio
        if complete.sum() < 2:
            return None
        weighted = asked.draws.weighted
        name = f"x_{asked.place}" if weighted else f"f1_{asked.place}"
        log_r = np.bincount(codes, weights=sums.columns[name])[complete]
        log_w = None
        if weighted:
            log_w = torch.as_tensor(np.bincount(codes, weights=sums.columns["lw"])[complete])
        cluster = np.zeros(len(n), dtype=np.int64)
        cluster[codes] = sums.cluster
        by = _By.of(cluster[complete], np.ones(int(complete.sum())), sums.cluster_name)
        ratio = torch.as_tensor(log_r)
        base = torch.zeros_like(ratio)
        off = torch.as_tensor(asked.rounding.mean * n[complete])
        whole = ratio if log_w is None else ratio + log_w
        return cls(ratio, log_w, by, ratio_identity(base, whole, rounding=off))

    @property
    def ess(self) -> float:
        """Kong's effective sample size of the sequences' ratios, or weights, as a share."""
        logs = self.log_r if self.log_w is None else self.log_w
        return float(effective_sample_size(logs)) / len(logs)

    def hidden(self, logs: Tensor) -> str:
        """Say why the mean of exp(logs), which is 1, cannot show in these sequences; "" if it can.

        It takes about `exp(D + 2σ)` of them, D = σ²/2 and σ the deviation of the logs, which is
        that of logs of a normal distribution.
        """
        deviation = float(logs.std()) if len(logs) > 1 else 0.0
        needed = 0.5 * deviation**2 + limits.REACH * deviation
        if needed <= math.log(len(logs)):
            return ""
        return (
            f"the ratios of whole sequences differ by factors of e^{deviation:.2g}: their mean of "
            f"1 would show in about e^{needed:.2g} sequences, of which there are {len(logs):,}"
        )

    @property
    def k_hat(self) -> float:
        logs = self.log_r if self.log_w is None else self.log_w
        return float(pareto_k(logs)) if len(logs) >= limits.MIN_PARETO_K else math.nan


def _sequence_level(found: _Sequences, asked: Asked) -> tuple[dict[str, Clustered], dict[str, str]]:
    x = found.log_r.numpy()
    weight = np.ones_like(x) if found.log_w is None else found.log_w.exp().numpy()
    terms = {"k1": -x, "k2": 0.5 * x * x, "k3": np.expm1(x) - x}
    refuted = _reasons(asked.identity) | _reasons(found.identity)
    left_out = {name: why for name, why in refuted.items() if name == "k3"}
    whole = found.log_r if found.log_w is None else found.log_r + found.log_w
    unseen = {"k3": found.hidden(whole)}
    if found.log_w is not None and (why := found.hidden(found.log_w)):
        unseen = dict.fromkeys(terms, why)
    estimates = {}
    for name, values in terms.items():
        if name in left_out:
            continue
        clustered = ratio_mean(found.by.sums(weight * values), found.by.clusters,
                               squares=float((weight * values) @ (weight * values)),
                               unit="nats/sequence")  # fmt: skip
        estimate = clustered.estimate
        if asked.refused:
            estimate = estimate.without_error(asked.refused)
        elif name == "k2":
            why = "k2's expectation is half the mean of log² r, not KL (MATH 5.2)"
            estimate = replace(estimate, bias="unknown", why=why)
        elif asked.identity is not None and asked.identity.refuted:
            estimate = _told(estimate, asked.identity, asked.draws)
        if unseen.get(name):
            estimate = replace(estimate.without_error(unseen[name]), bias="unknown")
        estimates[name] = replace(clustered, estimate=estimate)
    return estimates, left_out


def _data_figures(features: _Features, by: _By, asked: Asked, sums: Sums) -> Figures:
    """Give the paired difference of the log-likelihoods, log p − log q a token."""
    tokens = features.tokens
    difference = ratio_mean(by.sums(-features.f1), by.clusters, squares=features.totals["f11"],
                            rounding=asked.rounding.mean, unit=asked.unit)  # fmt: skip
    if asked.refused:
        refused = difference.estimate.without_error(asked.refused)
        difference = replace(difference, estimate=refused)
    mean = float(features.d.sum()) / max(tokens, 1.0)
    return Figures(
        asked.label,
        asked.name,
        int(tokens),
        sums.sequences if sums.sequences_known else 0,
        {"log_ratio": difference},
        log_likelihoods=(mean, mean - difference.estimate.value),
    )


def _known(moments: tuple[float, float, float, float, float], tokens: float, asked: Asked) -> Known:
    """Return a known mean from the mean, mean square and cube sum of its terms, as tensors."""
    mean, second, cubes, total, root = moments
    variance = max(second - mean**2, 0.0)
    variance = variance if variance > limits.ROUNDING * max(second, mean**2) else 0.0
    error = math.sqrt(variance / max(tokens - 1, 1.0))
    skewness = _skewness(mean, second, cubes, tokens)
    rounding = root * math.sqrt(asked.rounding.square) + 1e-15
    largest = torch.tensor(math.exp(min(asked.tail.largest, 700.0)), dtype=torch.float64)
    missed = missed_ratio(largest, torch.tensor(asked.tail.k_hat), max(int(tokens), 1))
    values = [torch.tensor(each, dtype=torch.float64) for each in (total, error, skewness)]
    return Known(values[0], values[1], values[2], int(tokens), missed.double(),
                 torch.tensor(rounding, dtype=torch.float64))  # fmt: skip


def _skewness(mean: float, second: float, cubes: float, tokens: float) -> float:
    """Return the skewness of a mean from its terms' mean, mean square and sum of cubes."""
    variance = second - mean**2
    if variance <= limits.ROUNDING * max(second, mean**2) or not tokens:
        return 0.0
    third = cubes / tokens - 3 * mean * second + 2 * mean**3
    return float(third / variance**1.5 / math.sqrt(tokens))


def _tested(knowns: Sequence[Known], what: str, causes: tuple[str, ...]) -> list[Identity]:
    """Test a known mean in every group, the level split over them (Bonferroni)."""
    groups = len(knowns)
    if groups == 1:
        return [known_mean(knowns[0], what, causes=causes)]
    names = ("mean", "error", "skewness", "missed", "rounding")
    found = []
    for known in knowns:  # a batch of equal groups, for its level
        batch = {name: getattr(known, name).expand(groups) for name in names}
        test = known_mean(Known(draws=known.draws, **batch), what, causes=causes)
        words = test.reason.replace(f" (in {groups} of {groups})", "")
        values = [float(getattr(test, name)[0]) for name in ("mean", "expected", "error", "z")]
        mean, expected, error, z = values
        refuted = bool(test.refuted[0])
        found.append(Identity(test.name, mean, expected, error, z, refuted, words))
    return found
