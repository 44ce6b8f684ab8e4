"""What is assumed and what is inferred about the latent code z.

- `priors`: p(z), and the KL and log ratio of q(z|x) to it.
- `posteriors`: q(z|x), as an encoder gives it.
- `hierarchy`: both for several stochastic layers.
- `codes`: both for quantised latents.
"""

from .codes import CodePrior, Codes, Quantised
from .hierarchy import GroupNet, TopDown, TopDownGaussian, TopDownPrior, layer_sizes
from .posteriors import (
    Diagonal,
    DiagonalGaussian,
    Draws,
    Encoded,
    Family,
    FlowPosterior,
    FullGaussian,
    FullRank,
    InverseAutoregressive,
    LowRank,
    Posterior,
    draw,
    draw_and_kl,
    kl_to_standard_normal,
    log_ratio_to_standard_normal,
)
from .priors import (
    CouplingFlow,
    Factorised,
    GaussianComponents,
    MixtureOfGaussians,
    Prior,
    StandardNormal,
    VampPrior,
    draw_with_kl,
    exact_kl,
    fixed,
    held_log_ratio,
    kl_given_above,
    kl_of_draws,
    log_ratio,
    numbers_of,
)

__all__ = [
    "CodePrior",
    "Codes",
    "CouplingFlow",
    "Diagonal",
    "DiagonalGaussian",
    "Draws",
    "Encoded",
    "Factorised",
    "Family",
    "FlowPosterior",
    "FullGaussian",
    "FullRank",
    "GaussianComponents",
    "GroupNet",
    "InverseAutoregressive",
    "LowRank",
    "MixtureOfGaussians",
    "Posterior",
    "Prior",
    "Quantised",
    "StandardNormal",
    "TopDown",
    "TopDownGaussian",
    "TopDownPrior",
    "VampPrior",
    "draw",
    "draw_and_kl",
    "draw_with_kl",
    "exact_kl",
    "fixed",
    "held_log_ratio",
    "kl_given_above",
    "kl_of_draws",
    "kl_to_standard_normal",
    "layer_sizes",
    "log_ratio",
    "log_ratio_to_standard_normal",
    "numbers_of",
]
