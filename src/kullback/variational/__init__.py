"""Floor 3, variational: q(z) for any log density, and the objectives it shares with the VAE.

- `fit`: the function and what it returns; `posterior`: its draws by name, q as a distribution;
- `archive`: a fit on disk; `plan`: what is chosen where it was left open; `engine`: the stages;
- `target/`: the log density; `families/`: of q; `optimise/`: how q is found; `diagnostics/`: how
  far to trust it; `objectives`: ELBO and its relatives; `limits`: every threshold of the verdict.
"""

from .archive import load, save
from .diagnostics.diagnose import Diagnosis, diagnose
from .diagnostics.reference_comparison import compare
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
from .optimise.grid import Projection, find_box, project
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
    "Projection",
    "StudentT",
    "Target",
    "assess",
    "beta_elbo",
    "compare",
    "diagnose",
    "doubly_reparameterised",
    "elbo",
    "find_box",
    "fit",
    "iwae",
    "load",
    "project",
    "renyi",
    "resample",
    "save",
    "score_function",
    "summarise",
    "to_arviz",
]
