"""Floor 2, sampled: numbers that came from draws and carry an error bar."""

from .draw import kl
from .log_ratio import LogRatios, log_ratio
from .log_weights import effective_sample_size, importance_bound, log_evidence, log_mean_exp
from .pareto import pareto_k, pareto_smooth
from .terms import log_ratio_terms

__all__ = [
    "LogRatios",
    "effective_sample_size",
    "importance_bound",
    "kl",
    "log_evidence",
    "log_mean_exp",
    "log_ratio",
    "log_ratio_terms",
    "pareto_k",
    "pareto_smooth",
]
