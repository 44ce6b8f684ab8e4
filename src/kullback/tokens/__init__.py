"""Floor 3, tokens: exact divergences between next-token distributions, position by position.

Which to use: `kl` and the other functions here take logits `[*batch, vocab]` and return one value a
position; `divergences.functions` explains their options, `backends.reference` their meaning at
every edge. Where logits stand there may be another source: `HiddenStates(hidden, head)`, whose
logits are not held; `Sharded(logits, group)`, a slice of a vocabulary cut over processes; for `kl`
a `TopK` list, what a service returns, of which it gives bounds. `kl_estimate` adds drawn tokens.
`policy` has the losses of policy optimisation, `rewards` the same as a penalty on rewards,
`distillation` those of distillation, and `audit` says which divergence any loss descends.
"""

from . import auditing
from .auditing import Audit, audit
from .backends import usable
from .deprecated import (
    compare_from_hidden,
    distill_terms_from_hidden,
    js_from_hidden,
    kl_from_hidden,
)
from .divergences import (
    Bounds,
    Comparison,
    HiddenStates,
    InputWarning,
    PrecisionWarning,
    Sharded,
    TopK,
    compare,
    cross_entropy,
    entropy,
    jeffreys,
    js,
    kl,
    kl_bounds,
    kl_estimate,
    log_prob,
    rounding_floor,
)
from .losses import (
    PolicyKL,
    TrustRegion,
    distill_loss,
    distill_terms,
    distill_terms_top_k,
    kl_penalties,
    kl_penalty_to_go,
    policy_kl_loss,
    rao_blackwell_kl_loss,
    reward_to_go,
)

__all__ = [
    "Audit",
    "Bounds",
    "Comparison",
    "HiddenStates",
    "InputWarning",
    "PolicyKL",
    "PrecisionWarning",
    "Sharded",
    "TopK",
    "TrustRegion",
    "audit",
    "auditing",
    "compare",
    "compare_from_hidden",
    "cross_entropy",
    "distill_loss",
    "distill_terms",
    "distill_terms_from_hidden",
    "distill_terms_top_k",
    "entropy",
    "jeffreys",
    "js",
    "js_from_hidden",
    "kl",
    "kl_bounds",
    "kl_estimate",
    "kl_from_hidden",
    "kl_penalties",
    "kl_penalty_to_go",
    "log_prob",
    "policy_kl_loss",
    "rao_blackwell_kl_loss",
    "reward_to_go",
    "rounding_floor",
    "usable",
]
