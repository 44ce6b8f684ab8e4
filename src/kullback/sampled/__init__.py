"""Floor 2, sampled: numbers that came from draws and carry an error bar."""

from . import divergences
from .distributions import draw_from, log_density
from .divergences import Measured, how_sampled
from .estimators import Estimator, log_ratio_terms
from .identity import Identity, entropy_identity, ratio_identity, weight_identity
from .importance_weights import effective_sample_size, importance_bound, log_evidence, log_mean_exp
from .kl_from_distributions import Support, kl
from .log_ratios import LogRatios, log_ratio
from .tails import pareto_k, pareto_smooth
from .two_sample import Method, js_from_draws, kl_from_draws, mutual_information_from_draws

__all__ = [
    "Estimator",
    "Identity",
    "LogRatios",
    "Measured",
    "Method",
    "Support",
    "divergences",
    "draw_from",
    "effective_sample_size",
    "entropy_identity",
    "how_sampled",
    "importance_bound",
    "js_from_draws",
    "kl",
    "kl_from_draws",
    "log_density",
    "log_evidence",
    "log_mean_exp",
    "log_ratio",
    "log_ratio_terms",
    "mutual_information_from_draws",
    "pareto_k",
    "pareto_smooth",
    "ratio_identity",
    "weight_identity",
]
