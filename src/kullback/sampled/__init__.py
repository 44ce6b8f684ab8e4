"""Floor 2, sampled: numbers that came from draws and carry an error bar."""

from .log_weights import effective_sample_size, log_mean_exp

__all__ = ["effective_sample_size", "log_mean_exp"]
