"""Bounds on the KL between two Gaussian mixtures, which has no closed form.

Which to use: `mixture_kl_bounds`. Both sides are true bounds, not approximations.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError, require, require_type
from kullback.core.checks import message

from .gaussian import Gaussian, entropy, gaussian_kl, gaussian_of, log_overlap

__all__ = ["Bounds", "mixture_kl_bounds"]


class Bounds(NamedTuple):
    """A value lies between `lower` and `upper`, both `[*batch]`, in nats."""

    lower: Tensor
    upper: Tensor


def mixture_kl_bounds(p: Any, q: Any, *, iterations: int = 20) -> Bounds:
    """Bound `KL(p‖q)` between Gaussian mixtures from both sides: `lower ≤ KL(p‖q) ≤ upper`.

    p, q: `MixtureSameFamily` of `Normal`, `Independent(Normal, 1)` or `MultivariateNormal`
    components over the same event; a single Gaussian counts as a mixture of one → `[*batch]`.
    `E_p[log p]` and `E_p[log q]` are each bounded below variationally and above by Jensen's
    inequality (the product of Gaussians); together they bound the difference. The upper side is
    the smaller of that and of the variational upper bound, a matching of the components improved
    `iterations` ≥ 0 times, which is the KL itself for one component each; the lower side is at
    least 0. Differentiable; a weight of 0 counts as the smallest positive float.
    Raises `ArgumentTypeError` for anything but such mixtures.
    Reference: Hershey and Olsen (2007), "Approximating the Kullback Leibler divergence between
    Gaussian mixture models"; Durrieu, Thiran and Kelly (2012), "Lower and upper bounds for
    approximation of the Kullback-Leibler divergence between Gaussian mixture models".

    >>> def mixture(loc):
    ...     parts = families.Normal(torch.tensor([-loc, loc]), torch.ones(2))
    ...     return families.MixtureSameFamily(families.Categorical(torch.ones(2)), parts)
    >>> lower, upper = mixture_kl_bounds(mixture(3.0), mixture(2.0))
    >>> bool(0 <= lower <= upper)
    True
    """
    require(iterations >= 0, "iterations", "at least 0", iterations)
    (log_p, parts_p), (log_q, parts_q) = _components(p, "p"), _components(q, "q")
    events = (parts_p.loc.shape[-1], parts_q.loc.shape[-1])
    require(events[0] == events[1], "p and q", "the same event size", events)
    rows = parts_p.at(-1)
    inside, across = gaussian_kl(rows, parts_p.at(-2)), gaussian_kl(rows, parts_q.at(-2))
    own, to_p, to_q = entropy(parts_p), log_p[..., None, :], log_q[..., None, :]
    below_p = (to_p - inside).logsumexp(-1) - own
    below_q = (to_q - across).logsumexp(-1) - own
    above_p = (to_p + log_overlap(rows, parts_p.at(-2))).logsumexp(-1)
    above_q = (to_q + log_overlap(rows, parts_q.at(-2))).logsumexp(-1)
    weights = log_p.exp()
    lower = (weights * (below_p - above_q)).sum(-1).clamp(min=0)
    upper = (weights * (above_p - below_q)).sum(-1)
    return Bounds(lower, torch.minimum(upper, _matched(log_p, log_q, across, iterations)))


def _components(distribution: Any, name: str) -> tuple[Tensor, Gaussian]:
    """Return the log weights `[*batch, K]` and the components with batch shape `[*batch, K]`."""
    require_type(distribution, families.Distribution, name)
    if isinstance(distribution, families.MixtureSameFamily):
        parts = gaussian_of(distribution.component_distribution)
        log_weights = distribution.mixture_distribution.probs.log()
    else:
        single = gaussian_of(distribution)
        parts = single and single.at(-1)
        log_weights = distribution.mean.new_zeros(*distribution.batch_shape, 1)
    if parts is None:
        raise ArgumentTypeError(message(name, "a mixture of Gaussians", str(distribution)))
    return log_weights.clamp(min=math.log(torch.finfo(log_weights.dtype).tiny)), parts


def _matched(log_p: Tensor, log_q: Tensor, pairwise: Tensor, iterations: int) -> Tensor:
    """Return `Σ φ (log φ/ψ + KL_ab)`, Σ_b φ_ab = p_a, Σ_a ψ_ab = q_b, after alternating updates."""
    largest = torch.finfo(pairwise.dtype).max / 8
    pairwise = pairwise.clamp(max=largest)
    log_p, log_q = log_p[..., :, None], log_q[..., None, :]
    log_phi = log_psi = log_p + log_q
    for _ in range(iterations):
        log_psi = log_q + log_phi - log_phi.logsumexp(-2, keepdim=True)
        moved = log_psi - pairwise
        log_phi = log_p + moved - moved.logsumexp(-1, keepdim=True)
    value = (log_phi.exp() * (log_phi - log_psi + pairwise)).sum((-1, -2))
    return value.masked_fill(value > largest / 2, math.inf)
