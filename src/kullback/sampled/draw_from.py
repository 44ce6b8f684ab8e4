"""Draws that come from a generator of one's own, which torch's distributions do not take.

Which to use: `draw_from`; `sampler_fault` to ask whether a distribution's sampler is known wrong.
"""

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, LKJCholesky

from kullback.core import require

__all__ = ["draw_from", "sampler_fault"]


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
