"""Layer 3, measure: one set of functions for every kind of P and Q.

- `named_distributions`: `N(0, 1)` and mixtures, read from text.
- `typed_numbers`: numbers and tables as people type them.

Everything loads on first use: text is read without torch.
"""

from typing import TYPE_CHECKING

from kullback.core.lazy import lazy

if TYPE_CHECKING:
    from .named_distributions import FAMILIES, describe, family_of, parse
    from .typed_numbers import cells_of, number, read_typed, short, split_list

__all__ = [
    "FAMILIES",
    "cells_of",
    "describe",
    "family_of",
    "number",
    "parse",
    "read_typed",
    "short",
    "split_list",
]

_HOLDS = {
    "named_distributions": ("FAMILIES", "describe", "family_of", "parse"),
    "typed_numbers": ("cells_of", "number", "read_typed", "short", "split_list"),
}

__getattr__, __dir__ = lazy(
    "kullback.measure",
    {name: f"kullback.measure.{file}" for file, names in _HOLDS.items() for name in names},
)
