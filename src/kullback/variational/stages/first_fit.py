"""The first fit of KL(q‖p), from a start: by fixed draws or by Adam.

Which to use: `by_fixed_draws` for Gaussians and mixtures, which also tries a mixture where one
Gaussian falls short; `by_adam` for mini-batches, flows and low rank in many dimensions.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kullback.core import Estimate, RunError
from kullback.variational import limits
from kullback.variational.families import Family, Flow, FullRank, LowRank, MeanField, Mixture
from kullback.variational.objectives import loss_of
from kullback.variational.optimise import Progress, until_done
from kullback.variational.optimise.deterministic import deterministic
from kullback.variational.optimise.natural_gradient import natural_gradient
from kullback.variational.optimise.starts import Start, distinct, is_near, mixture_of
from kullback.variational.optimise.stochastic import (
    anchor,
    anchored,
    cosine_annealing,
    stochastic,
    widen_tails,
)
from kullback.variational.target.density import Target

from .plan import COMPONENTS, Plan, Problem

__all__ = ["begin", "by_adam", "by_fixed_draws", "improve_start", "with_wide_tails"]


def begin(how: Plan, found: list[Start]) -> Family:
    """Make the family in the best start's frame; a mixture begins on every peak that was found."""
    partial = how.make if isinstance(how.make, functools.partial) else functools.partial(how.make)
    if partial.func is Mixture and "starts" not in partial.keywords:
        return mixture_of(found, **partial.keywords)
    return how.make(found[0].frame)


def improve_start(target: Target, found: list[Start], generator: torch.Generator) -> list[Start]:
    """Move the best start to where its draws' scores ask, if they ask for much; see `is_near`."""
    best = found[0]
    if target.rows is not None or is_near(target, best, generator):
        return found
    steps = natural_gradient(
        best.frame, target, generator, points=limits.MENDED_POINTS, iterations=limits.MENDED_STEPS
    )
    *_, now = steps
    frame = now.family.absorb()
    better = frame is not None and -now.loss > best.elbo + limits.MIN_ELBO_GAIN
    return [Start(frame, -now.loss), *found[1:]] if frame is not None and better else found


def by_fixed_draws(problem: Problem, found: list[Start]) -> Iterator[Progress]:
    """Fit by L-BFGS on fixed draws, and try a mixture where one Gaussian falls short."""
    target, how = problem.target, problem.how
    family = begin(how, found)
    refine = how.refine and problem.settings.objective == "elbo"
    # where they are plenty, the first draws already show whether one Gaussian will do
    early = refine and how.draws >= limits.EARLY_DRAWS_PER_DIMENSION * target.dim
    most = how.draws if early else how.max_draws
    minimised = functools.partial(
        deterministic, loss=problem.loss(), generator=problem.generator, names=target.names
    )
    last = yield from until_done(minimised(family, draws=how.draws, max_draws=most))
    # also where few draws are all that is wrong
    if refine and last.gradient_norm < limits.MAX_REFINED_GRADIENT:
        better = yield from until_done(_refined(problem, last, found))
        if better is not last:
            yield better
            return
    if last.disagreement > limits.FRESH_DRAWS_AGREE and most < how.max_draws:
        more = minimised(last.family, draws=2 * most, max_draws=how.max_draws)
        last = yield from until_done(more)
    yield last


def _refined(problem: Problem, simple: Progress, found: list[Start]) -> Iterator[Progress]:
    """Try a mixture where fresh draws or other peaks show that one Gaussian falls short."""
    target = problem.target
    before = problem.log_weights(simple.family)
    frame = simple.family.absorb()
    peaks = distinct(found)
    if frame is None or (float(before.std()) < limits.MIN_SD_LOG_WEIGHTS and len(peaks) == 1):
        yield simple
        return
    best = [Start(frame, -simple.loss), *(p for p in peaks[1:])]
    mixture = mixture_of(best, components=COMPONENTS)
    few = max(1024, 1 << (4 * target.dim - 1).bit_length())
    refined = deterministic(
        mixture,
        problem.loss(),
        problem.generator,
        draws=few,
        max_draws=max(2048, few),
        tolerance=limits.MIXTURE_TOLERANCE,
        iterations=120,
        names=target.names,
    )
    now = yield from until_done(refined)
    mixed, single = (
        Estimate.from_terms(problem.log_weights(q, 4 * limits.CHECK_DRAWS))
        for q in (now.family, simple.family)
    )
    gain = mixed - single
    if gain.value > 2 * gain.standard_error:
        text = f"{now.reason}; a mixture, since one Gaussian's ELBO is {gain} lower"
        yield replace(now, reason=text)
    else:
        yield simple


def by_adam(problem: Problem, found: list[Start]) -> Iterator[Progress]:
    """Fit by Adam: from a Gaussian fitted with fixed draws, or with data from an anchor."""
    target, how, generator = problem.target, problem.how, problem.generator
    data = target.rows
    if data is not None and data.count > data.batch_size:
        frame = anchor(target, found[0].frame)
        why = target.explain(frame.shift[None])
        if why:
            raise RunError(why)
        family = how.make(frame)
        quiet = anchored(target, frame.shift)
        loss = problem.loss(log_density=quiet)
        yield from _adam(
            family, lambda q, noise: loss(q, noise, data.draw(generator)), how, generator
        )
        return
    loss = problem.loss()
    family = how.make(found[0].frame)
    if not isinstance(family, FullRank | MeanField | LowRank):
        plain = loss_of(target)
        dense = found[0].frame.is_dense
        first = FullRank(found[0].frame) if dense else MeanField(found[0].frame)
        draws = max(512, 1 << (2 * target.dim - 1).bit_length()) if dense else 256
        now = yield from until_done(
            deterministic(first, plain, generator, draws=draws, max_draws=draws)
        )
        better = now.family.absorb() if now.converged else None
        best = found[0] if better is None else Start(better, -now.loss)
        family = begin(how, [best, *found[1:]])
    if isinstance(family, Flow):
        yield from cosine_annealing(family, loss, generator, draws=how.draws)
        return
    yield from _adam(family, loss, how, generator)


def _adam(
    family: Family, loss: Callable[..., Tensor], how: Plan, generator: torch.Generator
) -> Iterator[Progress]:
    plain = isinstance(family, FullRank)
    # STL's noise grows with the distance and with d/draws: larger plain steps would feed on it
    share = min(0.5, how.draws / (2 * family.dim))
    rate = share if plain else (0.05 if family.absorb() is not None else 0.005)
    return stochastic(
        family, loss, generator, draws=how.draws, rate=rate, iterations=20_000, plain=plain
    )


def with_wide_tails(now: Progress, target: Target, generator: torch.Generator) -> Progress:
    """Widen a flow that is done, and say so; not with rows, which every draw would have to meet."""
    if not now.done or not isinstance(now.family, Flow) or target.rows is not None:
        return now
    h = widen_tails(now.family, target, generator)
    return (
        replace(now, reason=f"{now.reason}; tails of the base widened by h = {h:g}") if h else now
    )
