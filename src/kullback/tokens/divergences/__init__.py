"""Exact divergences between next-token distributions, by what is at hand of them.

- `logits`: logits `[*batch, vocab]`; `hidden_states`: hidden states and a head, no logits held;
- `sharded`: a vocabulary cut over processes; `top_k`: only the k most probable tokens;
- `slices`, `pointwise`: how parts of a vocabulary are joined; `rounding`: the rounding floor.
"""

from .hidden_states import compare_from_hidden, js_from_hidden, kl_from_hidden
from .logits import Comparison, compare, cross_entropy, entropy, jeffreys, js, kl, log_prob
from .rounding import PrecisionWarning, rounding_floor
from .top_k import TopK, kl_bounds, kl_estimate

__all__ = [
    "Comparison",
    "PrecisionWarning",
    "TopK",
    "compare",
    "compare_from_hidden",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "js_from_hidden",
    "kl",
    "kl_bounds",
    "kl_estimate",
    "kl_from_hidden",
    "log_prob",
    "rounding_floor",
]
