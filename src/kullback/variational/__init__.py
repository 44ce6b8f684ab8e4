"""Floor 3, variational: q(z) for any log density, and the objectives it shares with the VAE."""

from .archive import load, save
from .diagnostics.diagnose import Diagnosis, diagnose
from .diagnostics.summary import assess, resample, summarise, to_arviz
from .families import (
    Family,
    FamilyDistribution,
    Flow,
    FullRank,
    LowRank,
    MeanField,
    Mixture,
    StudentT,
)
from .fit import Fit, fit
from .objectives import beta_elbo, doubly_reparameterised, elbo, iwae, renyi, score_function
from .target.density import Target
from .target.parameters import Parameter

__all__ = [
    "Diagnosis",
    "Family",
    "FamilyDistribution",
    "Fit",
    "Flow",
    "FullRank",
    "LowRank",
    "MeanField",
    "Mixture",
    "Parameter",
    "StudentT",
    "Target",
    "assess",
    "beta_elbo",
    "diagnose",
    "doubly_reparameterised",
    "elbo",
    "fit",
    "iwae",
    "load",
    "renyi",
    "resample",
    "save",
    "score_function",
    "summarise",
    "to_arviz",
]
