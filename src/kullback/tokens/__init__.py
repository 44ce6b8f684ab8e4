"""Floor 3, tokens: exact divergences between next-token distributions, position by position.

Which to use: the functions re-exported here take logits `[*batch, vocab]` and return one value a
position; `divergences` explains their options, `reference` their meaning at every edge.
`kl_from_hidden` and its like take hidden states and heads, and hold no logits; `parallel` takes
logits cut over processes; `kl_bounds` and `kl_estimate` take what a service returns, its top k.
`policy` has the losses of policy optimisation, `rewards` the same as a penalty on rewards,
`distill` those of distillation, and `audit` says which divergence any loss descends.
"""

from .auditing.findings import Audit
from .auditing.run import audit
from .backends.choose import usable
from .divergences.hidden_states import compare_from_hidden, js_from_hidden, kl_from_hidden
from .divergences.logits import (
    Comparison,
    InputWarning,
    compare,
    cross_entropy,
    entropy,
    jeffreys,
    js,
    kl,
    log_prob,
)
from .divergences.rounding import PrecisionWarning, rounding_floor
from .divergences.top_k import Bounds, TopK, kl_bounds, kl_estimate
from .losses.distillation import (
    distill_loss,
    distill_terms,
    distill_terms_from_hidden,
    distill_terms_top_k,
)
from .losses.policy import policy_kl_loss, rao_blackwell_kl_loss
from .losses.policy_kl import PolicyKL, TrustRegion
from .losses.rewards import kl_penalties, kl_penalty_to_go, reward_to_go

__all__ = [
    "Audit",
    "Bounds",
    "Comparison",
    "InputWarning",
    "PolicyKL",
    "PrecisionWarning",
    "TopK",
    "TrustRegion",
    "audit",
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
