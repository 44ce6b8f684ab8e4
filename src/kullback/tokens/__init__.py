"""Floor 3, tokens: exact divergences between next-token distributions, position by position.

Which to use: the functions re-exported here take logits `[*batch, vocab]` and return one value a
position; `divergences` explains their options, `reference` their meaning at every edge. `audit` says which divergence a
policy loss descends.
"""

from .auditing.findings import Audit
from .auditing.run import audit
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

__all__ = [
    "Audit",
    "Comparison",
    "audit",
    "compare",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "log_prob",
    "usable",
]
