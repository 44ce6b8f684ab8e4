"""Floor 3, tokens: exact divergences between next-token distributions, position by position.

Which to use: the functions re-exported here take logits `[*batch, vocab]` and return one value a
position; `divergences` explains their options, `reference` their meaning at every edge.
"""

from .backends import usable
from .divergences import (
    Comparison,
    compare,
    cross_entropy,
    entropy,
    jeffreys,
    js,
    kl,
    log_prob,
)
from .precision import PrecisionWarning, rounding_floor

__all__ = [
    "Comparison",
    "PrecisionWarning",
    "compare",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "log_prob",
    "rounding_floor",
    "usable",
]
