"""A short Hamiltonian Monte Carlo run from draws of q: where q falls short and weights are too few.

Which to use: `polish`, through the engine, which fits a mixture to what it returns. Many chains run
side by side in q's frame, where steps of one size suit all directions; each begins at a draw of q.
Reference: Neal (2011), "MCMC using Hamiltonian dynamics"; Gelman and Rubin (1992) for R-hat.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

__all__ = ["Polished", "polish"]


@dataclass(frozen=True, slots=True)
class Polished:
    """Draws `[m, d]` of the chains' later halves, the largest split R-hat, gradients spent."""

    draws: Tensor
    r_hat: float
    gradients: int


def polish(target: Target, frame: Frame, first: Tensor, generator: torch.Generator) -> Polished:
    """Run chains from first `[n, d]`, draws of q, in its frame; keep the second half of each.

    The step size is adapted in the first half, to four accepted proposals of five, and the frame
    four times to the chains' own covariance.
    """
    u, count = frame.inwards(first), 0
    warm, recent = limits.CHAIN_STEPS // 2, []

    def local(place: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = target.score(frame.outwards(place))
        bad = ~(value.isfinite() & slope.isfinite().all(1))
        return torch.where(bad, -math.inf, value), slope.nan_to_num(0, 0, 0) @ frame.factor

    value, slope = local(u)
    step, kept = limits.FIRST_LEAPFROG, []
    for number in range(limits.CHAIN_STEPS):
        speed = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        size = step * (0.5 + torch.rand(len(u), 1, generator=generator, dtype=u.dtype))
        place, push, there, energy = u, slope, value, value - 0.5 * speed.square().sum(1)
        for _ in range(limits.LEAPFROGS):
            speed = speed + 0.5 * size * push
            place = place + size * speed
            there, push = local(place)
            speed = speed + 0.5 * size * push
            count += len(u)
        log_ratio = there - 0.5 * speed.square().sum(1) - energy
        log_ratio = log_ratio.nan_to_num(-math.inf, 0.0, -math.inf)
        drawn = torch.rand(len(u), generator=generator, dtype=u.dtype).log()
        taken = drawn < log_ratio
        u = torch.where(taken[:, None], place, u)
        slope = torch.where(taken[:, None], push, slope)
        value = torch.where(taken, there, value)
        if number < warm:
            recent.append(frame.outwards(u))
            accepted = float(log_ratio.clamp_max(0).exp().mean())
            step *= math.exp(limits.LEAPFROG_GAIN * (accepted - limits.ACCEPTED_SHARE))
            if (number + 1) % (warm // limits.CHAIN_FRAMES) == 0:
                states = torch.cat(recent[len(recent) // 2 :])
                frame, recent = Frame.of_draws(states), []
                u = frame.inwards(states[-len(u) :])
                value, slope = local(u)
        else:
            kept.append(u)
    chains = torch.stack(kept)
    return Polished(frame.outwards(chains.flatten(0, 1)), _r_hat(chains), count)


def _r_hat(chains: Tensor) -> float:
    """Return the largest split R-hat of the coordinates of `[steps, chains, d]`."""
    half = len(chains) // 2
    parts = torch.cat([chains[:half], chains[half : 2 * half]], 1)
    within = parts.var(0).mean(0).clamp_min(1e-300)
    between = parts.mean(0).var(0)
    return float((((half - 1) / half * within + between) / within).sqrt().max())
