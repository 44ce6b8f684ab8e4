"""Draws that come from a generator of one's own, which torch's distributions do not take.

Which to use: `draw_from`; `sampler_fault` to ask whether a distribution's sampler is known wrong.

log q(x) as it is: −inf wherever q has no mass, for any x.

torch refuses to score an x outside the support, and where a family was given probabilities it
moves them away from 0 and 1 first: a Bernoulli(0) would score a 1 at −15.9 nats, not −inf.
"""

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    GeneralizedPareto,
    Independent,
    LKJCholesky,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
)
from torch.nn.functional import logsigmoid

from kullback.core import require

__all__ = ["draw_from", "log_density", "sampler_fault"]


def draw_from(p: Distribution, draws: int, *, generator: Generator | None = None) -> Tensor:
    """Draw `[draws, *batch, *event]` with a generator, which torch's distributions do not take.

    generator: seeds the draws and advances; torch's own, as in `p.sample`, when None. No gradient.
    Raises `ArgumentValueError` where `sampler_fault` knows that the draws would be wrong.

    >>> seeds = (torch.Generator().manual_seed(0) for _ in range(2))
    >>> first, second = (
    ...     draw_from(torch.distributions.Laplace(0.0, 1.0), 3, generator=s) for s in seeds
    ... )
    >>> bool((first == second).all())
    True
    """
    fault = sampler_fault(p)
    require(fault is None, "p", "a distribution whose sampler is right", fault, _INSTEAD)
    if generator is None:
        return p.sample((draws,))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return p.sample((draws,))


def sampler_fault(p: Distribution) -> str | None:
    """Say what is wrong with the draws of p, also of one inside it; None when nothing is known.

    torch's `LKJCholesky.sample` in 3 dimensions and more: the square of row i's length left of the
    diagonal must be Beta(½(i − 1), …), and is drawn from Beta(i − 3/2, …). Its `log_prob` is right.
    Reference: Lewandowski, Kurowicka and Joe (2009), section 3.2 (the onion method).

    >>> right, wrong = (torch.distributions.LKJCholesky(n, 1.0) for n in (2, 3))
    >>> sampler_fault(right) is None
    True
    >>> sampler_fault(wrong)
    'LKJCholesky of 3 dimensions, which torch draws from the wrong law'
    """
    if isinstance(p, LKJCholesky):
        size = p.dim
        return f"LKJCholesky of {size} dimensions, {_FAULT}" if size >= 3 else None
    parts = [getattr(p, name, None) for name in ("base_dist", "_component_distribution")]
    faults = (sampler_fault(part) for part in parts if isinstance(part, Distribution))
    return next((fault for fault in faults if fault), None)


_FAULT = "which torch draws from the wrong law"
_INSTEAD = "exact.closed_forms.kl between two LKJCholesky, or draws of your own"


def log_density(q: Distribution, x: Tensor) -> Tensor:
    """Return log q(x), −inf for x outside q's support or where its probability is exactly 0.

    x: `[*sample, *batch, *event]` → `[*sample, *batch]`, in nats, differentiable where q's own
    `log_prob` is. Mixtures and `Independent` are taken apart, so that this holds inside them.

    >>> log_density(torch.distributions.Exponential(2.0), torch.tensor([-1.0, 0.0]))
    tensor([  -inf, 0.6931])
    >>> log_density(Bernoulli(0.0), torch.tensor([0.0, 1.0]))
    tensor([0., -inf])
    """
    if isinstance(q, Independent | MixtureSameFamily):
        return _scored(q, x)
    try:
        inside: Tensor = q.support.check(x)  # type: ignore[union-attr]
    except NotImplementedError:
        return q.log_prob(x)
    if bool(inside.all()):
        return _scored(q, x)
    mask = inside.reshape(*inside.shape, *[1] * len(q.event_shape))
    stand_in = draw_from(q, 1, generator=Generator().manual_seed(0))[0]
    return _scored(q, torch.where(mask, x, stand_in)).masked_fill(~inside, -math.inf)


@singledispatch
def _scored(q: Distribution, x: Tensor) -> Tensor:
    return q.log_prob(x)


@_scored.register(Independent)
def _independent(q: Any, x: Tensor) -> Tensor:
    dims = q.reinterpreted_batch_ndims
    scores = log_density(q.base_dist, x)
    return scores.sum(tuple(range(-dims, 0))) if dims else scores


@_scored.register
def _mixture(q: MixtureSameFamily, x: Tensor) -> Tensor:
    axis = -1 - len(q.event_shape)
    parts = log_density(q.component_distribution, x.unsqueeze(axis))
    return torch.logsumexp(parts + _log_masses(q.mixture_distribution), -1)


@_scored.register
def _bernoulli(q: Bernoulli, x: Tensor) -> Tensor:
    return _powers(q, x, 1.0 - x)


@_scored.register
def _binomial(q: Binomial, x: Tensor) -> Tensor:
    count = q.total_count.to(x)
    ways = torch.lgamma(count + 1) - torch.lgamma(x + 1) - torch.lgamma(count - x + 1)
    return ways + _powers(q, x, count - x)


@_scored.register
def _negative_binomial(q: NegativeBinomial, x: Tensor) -> Tensor:
    count = q.total_count.to(x)
    ways = torch.lgamma(count + x) - torch.lgamma(x + 1) - torch.lgamma(count)
    return ways + _powers(q, x, count)


@_scored.register
def _categorical(q: Categorical, x: Tensor) -> Tensor:
    masses = _log_masses(q)
    index = x.long()[..., None] + torch.zeros_like(masses[..., :1], dtype=torch.long)
    return masses.expand(*index.shape[:-1], -1).gather(-1, index)[..., 0]


@_scored.register
def _one_hot(q: OneHotCategorical, x: Tensor) -> Tensor:
    return _categorical(q._categorical, x.argmax(-1))


@_scored.register
def _multinomial(q: Multinomial, x: Tensor) -> Tensor:
    ways = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return ways + _times(x, _log_masses(q._categorical)).sum(-1)


@_scored.register
def _generalized_pareto(q: GeneralizedPareto, x: Tensor) -> Tensor:
    """`−log σ − (1 + ξ) log(1 + ξ z)/ξ`, z = (x − μ)/σ; torch's own fails in float64."""
    z, shape = (x - q.loc) / q.scale, q.concentration
    tail = torch.log1p(shape * z) / torch.where(shape == 0, 1.0, shape)
    return -q.scale.log() - (1 + shape) * torch.where(shape == 0, z, tail)


def _powers(q: Any, successes: Tensor, failures: Tensor) -> Tensor:
    """Return `log p^successes (1 − p)^failures`."""
    if not _by_probs(q):
        yes, no = logsigmoid(q.logits), logsigmoid(-q.logits)
        return _times(successes, yes) + _times(failures, no)
    yes, no = torch.where(successes == 0, 1.0, q.probs), torch.where(failures == 0, 0.0, q.probs)
    return successes * yes.log() + failures * torch.log1p(-no)


def _times(count: Tensor, log: Tensor) -> Tensor:
    """Return count · log, 0 where the count is 0 even if the log is −inf."""
    return count * torch.where(count == 0, 0.0, log)


def _log_masses(q: Any) -> Tensor:
    masses: Tensor = q.probs.log() if _by_probs(q) else q.logits
    return masses


def _by_probs(q: Any) -> bool:
    """Say whether the family was given probabilities, which hold exact zeros, or logits."""
    return q._param is q.__dict__.get("probs")
