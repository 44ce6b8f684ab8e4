"""Is log p −inf beyond an edge? Then q is fitted by importance sampling of KL(p‖q).

Which to use: `within_edges`, which finds out whether there are edges; `meets_edges` says cheaply
whether draws of a fitted q lie beyond one.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from kullback.variational import limits
from kullback.variational.families import Family, FullRank
from kullback.variational.optimise import Progress, forward_kl
from kullback.variational.optimise.edges import edges, interior, proposals

from .plan import Problem

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
    declare = edges(target, points) if len(points) >= limits.MIN_INTERIOR else ""
    if not declare:
        return None
    words = f"log_density is -inf beyond an edge. Try: {declare}"
    with torch.no_grad():
        first = proposals(points, target.log_density(points))
    fitted = forward_kl.adaptive(target, first, FullRank, generator, draws=2 * limits.MATCHED_DRAWS)

    def steps() -> Iterator[Progress]:
        for now in fitted:
            text = f"{now.reason}; KL(p||q) by importance sampling: {words}"
            last = replace(now, reason=text, bounded=True, declare=declare)
            yield last if now.done else now

    return steps()
