"""Floor 3, variational: objectives as functions of log-weights, and the Gaussian family."""

from .objectives import beta_elbo, doubly_reparameterised, elbo, iwae

__all__ = ["beta_elbo", "doubly_reparameterised", "elbo", "iwae"]
