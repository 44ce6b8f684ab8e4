"""Losses on language models whose gradients are what they claim to be.

- `policy`: KL between a policy and its reference from sampled tokens, as a loss or as a penalty on
  rewards; `policy_kl`: what the loss returns;
- `distillation`: a student brought to a teacher;
- `sampled_tokens`, `sequence_sums`: log-ratios, weights and sums that the losses share;
- `input_checks`: weights and values that cannot be right; `native_policy`: the sweep in C.
"""

from .distillation import (
    distill_loss,
    distill_terms,
    distill_terms_top_k,
)
from .policy import (
    kl_penalties,
    kl_penalty_to_go,
    policy_kl_loss,
    rao_blackwell_kl_loss,
    reward_to_go,
)
from .policy_kl import PolicyKL, TrustRegion

__all__ = [
    "PolicyKL",
    "TrustRegion",
    "distill_loss",
    "distill_terms",
    "distill_terms_top_k",
    "kl_penalties",
    "kl_penalty_to_go",
    "policy_kl_loss",
    "rao_blackwell_kl_loss",
    "reward_to_go",
]
