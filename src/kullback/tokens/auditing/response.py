"""How hard one token is pushed, by how far apart policy and reference are at it.

Which to use: `response`; a share of zeros in it is a clamp that switches the divergence off.
"""

import itertools
import math

import torch

from .calls import Caller

__all__ = ["response"]

FINE = [round(-8 + 0.2 * i, 1) for i in range(81)]
GRID = [*range(-24, -8), *FINE, *range(9, 25)]  # nats


def response(caller: Caller) -> list[tuple[float, float]]:
    """Return pairs (log policy/ref of the sampled token, ∂loss/∂ log policy of it), on-policy.

    One token from a vocabulary of two: the derivative of the loss with respect to the sampled
    token's logit, divided by that of its log-probability. Positive pushes the probability down.
    From −24 to 24 nats; the likelier of the two probabilities is one half.

    >>> pairs = dict(response(Caller(lambda logp, ref_logp: 0.5 * (logp - ref_logp) ** 2)))
    >>> round(pairs[2.0], 9), round(pairs[-3.0], 9)
    (2.0, -3.0)
    """
    found = {float(x): _push(caller, float(x)) for x in GRID}
    for low, high in itertools.pairwise(list(found)):
        if (found[low] == 0.0) != (found[high] == 0.0) and 0.0 not in (low, high):
            found |= _edge(caller, low, high, still=found[low] == 0.0)
    return sorted(found.items())


def _edge(caller: Caller, low: float, high: float, *, still: bool) -> dict[float, float]:
    """Return the push on both sides of where it begins or ends, to within 0.01 nats."""
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if (_push(caller, middle) == 0.0) == still else (low, middle)
    return {low: _push(caller, low), high: _push(caller, high)}


def _push(caller: Caller, log_ratio: float) -> float:
    policy, ref = (_logits(min(0.0, sign * log_ratio)) for sign in (1.0, -1.0))
    tokens = torch.zeros(caller.batch, 1, dtype=torch.long)
    policies, refs = (table.expand(caller.batch, 1, 2) for table in (policy, ref))
    push = caller.push(policies, refs, policies, tokens)[:, 0, 0].sum()
    return float(push) / (1 - float(policy.softmax(-1)[0, 0, 0]))


def _logits(log_half: float) -> torch.Tensor:
    """Return `[1, 1, 2]` logits whose first token has probability e^log_half / 2."""
    probability = torch.tensor(0.5 * math.exp(log_half), dtype=torch.float64)
    return torch.stack([probability.log(), torch.log1p(-probability)])[None, None]
