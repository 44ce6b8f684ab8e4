"""Floor 1, exact: numbers with no error bar.

Which to use: the functions of `tables` and `joint` are re-exported here (`exact.kl(p, q)` takes
probability tables); `closed_forms.kl(p, q)` takes two named distributions; `codes` turns tables
into bytes; `quadrature` and `linear_gaussian` give the evidence and the posterior of small models,
the oracles that every estimate is tested against (MATH 1.4).
"""

from . import closed_forms, codes, joint, quadrature, tables
from .closed_forms import register_with_torch
from .families import Bounds, InverseGaussian, mixture_kl_bounds
from .joint import KLChain, conditional_entropy, kl_chain, mutual_information, total_correlation
from .linear_gaussian import LinearGaussian
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
    "Bounds",
    "InverseGaussian",
    "KLChain",
    "LinearGaussian",
    "chi2",
    "closed_forms",
    "codes",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "hellinger",
    "jeffreys",
    "joint",
    "js",
    "kl",
    "kl_chain",
    "mixture_kl_bounds",
    "mutual_information",
    "perplexity",
    "quadrature",
    "register_with_torch",
    "renyi",
    "surprisal",
    "tables",
    "total_correlation",
    "total_variation",
    "tsallis",
]
