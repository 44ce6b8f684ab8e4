"""Floor 2, sampled: numbers that came from draws and carry an error bar."""

from . import divergences, error_bars
from .divergences import Measured, how_sampled
from .estimators import Estimator, coefficients, log_ratio_terms
from .identity import (
    ENTROPY_CAUSES,
    RATIO_CAUSES,
    WEIGHT_CAUSES,
    Identity,
    Known,
    entropy_identity,
    half_ulps,
    known_mean,
    ratio_identity,
    unseen_ratio,
    weight_identity,
)
from .importance_weights import effective_sample_size, importance_bound, log_evidence, log_mean_exp
from .kl_from_distributions import kl
from .limits import ABOVE_ZERO, FILL, HEAVY, JUDGED, SENTINEL, SKEWED
from .log_probs import check_log_probs, why_shapes_differ
from .log_ratios import LogRatios, log_ratio
from .tails import Tails, pareto_k, pareto_smooth
from .two_sample import Method, js_from_draws, kl_from_draws, mutual_information_from_draws

__all__ = [
    "ABOVE_ZERO",
    "FILL",
    "HEAVY",
    "JUDGED",
    "RATIO_CAUSES",
    "SENTINEL",
    "SKEWED",
    "WEIGHT_CAUSES",
    "ENTROPY_CAUSES",
    "Estimator",
    "Identity",
    "Known",
    "LogRatios",
    "Measured",
    "Method",
    "Tails",
    "check_log_probs",
    "coefficients",
    "divergences",
    "effective_sample_size",
    "entropy_identity",
    "error_bars",
    "half_ulps",
    "how_sampled",
    "importance_bound",
    "js_from_draws",
    "kl",
    "kl_from_draws",
    "known_mean",
    "log_evidence",
    "log_mean_exp",
    "log_ratio",
    "log_ratio_terms",
    "mutual_information_from_draws",
    "pareto_k",
    "pareto_smooth",
    "ratio_identity",
    "unseen_ratio",
    "weight_identity",
    "why_shapes_differ",
]
