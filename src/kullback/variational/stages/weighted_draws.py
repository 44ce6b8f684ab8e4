"""Draws of q and of wider laws with importance weights: how far they move q's moments.

Which to use: `pool_of` draws from q and beyond it, `more_draws` again about the same paths;
`moment_shift` says how far the weighted draws are from q's own, `Pooled.missed` how much of p they
find where q has none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.diagnostics.defensive_sampling import (
    Ridge,
    WiderDraws,
    draw_wider,
    mixture_log_weights,
    pooled,
    unreached,
)
from kullback.variational.diagnostics.diagnose import ridges_of
from kullback.variational.diagnostics.evidence import Pool, Sample
from kullback.variational.families import Family
from kullback.variational.optimise.moment_shift import Weighed
from kullback.variational.target.density import Target

from .plan import Problem

__all__ = [
    "Pooled",
    "flat_values",
    "moment_shift",
    "more_draws",
    "pool_of",
    "pooled_with",
    "sample_of",
]


@dataclass(frozen=True, slots=True)
class Pooled:
    """Draws of q, those of a wider law and of funnels, and all with weights p/(their mixture).

    wide: None where q's own weights have light tails and are enough.

    missed: share of p where q has next to no draws. size: effective draws of the pool.
    """

    sample: Sample
    wide: WiderDraws | None
    ridges: list[Ridge]
    pool: Pool
    missed: float

    @property
    def draws(self) -> Tensor:
        """Draws of q `[n, d]`."""
        return self.sample.draws

    @property
    def size(self) -> float:
        """Effective draws."""
        log_weights = self.pool.log_weights
        usable = len(log_weights) > 0 and bool(log_weights.isfinite().all())
        return float(1 / log_weights.softmax(0).square().sum()) if usable else 0.0

    @property
    def weighed(self) -> Weighed:
        """All draws, with log p, log q and the log density of the mixture."""
        of, wide = self.sample, self.wide
        if wide is None:
            return Weighed(of.draws, of.log_p, of.log_q, of.log_q)
        draws, log_p, log_q = (
            torch.cat(pair)
            for pair in ((of.draws, wide.draws), (of.log_p, wide.log_p), (of.log_q, wide.log_q))
        )
        of_q = wide._replace(log_p=wide.log_q)
        return Weighed(draws, log_p, log_q, log_q - mixture_log_weights(of.log_q, of.log_q, of_q))

    def resampled(self, number: int, generator: torch.Generator) -> Tensor:
        """Draw from the pool in proportion to the weights, `[number, d]`."""
        shares = self.pool.log_weights.softmax(0)
        chosen = torch.multinomial(shares, number, replacement=True, generator=generator)
        return self.pool.draws[chosen]


def sample_of(problem: Problem, family: Family, number: int) -> Sample:
    """Draw from q, with log p, log q and the gradient of log p."""
    z = family.sample(number, problem.generator)
    log_p, slope = problem.target.score(z)
    with torch.no_grad():
        log_q = family.log_prob(z)
    return Sample(draws=z, log_p=log_p, log_q=log_q, scores=(slope, slope))


def more_draws(problem: Problem, family: Family, seen: Pooled) -> Pooled:
    """Draw anew where a few draws do not settle it, about the paths that they showed."""
    z = family.sample(limits.MATCHED_DRAWS, problem.generator)
    with torch.no_grad():
        log_p, log_q = problem.target.log_density(z), family.log_prob(z)
    return pooled_with(problem, family, Sample(draws=z, log_p=log_p, log_q=log_q), seen.ridges)


def pool_of(problem: Problem, family: Family, number: int = limits.MATCHED_DRAWS) -> Pooled:
    """Draw from q and beyond it."""
    sample = sample_of(problem, family, number)
    ridges = ridges_of(problem.target.log_density, sample)
    return pooled_with(problem, family, sample, ridges)


def pooled_with(problem: Problem, family: Family, sample: Sample, ridges: list[Ridge]) -> Pooled:
    """Add draws of a wider law, and about the paths of `ridges_of`, to a sample of q."""
    z, log_p, log_q = sample.draws, sample.log_p, sample.log_q
    wide = draw_wider(
        problem.target.log_density,
        lambda x: family.log_prob(x).detach(),
        z,
        number=limits.WIDE_DRAWS * len(z),
        ridges=ridges,
        generator=problem.generator,
    )
    missed = unreached(log_p, log_q, wide, times=limits.UNREACHED_RATIO)
    return Pooled(sample, wide, ridges, pooled(z, log_p, log_q, wide), missed)


def moment_shift(target: Target, z: Tensor, pool: Pool) -> tuple[float, float, float]:
    """Return how far weighted draws move q's moments, by the parameters as they were declared.

    The largest move of a mean (sd) or log sd beyond its standard error, that error, and the
    effective draws.
    """
    if len(pool.draws) == 0 or not bool(pool.log_weights.isfinite().all()):
        return 0.0, math.inf, 0.0
    flat = flat_values(target, torch.cat([z, pool.draws]))
    own, every = flat[: len(z)], flat[len(z) :]
    w = pool.log_weights.softmax(0)
    mean = w @ every
    squares = (every - mean).square()
    variance = (w @ squares).clamp_min(1e-300)
    sd = own.std(0).clamp_min(1e-300)
    moves = torch.cat([(mean - own.mean(0)) / sd, 0.5 * (variance / sd**2).log()]).abs()
    of_mean = (w.square() @ squares).sqrt() / sd
    of_log_sd = (w.square() @ (squares - variance).square()).sqrt() / (2 * variance)
    errors = (torch.cat([of_mean, of_log_sd]).square() + 1 / len(z)).sqrt()
    worst = int((moves - limits.MOMENT_SHIFT_ERRORS * errors).argmax())
    return float(moves[worst]), float(errors[worst]), float(1 / w.square().sum())


def flat_values(target: Target, z: Tensor) -> Tensor:
    """Return all parameters as they were declared, side by side, `[n, m]`."""
    return torch.cat([v.reshape(len(v), -1) for v in target.constrain(z).values()], 1)
