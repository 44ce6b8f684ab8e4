"""Is log p −inf beyond an edge? Then q is fitted by importance sampling of KL(p‖q).

Which to use: `within_edges`, which finds out whether there are edges; `meets_edges` says cheaply
whether draws of a fitted q lie beyond one.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch

from kullback.variational import limits
from kullback.variational.families import Family, FullRank
from kullback.variational.families.family import Frame
from kullback.variational.optimise import Progress, forward_kl, until_done
from kullback.variational.optimise.edges import edges, interior, proposals
from kullback.variational.optimise.starts import Start

from .missed_mass import find_other_peak
from .plan import Problem
from .to_draws import fit_to_draws
from .weighted_draws import pool_of

__all__ = ["meets_edges", "within_edges"]


def meets_edges(problem: Problem, family: Family) -> bool:
    """Say whether log p is −inf at draws of q."""
    z = family.sample(limits.CHECK_DRAWS, problem.generator)
    with torch.no_grad():
        log_p = problem.target.log_density(z)
    return int((log_p == -math.inf).sum()) > 1


def within_edges(problem: Problem) -> Iterator[Progress] | None:
    """Fit by importance sampling where log p is −inf beyond an edge; None where that cannot be.

    KL(q‖p) is infinite there for every Gaussian, KL(p‖q) is not.
    """
    target, generator, how = problem.target, problem.generator, problem.how
    small = target.rows is None and target.dim <= limits.MAX_REFINED_DIMENSIONS
    if not (how.automatic and small) or target.looped:
        return None
    points = interior(target, generator)
    if len(points) < limits.MIN_INTERIOR:
        return None
    declare = edges(target, points)
    words = "log_density is -inf in places among its mass"
    if declare:
        words = f"log_density is -inf beyond an edge. Try: {declare}"
    with torch.no_grad():
        first = proposals(points, target.log_density(points))

    def fitted(starts: list[Start], *, defensive: bool = False) -> Iterator[Progress]:
        draws = 2 * limits.MATCHED_DRAWS
        return forward_kl.adaptive(
            target, starts, FullRank, generator, draws=draws, defensive=defensive
        )

    def steps() -> Iterator[Progress]:
        last = yield from until_done(fitted(first))
        apart = _regions(problem, last.family)
        if apart:
            last = yield from until_done(fitted(apart, defensive=True))
        last = yield from _whole(problem, last)
        text = f"{last.reason}; KL(p||q) by importance sampling: {words}"
        yield replace(last, reason=text, bounded=True, declare=declare)

    return steps()


def _regions(problem: Problem, family: Family) -> list[Start]:
    """Return starts on q's region and on another, beyond log p = −inf; none where none is found."""
    here = family.absorb()
    probed = None if here is None else find_other_peak(problem, family, beyond_edges=True)
    if here is None or probed is None or probed.share < limits.NAMED_ELSEWHERE:
        return []
    if probed.draws is None or probed.log_weights is None:
        return []
    there = probed.log_weights.softmax(0) @ probed.draws
    return [Start(here, 0.0), Start(Frame(there, here.scale), 0.0)]


def _whole(problem: Problem, last: Progress) -> Generator[Progress, None, Progress]:
    """Fit what is no Gaussian to weighted draws, where a Gaussian of KL(p‖q) misses much of p."""
    if not last.converged:
        return last
    seen = pool_of(problem, last.family)
    if seen.missed <= limits.LIMITS.unreached or seen.size < limits.MIN_MATCHED_DRAWS:
        return last
    draws = seen.resampled(limits.RESAMPLED_DRAWS, problem.generator)
    best, kept = yield from fit_to_draws(problem, last, seen, draws)
    if best is last:
        return last
    text = f"{last.reason}; q had next to no draws where {seen.missed:.0%} of p is, now "
    text += f"{kept.missed:.1%}, by a {best.family.name} fitted to weighted draws"
    return replace(best, loss=last.loss, converged=True, reason=text)
