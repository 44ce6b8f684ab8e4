"""Fit q(z) to any log density, and say how far the fit may be trusted (MATH 2 and 4).

Which file answers which question:

- `fit`: how is q fitted? `fitted_posterior`: what can be asked of the result? `archive`: how is it
  kept on disk? `starting_points`: what can `init` be? `final_draws`: what do the draws at the end
  show?
- `calibration`: are ranks of known parameters uniform over fits to simulated data?
- `stages/`: what is chosen where it was left open, and which stages does a fit have?
- `objectives`: what is maximised? ELBO, importance-weighted and Rényi bounds, as the VAE uses them.
- `target/`: the log density, its parameters, rows of data. `families/`: the families of q.
- `optimise/`: where does a fit start, and how is q brought to p?
- `diagnostics/`: how wrong may means and standard deviations be? Table, resampling.
- `predictions`: what follows from the draws? New data, log likelihoods, the tree for ArviZ.
- `limits`: every threshold, with its source.
"""

from .archive import load, save
from .calibration import Calibration, CalibrationRow, calibrate, ecdf_band
from .diagnostics.diagnose import Diagnosis, diagnose
from .diagnostics.summary import assess, compare, resample, summarise
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
from .objectives import (
    WeightedBound,
    beta_elbo,
    ciwae,
    doubly_reparameterised,
    elbo,
    iwae,
    miwae,
    piwae,
    renyi,
    score_function,
    with_path_gradient,
)
from .optimise.grid import Projection, find_box, project, search_box
from .predictions import predict, to_arviz
from .target.density import Target
from .target.parameters import (
    Parameter,
    corr_matrix,
    ordered,
    positive_ordered,
    sum_to_zero,
    unit_vector,
)

__all__ = [
    "Calibration",
    "CalibrationRow",
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
    "WeightedBound",
    "assess",
    "beta_elbo",
    "calibrate",
    "ciwae",
    "compare",
    "corr_matrix",
    "diagnose",
    "doubly_reparameterised",
    "ecdf_band",
    "elbo",
    "find_box",
    "fit",
    "iwae",
    "load",
    "miwae",
    "objectives",
    "ordered",
    "piwae",
    "positive_ordered",
    "predict",
    "project",
    "renyi",
    "resample",
    "save",
    "score_function",
    "search_box",
    "sum_to_zero",
    "summarise",
    "to_arviz",
    "unit_vector",
    "with_path_gradient",
]
