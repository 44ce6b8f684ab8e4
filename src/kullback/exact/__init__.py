"""Exact numbers: no draws, no error bar.

Which file answers which question:

- `tables`: entropies and divergences of probability tables; its functions are offered here, so
  that `exact.kl(p, q)` takes tables. `joint`: mutual information and the chain rule.
- `closed_forms`: KL, entropy and Rényi divergence of named torch distributions; the formulas are in
  `families`, one file a kind of family. `bregman` has the functions under them, `log_excess` among
  them.
- `countable`: KL, Jensen-Shannon divergence and entropy of distributions on the integers, summed.
- `supports`: is KL(p‖q) infinite, and what is E_p[q/p]? `tails`: how fast a density falls off;
  `intervals`: where a family has mass; `cdfs`: how much of it lies below x.
- `quadrature` and `linear_gaussian`: evidence and posterior of small models (MATH 1.4).
- `codes`: tables into bytes, by Huffman and ANS codes.
- `limits`: the thresholds of this folder, with their sources.
"""

from . import closed_forms, codes, countable, joint, quadrature, supports, tables, tails
from .bregman import HALF_LOG_2PI, NORMAL_ENTROPY, log_excess, write_log_excess
from .closed_forms import register_with_torch
from .families import Bounds, InverseGaussian, mixture_kl_bounds, scores_as
from .joint import KLChain, conditional_entropy, kl_chain, mutual_information, total_correlation
from .linear_gaussian import LinearGaussian
from .quadrature import Posterior
from .table_sums import Form
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
    "HALF_LOG_2PI",
    "NORMAL_ENTROPY",
    "Bounds",
    "Form",
    "InverseGaussian",
    "KLChain",
    "LinearGaussian",
    "Posterior",
    "chi2",
    "closed_forms",
    "codes",
    "conditional_entropy",
    "countable",
    "cross_entropy",
    "entropy",
    "hellinger",
    "jeffreys",
    "joint",
    "js",
    "kl",
    "kl_chain",
    "log_excess",
    "mixture_kl_bounds",
    "mutual_information",
    "perplexity",
    "quadrature",
    "register_with_torch",
    "renyi",
    "scores_as",
    "supports",
    "surprisal",
    "tables",
    "tails",
    "total_correlation",
    "total_variation",
    "tsallis",
    "write_log_excess",
]
