"""Floor 1, exact: numbers with no error bar.

Which to use: the functions of `tables` and `joint` are re-exported here (`exact.kl(p, q)` takes
probability tables); `closed_forms.kl(p, q)` takes two named distributions; `codes` turns tables
into bytes; `quadrature` and `linear_gaussian` give the evidence and the posterior of small models,
the oracles that every estimate is tested against (MATH 1.4).
"""

from . import joint, tables
from .joint import KLChain, conditional_entropy, kl_chain, mutual_information, total_correlation
from .tables import (
    chi2,
    cross_entropy,
    entropy,
    hellinger,
    jeffreys,
    js,
    kl,
    perplexity,
    renyi,
    surprisal,
    total_variation,
    tsallis,
)

__all__ = [
    "KLChain",
    "chi2",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "hellinger",
    "jeffreys",
    "joint",
    "js",
    "kl",
    "kl_chain",
    "mutual_information",
    "perplexity",
    "renyi",
    "surprisal",
    "tables",
    "total_correlation",
    "total_variation",
    "tsallis",
]
