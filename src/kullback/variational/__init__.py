"""Floor 3, variational: q(z) for any log density, and the objectives it shares with the VAE."""

from .families import Family, Flow, FullRank, LowRank, MeanField, Mixture, StudentT
from .fit import Fit, fit
from .objectives import beta_elbo, doubly_reparameterised, elbo, iwae, renyi, score_function
from .parameters import Parameter
from .target import Target

__all__ = [
    "Family",
    "Fit",
    "Flow",
    "FullRank",
    "LowRank",
    "MeanField",
    "Mixture",
    "Parameter",
    "StudentT",
    "Target",
    "beta_elbo",
    "doubly_reparameterised",
    "elbo",
    "fit",
    "iwae",
    "renyi",
    "score_function",
]
