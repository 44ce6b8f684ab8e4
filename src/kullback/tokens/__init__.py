"""Floor 3, tokens: exact divergences between next-token distributions, position by position.

Which to use: the functions re-exported here take logits `[*batch, vocab]` and return one value a
position; `divergences` explains their options, `reference` their meaning at every edge. `distill`
has the losses of distillation; `audit` says which divergence any loss descends.
"""

from .auditing.findings import Audit
from .auditing.run import audit
from .backends import usable
from .distill import distill_loss, distill_terms, distill_terms_top_k
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
    "Audit",
    "Comparison",
    "PrecisionWarning",
    "audit",
    "compare",
    "cross_entropy",
    "distill_loss",
    "distill_terms",
    "distill_terms_top_k",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "log_prob",
    "rounding_floor",
    "usable",
]
