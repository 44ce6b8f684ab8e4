"""Exact divergences between next-token distributions, by what is at hand of them.

- `functions`: what is public, with the rules that hold for all; `sources`: what may stand where
  logits do, and the one place where a source is asked;
- `logits`: logits `[*batch, vocab]`; `hidden_states`: hidden states and a head, no logits held;
- `sharded`: a vocabulary cut over processes; `top_k`: only the k most probable tokens;
- `slices`: how parts of a vocabulary are joined; `rounding`: the rounding floor.
"""

from kullback.exact import Bounds

from .functions import Comparison, compare, cross_entropy, entropy, jeffreys, js, kl, log_prob
from .logits import InputWarning
from .rounding import PrecisionWarning, rounding_floor
from .sources import HiddenStates, Sharded, Source
from .top_k import TopK, kl_bounds, kl_estimate

__all__ = [
    "Bounds",
    "Comparison",
    "HiddenStates",
    "InputWarning",
    "PrecisionWarning",
    "Sharded",
    "Source",
    "TopK",
    "compare",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "kl_bounds",
    "kl_estimate",
    "log_prob",
    "rounding_floor",
]
