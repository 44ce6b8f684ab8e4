"""What each token's log-probability is pushed by: ∂ loss / ∂ log π(token), before normalisation.

The gradient of a divergence is `E_μ[Σ_t slope_t · ∇ log π_t]` where, with W the weight p/μ (of the
token, or cumulated at level "sequence"):

- reverse, KL(π‖π_ref): `W_t · log π_t/π_ref,t`, and at level "sequence" besides it what the choice
  of this token leads to, `Σ_{u>t}` of the value terms (Tang and Munos 2025): any *unbiased* terms
  do, and those of k3 or the exact KL scatter far less than those of k1.
- forward, KL(π_ref‖π): `V_t − W_t` where V has π/μ for its last factor. `−W_t` alone is maximum
  likelihood on weighted tokens; V_t, whose `∇ log π` has mean zero, is the control variate that
  makes the slope vanish where the policies agree. Later prefixes are the reference's: they lead
  nowhere.

Reference: MATH 5.8.
"""

import torch
from torch import Tensor

from .drawn import Drawn, shifted

__all__ = ["ahead", "at_prefixes", "slope_of"]


def slope_of(drawn: Drawn, terms: Tensor, baseline: Tensor | None) -> Tensor:
    """Return the slopes `[batch, length]`, not 0 yet where masked.

    terms: the weighted value terms, or weighted exact KLs, that what lies ahead is summed from.
    baseline: exact KL of each token's distribution, subtracted from the own part; None for 0.
    """
    if drawn.direction == "forward":
        return _forward(drawn)
    own = -drawn.log_ratio if baseline is None else -drawn.log_ratio - baseline
    if drawn.weight is not None:
        own.mul_(drawn.weight)
        if drawn.vanishing:
            own = torch.where(drawn.weight == 0, 0.0, own)  # π log π tends to 0
    return own.add_(ahead(terms)) if drawn.level == "sequence" else own


def ahead(terms: Tensor) -> Tensor:
    """Return `Σ_{u>t} terms_u` over the last axis, `[batch, length]`.

    >>> ahead(torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[6., 4., 0.]])
    """
    return shifted(terms.flip(-1)).cumsum(-1).flip(-1)


def at_prefixes(drawn: Drawn, exact: Tensor) -> Tensor:
    """Return exact KLs `[batch, length]` times the weights of the prefixes they stand at."""
    if drawn.level == "token" or drawn.log_weight is None:
        return exact
    return exact * drawn.cut(shifted(drawn.log_weight).exp())


def _forward(drawn: Drawn) -> Tensor:
    pull = torch.expm1(-drawn.log_ratio).neg_()
    if drawn.log_arrival is None or drawn.weight is None:
        return pull
    lead = drawn.log_arrival.exp()
    if drawn.truncate is not None:
        return drawn.cut(lead) - drawn.weight
    return torch.where(lead == 0, -drawn.weight, lead * pull)  # the same difference, precise
