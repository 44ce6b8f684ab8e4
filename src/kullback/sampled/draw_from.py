"""Draws that come from a generator of one's own, which torch's distributions do not take."""

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

__all__ = ["draw_from"]


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
