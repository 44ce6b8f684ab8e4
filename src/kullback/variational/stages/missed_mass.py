"""Where has p mass that q has not? Another peak, or a part that a flow reaches.

Which to use: `find_other_peak`, `was_fitted` and `with_peak` before a second fit;
`reach_missed_mass` after it, with the weighted draws that show what is missed.
"""

import copy
import functools
import importlib.util
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.diagnostics.missed_modes import Probed, probe
from kullback.variational.families import Family, Flow, Mixture
from kullback.variational.families.family import Frame
from kullback.variational.objectives import loss_of
from kullback.variational.optimise import Progress, forward_kl, until_done
from kullback.variational.optimise.starts import Start, judged
from kullback.variational.optimise.stochastic import one_round

from .first_fit import with_wide_tails
from .plan import Problem
from .weighted_draws import Pooled, moment_shift, pool_of

__all__ = ["find_other_peak", "reach_missed_mass", "was_fitted", "with_peak"]


def find_other_peak(
    problem: Problem, family: Family, *, beyond_edges: bool = False
) -> Probed | None:
    """Search for a peak that q has not; None where log p is not finite at q's draws.

    beyond_edges: let it be finite at some of them; see `probe`.
    """
    target, generator = problem.target, problem.generator
    z = family.sample(limits.CHECK_DRAWS, generator)
    with torch.no_grad():
        log_p, log_q = target.log_density(z), family.log_prob(z)
    known = log_p.isfinite()
    if not bool(known.any() if beyond_edges else known.all()):
        return None
    return probe(target.log_density, z, log_p, log_q, generator=generator)


def was_fitted(probed: Probed, before: Sequence[Probed]) -> bool:
    """Say whether a peak is one from which q was fitted before.

    What is left of it is a shape that a Gaussian there has not: a third such fit gains nothing, and
    later stages reach it.
    """
    here, there = _frame(probed), [_frame(other) for other in before]
    gaps = [
        torch.stack([here.inwards(frame.shift).norm(), frame.inwards(here.shift).norm()]).max()
        for frame in there
    ]
    return any(float(gap) < limits.SAME_PEAK_SDS for gap in gaps)


def _frame(probed: Probed) -> Frame:
    """Return mean and covariance of the peak's weighted draws."""
    weights = cast(Tensor, probed.log_weights).softmax(0)
    return forward_kl.moments(cast(Tensor, probed.draws), weights)


def with_peak(problem: Problem, last: Progress, found: list[Start], probed: Probed) -> list[Start]:
    """Return all starts and one on the peak that was found."""
    there = replace(judged(problem.target, _frame(probed), problem.generator), apart=True)
    here = last.family.absorb()
    known = [Start(here, -last.loss)] if here is not None else found
    return sorted([*known, there], key=lambda start: -start.elbo)


def reach_missed_mass(
    problem: Problem, last: Progress, seen: Pooled
) -> Generator[Progress, None, tuple[Progress, Pooled]]:
    """Fit a flow where q has no draws and p has mass: to weighted draws first, then by KL(q‖p).

    The first part, KL(p‖q), costs no evaluation of p, and leads to where few steps of the second
    are left. Without zuko a mixture is fitted to the draws. It is kept where less of p is missed
    and weighted draws move its moments no further than those of q, by no
    more than standard errors where next to none is missed, or by little where a verdict would trust
    what is missed. It comes with the draws that settle it.
    """
    if not last.converged or seen.missed <= limits.LIMITS.unreached:
        return last, seen
    generator, begin = problem.generator, time.perf_counter()
    if seen.size < limits.MIN_MATCHED_DRAWS or problem.target.dim == 1:
        return last, seen
    draws = seen.resampled(limits.RESAMPLED_DRAWS, generator)
    if importlib.util.find_spec("zuko") is None:
        make = functools.partial(Mixture, components=limits.MORE_COMPONENTS)
        steps = forward_kl.maximum_likelihood(
            draws, make, generator, iterations=limits.MATCHED_ITERATIONS
        )
        now = yield from until_done(steps)
        after = pool_of(problem, now.family)
    else:
        flow = Flow(Frame.of_draws(draws))
        now = yield from until_done(forward_kl.by_steps(draws, flow, generator))
        for _ in range(limits.POLISH_ROUNDS):
            now = yield from until_done(_polished(problem, flow))
            after = pool_of(problem, flow)
            if after.missed <= limits.LIMITS.unreached:
                now, after = yield from _refitted(problem, now, after)
                break
    words = f"a {now.family.name} fitted to weighted draws, {time.perf_counter() - begin:.1f} s"
    was_off = moment_shift(problem.target, seen.draws, seen.pool)[0]
    off, error, _ = moment_shift(problem.target, after.draws, after.pool)
    whole = after.missed < limits.WHOLE_GAIN * seen.missed
    noise = limits.MOMENT_SHIFT_ERRORS * error if whole else 0.0
    reached = after.missed <= limits.LIMITS.unreached
    allowed = max(was_off, limits.MIN_MOMENT_SHIFT) + noise
    worse = off > (max(allowed, limits.REACHED_SHIFT) if reached else allowed)
    if worse or not after.missed < limits.MIN_MATCHED_GAIN * seen.missed:
        tried = f"{last.reason}; {words}, was tried and not kept"
        return replace(last, reason=tried), seen
    text = f"converged: q had next to no draws where {seen.missed:.0%} of p is, now"
    text += f" {after.missed:.1%}, by {words}; {last.reason}"
    return replace(now, loss=last.loss, converged=True, reason=text, improper=False), after


def _refitted(
    problem: Problem, now: Progress, after: Pooled
) -> Generator[Progress, None, tuple[Progress, Pooled]]:
    """Fit a flow whose moments are off once more by KL(p‖q), to its own draws with their weights.

    KL(q‖p) leaves sds small. Kept where draws move its moments less, and q still reaches all.
    """
    off = moment_shift(problem.target, after.draws, after.pool)[0]
    if off < limits.REACHED_SHIFT or after.size < limits.MIN_MATCHED_DRAWS:
        return now, after
    flow = cast(Flow, copy.deepcopy(now.family))
    flow.widen(0.0)
    draws = after.resampled(limits.RESAMPLED_DRAWS, problem.generator)
    again = yield from until_done(forward_kl.by_steps(draws, flow, problem.generator))
    again = with_wide_tails(again, problem.target, problem.generator)
    seen = pool_of(problem, flow)
    better = moment_shift(problem.target, seen.draws, seen.pool)[0] < limits.MIN_MATCHED_GAIN * off
    return (again, seen) if better and seen.missed <= limits.LIMITS.unreached else (now, after)


def _polished(problem: Problem, flow: Flow) -> Iterator[Progress]:
    """Improve a flow by steps of KL(q‖p), one fall of the step size, and widen its tails."""
    flow.widen(0.0)
    last = Progress(flow, math.nan, math.nan)
    for last in one_round(
        flow,
        loss_of(problem.target, gradient="stl"),
        problem.generator,
        draws=limits.POLISH_DRAWS,
        steps=limits.POLISH_STEPS,
        rate=limits.POLISH_RATE,
    ):
        yield replace(last, done=False)
    yield with_wide_tails(replace(last, done=True), problem.target, problem.generator)
