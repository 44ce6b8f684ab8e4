"""The stages of a fit, in their order: a start, a first fit, and what follows it.

Which to use: `reverse` for KL(q‖p), `forwards` for KL(p‖q). Both return a `Work`: the name of the
method and a stream of `Progress`, the last of which is the fit.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch

from kullback.core import RunError, require
from kullback.variational import limits
from kullback.variational.diagnostics.missed_modes import Probed
from kullback.variational.diagnostics.propriety import improper
from kullback.variational.families import Family, Flow, FullRank, LowRank
from kullback.variational.optimise import Progress, forward_kl, until_done
from kullback.variational.optimise.batch_and_match import batch_and_match
from kullback.variational.optimise.deterministic import fixed_normals
from kullback.variational.optimise.natural_gradient import natural_gradient
from kullback.variational.optimise.starts import Start, distinct, find_start, near_zero
from kullback.variational.target.deadline import OutOfTime
from kullback.variational.target.density import Target

from .first_fit import begin, by_adam, by_fixed_draws, improve_start, with_wide_tails
from .hard_edges import meets_edges, within_edges
from .missed_mass import find_other_peak, reach_missed_mass, was_fitted, with_peak
from .moments import hamiltonian_moments, match_moments, move_to_moments
from .plan import Problem, Settings, maker, plan
from .to_draws import fit_to_chains

__all__ = ["Work", "forwards", "reverse"]


@dataclass(frozen=True, slots=True)
class Work:
    """A method's name, what to say was chosen, and the stream of `Progress` that does it."""

    method: str
    chosen: Callable[[Family], str]
    steps: Callable[[], Iterator[Progress]]


def reverse(target: Target, settings: Settings, generator: torch.Generator) -> Work:
    """Plan the minimisation of KL(q‖p), or of what the objective says, from draws of q."""
    how = plan(target, settings)
    problem = Problem(target, settings, how, generator)
    problem.loss()  # names are checked before any work is done

    def steps() -> Iterator[Progress]:
        if how.method == "natural_gradient":
            yield from _by_natural_gradient(problem)
            return
        noisy = target.rows is not None and target.rows.count > target.rows.batch_size
        rows = target.rows.draw(generator) if target.rows is not None and noisy else None
        one = rows is not None or target.looped  # with many rows one peak is left; calls are few
        starts = 1 if one else settings.starts
        try:
            found = find_start(target, generator, starts=starts, rows=rows, first=settings.init)
        except RunError:
            bounded = within_edges(problem)
            if bounded is None:
                raise
            yield from bounded
            return
        lost = _improper_start(target, found[0])
        if lost:
            q, loss = begin(how, found), -found[0].elbo
            yield Progress(q, loss, math.nan, done=True, reason=lost, improper=True)
            return
        if target.dim <= limits.MAX_DENSE_DIMENSIONS:
            found = improve_start(target, found, generator)
        if how.method == "batch_and_match":
            frame = found[0].frame
            yield from batch_and_match(FullRank(frame), target, generator, draws=how.draws)
        elif how.method == "stochastic":
            for now in by_adam(problem, found):
                yield with_wide_tails(now, target, generator)
        else:
            yield from _fixed_draws_and_on(problem, found)

    return Work(how.method, how.chosen, steps)


def forwards(target: Target, settings: Settings, generator: torch.Generator) -> Work:
    """Plan the minimisation of KL(p‖q), from samples of p or from weighted draws."""
    automatic = settings.family == "auto"

    def chosen(family: Family) -> str:
        return f"family {family.name}" if automatic else ""

    make = maker("full_rank" if settings.family == "auto" else settings.family)
    samples = settings.samples
    if samples is not None:
        fits = samples.ndim == 2 and samples.shape[1] == target.dim
        require(fits, "samples", f"[n, {target.dim}]", list(samples.shape))
        given = samples
        return Work(
            "maximum_likelihood",
            chosen,
            lambda: forward_kl.maximum_likelihood(given, make, generator),
        )
    draws = 8000 if settings.draws is None else settings.draws

    def steps() -> Iterator[Progress]:
        found = find_start(target, generator, starts=max(settings.starts, 8), first=settings.init)
        yield from forward_kl.adaptive(target, distinct(found), make, generator, draws=draws)

    return Work("importance_sampling", chosen, steps)


def _improper_start(target: Target, start: Start) -> str:
    """Say where log p does not decay around the start, before time is spent on a fit."""
    if target.dim > limits.MAX_FOLLOWED_FAR or target.rows is not None:
        return ""
    noise = fixed_normals(limits.RAY_DRAWS, target.dim, torch.Generator().manual_seed(0))
    draws = start.frame.outwards(noise)
    if target.refusals.last is not None:
        with torch.no_grad():
            target.raise_if_all_refused(target.log_density(draws))
    try:
        with target.deadline.within(limits.PROPRIETY_SHARE * target.deadline.left):
            return improper(target, draws, scales=True)
    except OutOfTime:
        return ""  # the fit goes on; along rays it is asked again of q


def _fixed_draws_and_on(problem: Problem, found: list[Start]) -> Iterator[Progress]:
    """Fit by fixed draws, and reach further where that falls short; see `_improved`."""
    last = yield from until_done(by_fixed_draws(problem, found))
    yield (yield from _improved(problem, last, found))


def _improved(
    problem: Problem, last: Progress, found: list[Start]
) -> Generator[Progress, None, Progress]:
    """Fit again with peaks that a search finds; then match moments and reach missed mass.

    Where the time is over, what the last finished stage returned.
    """
    searched, fitted = problem.how.refine, list[Probed]()
    try:
        for _ in range(limits.MAX_SEARCHES if searched else 0):
            if not last.converged:
                break
            probed = find_other_peak(problem, last.family)
            if probed is None:
                break
            last = replace(last, searched=(last.family, probed))
            if probed.draws is None or probed.share < limits.MIN_SHARE_ELSEWHERE:
                break
            if was_fitted(probed, fitted):
                break
            fitted.append(probed)
            found, share = with_peak(problem, last, found, probed), probed.share
            last = yield from until_done(by_fixed_draws(problem, found))
            text = f"fitted again with a peak of {share:.0%} of p that a search found"
            last = replace(last, reason=f"{last.reason}; {text}")
        if searched and problem.settings.objective == "elbo":
            bounded = within_edges(problem) if meets_edges(problem, last.family) else None
            if bounded is not None:
                return (yield from until_done(bounded))
            if not last.improper:
                last, seen = yield from match_moments(problem, last)
                last, seen = yield from reach_missed_mass(problem, last, seen)
                last, seen = yield from fit_to_chains(problem, last, seen)
                if not isinstance(last.family, Flow):  # a bent shape is not stretched in z
                    last = move_to_moments(problem, last, seen)
        elif problem.target.dim > limits.MAX_REFINED_DIMENSIONS and last.converged:
            last = hamiltonian_moments(problem, last)
    except OutOfTime as error:
        return replace(last, reason=f"{last.reason}; what would follow {error}")
    return last


def _by_natural_gradient(problem: Problem) -> Iterator[Progress]:
    """Fit by natural gradients from near 0, else from a climb; else by what needs no precision.

    They begin where q is wide: a climb leads into the neck of a funnel, where the ELBO has an
    optimum of its own. What is left where they do not converge is low rank by Adam, or fixed draws
    where the user asked for full rank.
    """
    target, generator, how = problem.target, problem.generator, problem.how
    start = near_zero(target, generator, first=problem.settings.init)
    if start is not None:
        last = yield from until_done(natural_gradient(start.frame, target, generator))
        if last.converged:
            yield _in_time(problem, last)
            return
    found = find_start(target, generator, first=problem.settings.init)
    again = yield from until_done(natural_gradient(found[0].frame, target, generator))
    if again.converged:
        yield _in_time(problem, again)
        return
    name = LowRank.name if how.automatic else FullRank.name
    method = "auto" if how.automatic else "deterministic"
    settings = replace(problem.settings, family=name, method=method)
    other = Problem(target, settings, plan(target, settings), generator)
    fitted = by_adam if other.how.method == "stochastic" else _fixed_draws_and_on
    for now in fitted(other, found):
        why = f"{now.reason}; {name} by {other.how.method}, since full rank {again.reason}"
        yield replace(now, reason=why) if now.done else now


def _in_time(problem: Problem, last: Progress) -> Progress:
    """Return `hamiltonian_moments`, or what there was where the time is over."""
    try:
        return hamiltonian_moments(problem, last)
    except OutOfTime as error:
        return replace(last, reason=f"{last.reason}; what would follow {error}")
