"""How far the approximate posterior q(z|x) is from the posterior p(z|x), measured.

- `annealing`: bounds on log p(x) from both sides, by annealed importance sampling.
- `gap`: log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)) in figures; approximation and amortisation.
- `aggregate_posterior`: KL(q(z) ‖ p(z)) and I(x; z).
"""

from .aggregate_posterior import (
    Aggregate,
    aggregate,
    aggregate_of,
    aggregate_remarks,
    information_of,
)
from .annealing import Annealed, Annealing, anneal
from .gap import Gap, PerImage, Refit, gap_remarks, made_by, measure_gap, refit

__all__ = [
    "Aggregate",
    "Annealed",
    "Annealing",
    "Gap",
    "PerImage",
    "Refit",
    "aggregate",
    "aggregate_of",
    "aggregate_remarks",
    "anneal",
    "gap_remarks",
    "information_of",
    "made_by",
    "measure_gap",
    "refit",
]
