"""Families of q(z): pass a name to `fit`, or a class with its options.

Which file answers which question:

- `family`: what is a family, in which coordinates does it live, what is it in torch's words?
- `gaussians`: Gaussians, their mixtures, and the Student-t; `flow`: normalising flows.

Which to use: `FullRank` up to a few hundred dimensions, `LowRank` or `MeanField` above; `Mixture`
for several peaks, `StudentT` for heavy tails, `Flow` for funnels and bananas. To add one, write the
five methods that `Family` asks for; `fit(family=YourFamily)` takes it as it is.
`FamilyDistribution` wraps any of them as a `torch.distributions.Distribution`.
"""

from .family import Draws, Family, FamilyDistribution
from .flow import Flow
from .gaussians import FullRank, LowRank, MeanField, Mixture, StudentT

__all__ = [
    "NAMED",
    "Draws",
    "Family",
    "FamilyDistribution",
    "Flow",
    "FullRank",
    "LowRank",
    "MeanField",
    "Mixture",
    "StudentT",
]


NAMED = {family.name: family for family in (MeanField, FullRank, LowRank, Mixture, StudentT, Flow)}
