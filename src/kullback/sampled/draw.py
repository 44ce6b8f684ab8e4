"""KL(p‖q) between two distributions that can be sampled and scored: draws for you.

Which to use: `kl` here when no closed form exists; `log_ratio` when the draws are already made;
`draw_from` and `log_density` to make and score draws for anything else.
"""

import math
from functools import reduce
from operator import add

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from kullback.core import Estimate, require, require_type

from .log_ratio import LogRatios
from .terms import Estimator

__all__ = ["draw_from", "kl", "log_density"]

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

    An estimate, unbiased with the defaults, even where a closed form exists. A draw outside the
    support of q gives +inf, which is the truth. No gradient flows.
    Errors: `TypeError` for what is no distribution; `ValueError` for event shapes that differ and
    fewer than 4 draws. Reference: MATH 5.

    >>> from torch.distributions import Laplace, Normal
    >>> seed = torch.Generator().manual_seed(0)
    >>> print(kl(Laplace(0.0, 1.0), Normal(0.0, 1.0), draws=20_000, generator=seed))
    0.2213 ± 0.0075 nats
    """
    for name, given in (("p", p), ("q", q)):
        require_type(given, Distribution, name, "a torch.distributions object")
    same = p.event_shape == q.event_shape
    require(same, "q", f"the event shape of p, {list(p.event_shape)}", list(q.event_shape))
    require_type(draws, int, "draws")
    require(draws >= 4, "draws", "at least 4", draws)
    batch = (torch.empty(p.batch_shape) + torch.empty(q.batch_shape)).shape
    p = p if p.batch_shape == batch else p.expand(batch)
    step = max(4, _NUMBERS // max(1, math.prod(batch) * math.prod(p.event_shape)) // 2 * 2)
    pieces = (_scored(p, q, min(step, draws - start), generator) for start in range(0, draws, step))
    return reduce(add, pieces).estimate(estimator, cross_fit=cross_fit)


def _scored(p: Distribution, q: Distribution, draws: int, generator: Generator | None) -> LogRatios:
    x = draw_from(p, draws, generator=generator)
    log_p, log_q = p.log_prob(x).movedim(0, -1), log_density(q, x).movedim(0, -1)
    return LogRatios.of(log_p, log_q.expand_as(log_p))


def draw_from(p: Distribution, draws: int, *, generator: Generator | None = None) -> Tensor:
    """Draw `[draws, *batch, *event]` with a generator, which torch's distributions do not take.

    generator: seeds the draws and advances; torch's own, as in `p.sample`, when None. No gradient.

    >>> seeds = (torch.Generator().manual_seed(0) for _ in range(2))
    >>> first, second = (
    ...     draw_from(torch.distributions.Laplace(0.0, 1.0), 3, generator=s) for s in seeds
    ... )
    >>> bool((first == second).all())
    True
    """
    if generator is None:
        return p.sample((draws,))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return p.sample((draws,))


def log_density(q: Distribution, x: Tensor) -> Tensor:
    """Return log q(x), −inf for x outside q's support, which torch would refuse to score.

    x: `[*sample, *batch, *event]` → `[*sample, *batch]`, in nats.

    >>> log_density(torch.distributions.Exponential(2.0), torch.tensor([-1.0, 0.0]))
    tensor([  -inf, 0.6931])
    """
    try:
        inside: Tensor = q.support.check(x)  # type: ignore[union-attr]
    except NotImplementedError:
        return q.log_prob(x)
    if bool(inside.all()):
        return q.log_prob(x)
    mask = inside.reshape(*inside.shape, *[1] * len(q.event_shape)).expand(x.shape)
    stand_in = draw_from(q, 1, generator=Generator().manual_seed(0)).expand(x.shape)
    return q.log_prob(torch.where(mask, x, stand_in)).masked_fill(~inside, -math.inf)
