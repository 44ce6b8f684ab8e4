"""The fit put together: start, family, fitter, and the refinement where a Gaussian falls short.

Which to use: none of this directly; `fit` does. `Work` is what there is to do, as a stream of
`Progress`.
"""

import functools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import Estimate, RunError, require

from .diagnostics.propriety import improper
from .families import Family, Flow, FullRank, LowRank, MeanField, Mixture
from .limits import LOOKED, SEARCHED
from .optimise import forward_kl
from .optimise.annealing import cooled, widened
from .optimise.batch_and_match import batch_and_match
from .optimise.control_variate import anchor, anchored
from .optimise.deterministic import AGREEMENT, deterministic
from .optimise.losses import loss_of
from .optimise.progress import Progress
from .optimise.starts import Start, find_start, fixed_normals
from .optimise.stochastic import stochastic
from .plan import Plan, Settings, distinct, maker, mixture_of, plan
from .target.density import Target

__all__ = ["Work", "forwards", "reverse"]

ROUGH = 0.4  # nats: the spread of log weights above which a Gaussian is refined
STILL = 0.1  # a gradient that is worth refining at
COMPONENTS = 3
LOOSE = 5e-3  # sd: a mixture's tolerance; fresh draws move its optimum by ten times that
PLENTY = 16  # draws a dimension
CHECKED = 1000  # draws that show whether one Gaussian will do


@dataclass(frozen=True, slots=True)
class _Problem:
    """What every stage of one minimisation of KL(q‖p) needs: p, what was asked, how, randomness."""

    target: Target
    settings: Settings
    how: Plan
    generator: torch.Generator

    def loss(self, **density: object) -> Callable[..., Tensor]:
        """Return the loss; raises for names of objective or gradient that do not exist."""
        settings, gradient = self.settings, self.settings.gradient
        if gradient == "auto":
            landing = self.how.method == "stochastic" and settings.objective == "elbo"
            gradient = "stl" if landing else "reparameterised"
        return loss_of(
            self.target,
            objective=settings.objective,
            gradient=gradient,
            alpha=settings.alpha,
            group=settings.group,
            **density,  # type: ignore[arg-type]
        )

    def log_weights(self, family: Family, draws: int = CHECKED) -> Tensor:
        """Return log weights at independent draws of a family."""
        z = family.sample(draws, self.generator)
        with torch.no_grad():
            return self.target.log_density(z) - family.log_prob(z)


@dataclass(frozen=True, slots=True)
class Work:
    """A method's name, what to say was chosen, and the stream of `Progress` that does it."""

    method: str
    chosen: Callable[[Family], str]
    steps: Callable[[], Iterator[Progress]]


def reverse(target: Target, settings: Settings, generator: torch.Generator) -> Work:
    """Plan the minimisation of KL(q‖p), or of what the objective says, from draws of q."""
    how = plan(target, settings)
    problem = _Problem(target, settings, how, generator)
    problem.loss()  # names are checked before any work is done

    def steps() -> Iterator[Progress]:
        noisy = target.rows is not None and target.rows.count > target.rows.batch_size
        rows = target.rows.draw(generator) if target.rows is not None and noisy else None
        starts = settings.starts if rows is None else 1  # with many rows one peak is left
        found = find_start(target, generator, starts=starts, rows=rows)
        lost = _improper(target, found[0])
        if lost:
            yield Progress(_begin(how, found), -found[0].elbo, math.nan, done=True, reason=lost)
            return
        if how.method == "batch_and_match":
            frame = found[0].frame
            yield from batch_and_match(FullRank(frame), target, generator, draws=how.draws)
        elif how.method == "stochastic":
            for now in _by_steps(problem, found):
                yield _finished(now, target, generator)
        else:
            yield from _by_fixed_draws(problem, found)

    return Work(how.method, how.chosen, steps)


def _improper(target: Target, start: Start) -> str:
    """Say where log p does not decay around the start, before time is spent on a fit."""
    if target.dim > SEARCHED:
        return ""
    noise = fixed_normals(LOOKED, target.dim, torch.Generator().manual_seed(0))
    return improper(target, start.frame.outwards(noise))


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
        found = find_start(target, generator, starts=max(settings.starts, 8))
        yield from forward_kl.adaptive(target, distinct(found), make, generator, draws=draws)

    return Work("importance_sampling", chosen, steps)


def _by_fixed_draws(problem: _Problem, found: list[Start]) -> Iterator[Progress]:
    target, how = problem.target, problem.how
    family = _begin(how, found)
    refine = how.refine and problem.settings.objective == "elbo"
    # where they are plenty, the first draws already show whether one Gaussian will do
    early = refine and how.draws >= PLENTY * target.dim
    most = how.draws if early else how.max_draws
    fit = functools.partial(
        deterministic, loss=problem.loss(), generator=problem.generator, names=target.names
    )
    last = yield from _until_done(fit(family, draws=how.draws, max_draws=most))
    if refine and last.gradient_norm < STILL:  # also where few draws are all that is wrong
        better = yield from _until_done(_refined(problem, last, found))
        if better is not last:
            yield better
            return
    if last.disagreement > AGREEMENT and most < how.max_draws:
        more = fit(last.family, draws=2 * most, max_draws=how.max_draws)
        last = yield from _until_done(more)
    yield last


def _until_done(steps: Iterator[Progress]) -> Generator[Progress, None, Progress]:
    """Pass the steps on but for the last, which is returned."""
    for now in steps:
        if not now.done:
            yield now
    return now


def _refined(problem: _Problem, simple: Progress, found: list[Start]) -> Iterator[Progress]:
    """Try a mixture where fresh draws or other peaks show that one Gaussian falls short."""
    target = problem.target
    before = problem.log_weights(simple.family)
    frame = simple.family.absorb()
    peaks = distinct(found)
    if frame is None or (float(before.std()) < ROUGH and len(peaks) == 1):
        yield simple
        return
    best = [Start(frame, -simple.loss), *(p for p in peaks[1:])]
    mixture = mixture_of(best, components=COMPONENTS)
    few = max(1024, 1 << (4 * target.dim - 1).bit_length())
    options = {"draws": few, "max_draws": max(2048, few), "tolerance": LOOSE, "iterations": 120}
    now = yield from _until_done(
        deterministic(
            mixture,
            problem.loss(),
            problem.generator,
            names=target.names,
            **options,  # type: ignore[arg-type]
        )
    )
    mixed, single = (
        Estimate.from_terms(problem.log_weights(q, 4 * CHECKED))
        for q in (now.family, simple.family)
    )
    gain = mixed - single
    if gain.value > 2 * gain.standard_error:
        text = f"{now.reason}; a mixture, since one Gaussian's ELBO is {gain} lower"
        yield replace(now, reason=text)
    else:
        yield simple


def _finished(now: Progress, target: Target, generator: torch.Generator) -> Progress:
    """Widen a flow that is done, and say so; not with rows, which every draw would have to meet."""
    if not now.done or not isinstance(now.family, Flow) or target.rows is not None:
        return now
    h = widened(now.family, target, generator)
    return (
        replace(now, reason=f"{now.reason}; tails of the base widened by h = {h:g}") if h else now
    )


def _by_steps(problem: _Problem, found: list[Start]) -> Iterator[Progress]:
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
        now = yield from _until_done(
            deterministic(first, plain, generator, draws=draws, max_draws=draws)
        )
        better = now.family.absorb() if now.converged else None
        best = found[0] if better is None else Start(better, -now.loss)
        family = _begin(how, [best, *found[1:]])
    if isinstance(family, Flow):
        yield from cooled(family, loss, generator, draws=how.draws)
        return
    yield from _adam(family, loss, how, generator)


def _adam(
    family: Family, loss: Callable[..., Tensor], how: Plan, generator: torch.Generator
) -> Iterator[Progress]:
    plain = isinstance(family, FullRank)
    # STL's noise grows with the distance and with d/draws: larger plain steps would feed on it
    share = min(0.5, how.draws / (2 * family.dim))
    rate = share if plain else (0.05 if family.absorb() is not None else 0.005)
    options = {"draws": how.draws, "rate": rate, "iterations": 20_000, "plain": plain}
    return stochastic(family, loss, generator, **options)  # type: ignore[arg-type]


def _begin(how: Plan, found: list[Start]) -> Family:
    """Make the family in the best start's frame; a mixture begins on every peak that was found."""
    partial = how.make if isinstance(how.make, functools.partial) else functools.partial(how.make)
    if partial.func is Mixture and "starts" not in partial.keywords:
        return mixture_of(found, **partial.keywords)
    return how.make(found[0].frame)
