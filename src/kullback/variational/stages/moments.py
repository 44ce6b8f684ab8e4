"""Are q's moments those of p? A mixture, a move or a Hamiltonian run where they are not.

Which to use: `match_moments` where they are far off, `move_to_moments` where they are a little off,
by the draws that the first returned; `hamiltonian_moments` where there are too many dimensions for
weighted draws.
"""

import functools
import math
import time
from collections.abc import Generator
from dataclasses import replace

import torch

from kullback.sampled import pareto_k
from kullback.variational import limits
from kullback.variational.diagnostics.diagnose import ridges_of
from kullback.variational.diagnostics.evidence import Pool, by_scores
from kullback.variational.families import Family, FullRank, Mixture
from kullback.variational.families.family import Frame
from kullback.variational.optimise import Progress, forward_kl, until_done
from kullback.variational.optimise.hamiltonian import hamiltonian
from kullback.variational.optimise.moment_shift import moved_to_moments, moves
from kullback.variational.target.density import Target

from .plan import COMPONENTS, Problem
from .weighted_draws import (
    Pooled,
    flat_values,
    moment_shift,
    more_draws,
    pool_of,
    pooled_with,
    sample_of,
)

__all__ = ["hamiltonian_moments", "match_moments", "moments_agree", "move_to_moments"]


def _close_by(problem: Problem, family: Family) -> tuple[bool, Pooled]:
    """Say by a few draws whether no moment of q is off and next to nothing is missed.

    Either q's own weights have light tails and move no moment; or pooled draws move none. The draws
    are returned.
    """
    sample = sample_of(problem, family, limits.CLOSE_DRAWS)
    log_weights = sample.log_weights
    if float(pareto_k(log_weights)) < limits.LIMITS.light:
        pool = Pool(sample.draws, log_weights)
        if moment_shift(problem.target, sample.draws, pool)[0] < limits.MIN_MOMENT_SHIFT:
            return True, Pooled(sample, None, [], pool, 0.0)
    ridges = ridges_of(problem.target.log_density, sample)
    seen = pooled_with(problem, family, sample, ridges)
    whole = seen.missed < limits.CLOSE_MISSED * limits.LIMITS.unreached
    enough = seen.size > limits.MIN_MATCHED_DRAWS
    return enough and whole and moments_agree(problem.target, seen), seen


def moments_agree(target: Target, seen: Pooled) -> bool:
    """Say whether p's moments are q's, both by the same pooled draws.

    With its errors the difference must be below what many draws allow.
    """
    known = seen.weighed
    w, v = (known.weights(logs) for logs in (known.log_p, known.log_q))
    most = moves(flat_values(target, known.draws), w, v).most
    own = limits.MOMENT_SHIFT_ERRORS / math.sqrt(limits.MATCHED_DRAWS)
    return bool((most < limits.MIN_MOMENT_SHIFT + own).all())


def match_moments(
    problem: Problem, last: Progress
) -> Generator[Progress, None, tuple[Progress, Pooled]]:
    """Fit a mixture to p's own moments, KL(p‖q), where weighted draws show that q's are off.

    Returns what is kept, with the draws that settle it.
    """
    target, begin = problem.target, time.perf_counter()
    close, first = _close_by(problem, last.family)
    if close:
        return last, first
    seen = more_draws(problem, last.family, first)
    if seen.size < limits.MIN_MATCHED_DRAWS < first.size:  # a few draws that weigh much: what is
        seen = first  # fitted to either is judged by draws of its own
    kept = seen
    before, error, size = moment_shift(target, seen.draws, seen.pool)
    if (
        size < limits.MIN_MATCHED_DRAWS
        or before < limits.MIN_MOMENT_SHIFT + limits.MOMENT_SHIFT_ERRORS * error
    ):
        return last, seen
    make = functools.partial(Mixture, components=COMPONENTS)
    best, least = last, limits.MIN_MATCHED_GAIN * before
    for _ in range(limits.MATCHED_ROUNDS):
        now = yield from until_done(
            forward_kl.maximum_likelihood(
                seen.resampled(limits.RESAMPLED_DRAWS, problem.generator),
                make,
                problem.generator,
                iterations=limits.MATCHED_ITERATIONS,
            )
        )
        seen = pool_of(problem, now.family)
        after, _, size = moment_shift(target, seen.draws, seen.pool)
        if size < limits.MIN_MATCHED_DRAWS:
            break
        if after < least:
            best, least, kept = now, after, seen
    cost = f"importance sampling of KL(p||q), {time.perf_counter() - begin:.1f} s"
    if best is last:
        tried = replace(last, reason=f"{last.reason}; {cost}, was tried and not kept")
        return tried, kept
    text = f"converged: moments were {before:.2f} off, now {least:.2f}, by {cost}; {last.reason}"
    return replace(best, loss=last.loss, converged=True, reason=text, improper=False), kept


def move_to_moments(problem: Problem, last: Progress, seen: Pooled) -> Progress:
    """Move and scale q where weighted draws show that its moments are a little off."""
    target = problem.target
    if seen.size < limits.MIN_MATCHED_DRAWS or seen.missed > limits.LIMITS.unreached:
        return last
    found = moved_to_moments(last.family, seen.weighed, lambda z: flat_values(target, z))
    if found is None:
        return last
    family, before, after = found
    text = f"{last.reason}; q moved to weighted moments, which were {before:.2f} off, now"
    searched = None if last.searched is None else (family, last.searched[1])
    return replace(last, family=family, searched=searched, reason=f"{text} {after:.2f}")


def hamiltonian_moments(problem: Problem, last: Progress) -> Progress:
    """Give a large Gaussian the means and sds of a short Hamiltonian run where p is not Gaussian.

    Its correlations stay: a run has too few draws for them. Where the scores of p at q's draws are
    linear in z, as a Gaussian's are, there is no run.
    """
    target, begin = problem.target, time.perf_counter()
    generator = torch.Generator().manual_seed(0)  # its own: other fits keep their draws
    frame = last.family.absorb()
    whole = target.rows is None and not target.looped and problem.settings.objective == "elbo"
    if not (problem.how.automatic and whole) or frame is None or not frame.is_dense:
        return last
    z = last.family.sample(problem.settings.evaluation_draws, generator)
    log_p, slope = target.score(z)
    difference = slope + frame.inwards(z) @ torch.linalg.inv(frame.factor)
    usable = bool(difference.isfinite().all()) and len(z) > 2 * target.dim
    equal = torch.full((len(z),), 1 / len(z), dtype=torch.float64)
    if not usable or by_scores(z, difference, equal).residual < limits.MIN_SCORE_RESIDUAL:
        return last
    first = z[log_p.isfinite()][: limits.CHAINS]
    if len(first) < limits.CHAINS:
        return last
    chains = hamiltonian(target, frame, first, generator)
    words = f"a Hamiltonian run, {time.perf_counter() - begin:.1f} s"
    if chains.moving > limits.MAX_CHAIN_MOVING or not chains.error <= limits.MAX_CHAIN_ERROR:
        text = f"{words}, was tried and not kept: its moments still move by {chains.moving:.2f} sd"
        text += f" and have errors of up to {chains.error:.2f} sd"
        return replace(last, reason=f"{last.reason}; {text}")
    mean, sd = chains.pooled.mean(0), chains.pooled.std(0)
    moved = torch.cat([(mean - frame.shift) / frame.sd, (sd / frame.sd).log()]).abs().max()
    better = FullRank(Frame.dense(mean, (sd / frame.sd)[:, None] * frame.factor))
    text = f"{last.reason}; means and sds by {words}: they moved by up to {float(moved):.2f} sd"
    return replace(last, family=better, reason=text)
