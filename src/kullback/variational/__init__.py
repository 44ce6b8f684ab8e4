"""Floor 3, variational: objectives as functions of log-weights, and the Gaussian family."""

from .objectives import beta_elbo, elbo, iwae

__all__ = ["beta_elbo", "elbo", "iwae"]
