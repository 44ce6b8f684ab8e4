"""Numbers estimated from draws, with an error bar.

Which file answers which question:

- `divergences`: KL, Jensen-Shannon divergence, entropy of two distributions, exact where known and
  else from draws, as a `Measured`. `distributions`: KL from draws alone (`kl` here), draws with a
  generator, and log densities with −inf outside the support.
- `log_ratios`: KL from log densities at draws (`log_ratio`, and `LogRatios` for pieces).
  `estimators`: k1, k2, k3, λ; `control_variates`: which of them, and the `Estimate`;
  `summary_stats`: what is kept of the draws.
- `two_sample`: KL, Jensen-Shannon divergence and mutual information from samples alone, by
  `nearest_neighbours` or a classifier.
- `importance_weights`: evidence, bounds and effective sample size; `tails`: Pareto k-hat.
- `error_bars`: when is a standard error right? `identity`: tests of known means, E_p[q/p] = 1.
- `log_probs`: are logged log-probabilities what they are said to be?
- `limits`: the thresholds of this folder, with their sources.
"""

from . import divergences, error_bars
from .control_variates import choose_parts
from .distributions import Support, draw_from, kl, log_density
from .divergences import Measured, how_sampled
from .estimators import WEIGHT, Estimator, Moments, coefficients, log_ratio_terms
from .identity import (
    ENTROPY_CAUSES,
    RATIO_CAUSES,
    WEIGHT_CAUSES,
    Identity,
    Known,
    entropy_identity,
    half_ulps,
    known_mean,
    missed_ratio,
    ratio_identity,
    weight_identity,
)
from .importance_weights import effective_sample_size, importance_bound, log_evidence, log_mean_exp
from .limits import (
    FILL_VALUE,
    FINITE_VARIANCE_PARETO_K,
    MAX_LOG_PROB,
    MAX_PARETO_K,
    MAX_SKEWNESS_OF_MEAN,
    MIN_DRAWS_FOR_PARETO_K,
    MIN_LOG_PROB,
    MISSED_EVENT_CHANCE,
)
from .log_probs import LogProbs, check_log_probs, is_sentinel, looks_odd, why_shapes_differ
from .log_ratios import LogRatios, log_ratio
from .summary_stats import SummaryStats
from .tails import Tails, pareto_k, pareto_smooth
from .two_sample import Method, js_from_draws, kl_from_draws, mutual_information_from_draws

__all__ = [
    "ENTROPY_CAUSES",
    "FILL_VALUE",
    "FINITE_VARIANCE_PARETO_K",
    "MAX_LOG_PROB",
    "MAX_PARETO_K",
    "MAX_SKEWNESS_OF_MEAN",
    "MIN_DRAWS_FOR_PARETO_K",
    "MIN_LOG_PROB",
    "MISSED_EVENT_CHANCE",
    "RATIO_CAUSES",
    "WEIGHT",
    "WEIGHT_CAUSES",
    "Estimator",
    "Identity",
    "Known",
    "LogProbs",
    "LogRatios",
    "Measured",
    "Method",
    "Moments",
    "SummaryStats",
    "Support",
    "Tails",
    "check_log_probs",
    "choose_parts",
    "coefficients",
    "divergences",
    "draw_from",
    "effective_sample_size",
    "entropy_identity",
    "error_bars",
    "half_ulps",
    "how_sampled",
    "importance_bound",
    "is_sentinel",
    "js_from_draws",
    "kl",
    "kl_from_draws",
    "known_mean",
    "log_density",
    "log_evidence",
    "log_mean_exp",
    "log_ratio",
    "log_ratio_terms",
    "looks_odd",
    "missed_ratio",
    "mutual_information_from_draws",
    "pareto_k",
    "pareto_smooth",
    "ratio_identity",
    "weight_identity",
    "why_shapes_differ",
]
