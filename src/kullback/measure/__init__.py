"""Layer 3, measure: one set of functions for every kind of P and Q.

- `quantities`: `kl`, `js`, `jeffreys`, `renyi`, `entropy`, `cross_entropy`, `mutual_information`;
  KL from log-probabilities (`kl_from_log_probs`) or from samples alone (`kl_from_draws`).
- `inputs`: what may stand for P and Q, turned into tables or torch distributions.
- `scipy_distributions`: SciPy's frozen distributions as torch's.
- `named_distributions`: `N(0, 1)` and mixtures, read from text.
- `typed_numbers`: numbers and tables as people type them.

Everything loads on first use: text is read without torch.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from .inputs import read_one, read_pair
    from .named_distributions import FAMILIES, describe, family_of, parse
    from .quantities import (
        cross_entropy,
        entropy,
        jeffreys,
        js,
        kl,
        kl_from_draws,
        kl_from_log_probs,
        mutual_information,
        renyi,
    )
    from .typed_numbers import cells_of, number, read_typed, short, split_list, sums_to_one

__all__ = [
    "FAMILIES",
    "cells_of",
    "cross_entropy",
    "describe",
    "entropy",
    "family_of",
    "jeffreys",
    "js",
    "kl",
    "kl_from_draws",
    "kl_from_log_probs",
    "mutual_information",
    "number",
    "parse",
    "read_one",
    "read_pair",
    "read_typed",
    "renyi",
    "short",
    "split_list",
    "sums_to_one",
]

_HOLDS = {
    "inputs": ("read_one", "read_pair"),
    "quantities": (
        "cross_entropy",
        "entropy",
        "jeffreys",
        "js",
        "kl",
        "kl_from_draws",
        "kl_from_log_probs",
        "mutual_information",
        "renyi",
    ),
    "named_distributions": ("FAMILIES", "describe", "family_of", "parse"),
    "typed_numbers": ("cells_of", "number", "read_typed", "short", "split_list", "sums_to_one"),
}

__getattr__, __dir__ = lazy(
    "kullback.measure",
    {name: f"kullback.measure.{file}" for file, names in _HOLDS.items() for name in names},
)
