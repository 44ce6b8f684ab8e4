"""KL(p‖q) between two distributions that can be sampled and scored: draws for you.

Which to use: `kl` here when no closed form exists; `log_ratio` when the draws are already made;
`draw_from` and `densities.log_density` to make and score draws for anything else.
"""

import math
from functools import reduce
from operator import add

import torch
from torch import Generator
from torch.distributions import Distribution

from kullback.core import Estimate, require, require_type

from .densities import log_density
from .draw_from import draw_from
from .log_ratio import LogRatios
from .support import Support
from .terms import Estimator, coefficients

__all__ = ["kl"]

_NUMBERS = 1 << 20  # held at a time: draws times batch times event


def kl(
    p: Distribution,
    q: Distribution,
    *,
    draws: int = 10_000,
    estimator: Estimator = "best",
    cross_fit: bool = True,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate KL(p‖q) = E_p[log p(x) − log q(x)] from `draws` fresh draws x ~ p.

    p, q: torch distributions over one event shape; their batch shapes broadcast to the result's
    `[*batch]`, in nats. estimator, cross_fit: as in `log_ratio`. Draws are made and scored a
    piece at a time, so memory does not grow with `draws`.
    generator: where randomness comes from (torch's own generator when None, as in `p.sample`).

    Supports and tails decide first (`exact.supports.compare`): where they make KL infinite the
    value is +inf whatever is drawn. Where q has mass outside p's support the mean of r = q/p is
    M = Q(support of p), not 1: the control is centred there, `−log r + λ (r − M)`. Where M is
    not known, or the variance of r infinite, "best" is k1.
    An estimate, unbiased with the defaults, even where a closed form exists. No gradient flows.
    Errors: `TypeError` for what is no distribution; `ValueError` for event shapes that differ,
    fewer than 4 draws, and k3 or a fixed λ where M is not known. Reference: MATH 5.

    >>> from torch.distributions import Laplace, StudentT
    >>> seed = torch.Generator().manual_seed(0)
    >>> print(kl(StudentT(5.0), Laplace(0.0, 1.0), generator=seed))
    0.01459 ± 0.00021 nats
    """
    for name, given in (("p", p), ("q", q)):
        require_type(given, Distribution, name, "a torch.distributions object")
    same = p.event_shape == q.event_shape
    require(same, "q", f"the event shape of p, {list(p.event_shape)}", list(q.event_shape))
    require_type(draws, int, "draws")
    require(draws >= 4, "draws", "at least 4", draws)
    if estimator != "best":
        coefficients(estimator)
    batch = (torch.empty(p.batch_shape) + torch.empty(q.batch_shape)).shape
    p = p if p.batch_shape == batch else p.expand(batch)
    support = Support.of(p, q)
    if bool(support.infinite.all()):
        return support.settled(Estimate(support.infinite.double() * math.inf, math.inf, draws))
    support.check(estimator)
    step = max(4, _NUMBERS // max(1, math.prod(batch) * math.prod(p.event_shape)) // 2 * 2)
    pieces = (_scored(p, q, min(step, draws - start), generator) for start in range(0, draws, step))
    state = reduce(add, pieces)
    return support.settled(support.chosen(state, estimator, cross_fit=cross_fit))


def _scored(p: Distribution, q: Distribution, draws: int, generator: Generator | None) -> LogRatios:
    x = draw_from(p, draws, generator=generator)
    log_p, log_q = (log_density(of, x).movedim(0, -1) for of in (p, q))
    return LogRatios.of(log_p, log_q.expand_as(log_p))
