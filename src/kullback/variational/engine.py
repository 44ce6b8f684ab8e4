"""The fit put together: what is chosen, the start, the optimiser, and a mixture where it is needed.

Which to use: none of this directly; `fit` does. `plan` chooses family, method and numbers of draws
where the user left them open, and its answer is repeated in `Fit.chosen`. `Work` is what there is
to do, as a stream of `Progress`.
"""

import functools
import importlib.util
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from kullback.core import Estimate, RunError, require
from kullback.sampled import pareto_k

from . import limits
from .diagnostics.defensive_sampling import (
    Ridge,
    WiderDraws,
    draw_wider,
    mixture_log_weights,
    pooled,
    unreached,
)
from .diagnostics.diagnose import ridges_of
from .diagnostics.evidence import Pool, Sample, by_scores
from .diagnostics.missed_modes import Probed, probe
from .diagnostics.propriety import improper
from .families import NAMED, Family, Flow, FullRank, LowRank, MeanField, Mixture
from .families.family import Frame, Make
from .objectives import Gradient, Objective, loss_of
from .optimise import IMPROPER, Progress, forward_kl
from .optimise.batch_and_match import batch_and_match
from .optimise.deterministic import deterministic, fixed_normals
from .optimise.edges import edges, interior, proposals
from .optimise.hamiltonian import from_narrow, hamiltonian
from .optimise.moment_shift import Weighed, moved_to_moments, moves, to_draws
from .optimise.natural_gradient import natural_gradient
from .optimise.starts import (
    Start,
    distinct,
    find_start,
    is_near,
    judged,
    mixture_of,
    near_zero,
)
from .optimise.stochastic import (
    anchor,
    anchored,
    cosine_annealing,
    one_round,
    stochastic,
    widen_tails,
)
from .target.density import OutOfTime, Target

__all__ = ["Direction", "Make", "Plan", "Settings", "Work", "forwards", "maker", "plan", "reverse"]

Direction = Literal["reverse", "forward"]

METHODS = ("auto", "deterministic", "batch_and_match", "natural_gradient", "stochastic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user may say about a fit; see `fit`."""

    family: str | Make = "auto"
    direction: Direction = "reverse"
    method: str = "auto"
    objective: Objective = "elbo"
    gradient: Gradient | Literal["auto"] = "auto"
    alpha: float = 0.5
    group: int = 8
    samples: Tensor | None = None
    init: Tensor | None = None
    starts: int = 4
    draws: int | None = None
    evaluation_draws: int = 4000
    max_seconds: float = limits.MAX_FIT_SECONDS

    @property
    def maximised(self) -> str:
        """The name of what is maximised."""
        return self.objective if self.direction == "reverse" else "log likelihood"


@dataclass(frozen=True, slots=True)
class Plan:
    """A family to make in a frame, a method, numbers of draws, and whether to refine by itself.

    automatic: whether the family was left open. why: what decided the method, "" where the user
    did; "family" stands for the family's name.
    """

    make: Make
    method: str
    draws: int
    max_draws: int
    refine: bool
    automatic: bool
    why: str

    def chosen(self, family: Family) -> str:
        """Say what was left open and how it was decided, given the family that was returned."""
        words = [f"family {family.name} ({family.dim} dimensions)"] if self.automatic else []
        if isinstance(family, Mixture) and family.covariance == "diagonal":
            words.append(f"diagonal covariances ({family.dim} dimensions)")
        if self.why:
            why = family.name if self.why == "family" else self.why
            words.append(f"method {self.method} ({why})")
        return "; ".join(words)


def plan(target: Target, settings: Settings) -> Plan:
    """Choose what is "auto" and check the names of what is not."""
    family, method = settings.family, settings.method
    require(method in METHODS, "method", ", ".join(METHODS), repr(method))
    dim, why = target.dim, ""
    automatic = family == "auto"
    whole = target.rows is None and settings.objective == "elbo"
    if automatic:
        most = limits.MAX_NATURAL_DIMENSIONS if whole else limits.MAX_DENSE_DIMENSIONS
        family = FullRank.name if dim <= most else LowRank.name
    make = maker(family)
    some = make(Frame.identity(dim))
    kind = type(some)
    if method == "auto":
        noisy = target.rows is not None and target.rows.count > target.rows.batch_size
        # more noise than fixed draws could hold
        wide = kind is LowRank and dim > limits.MAX_LOW_RANK_FIXED_DIMENSIONS
        sampled = noisy or wide or kind is Flow or settings.gradient in ("stl", "dreg", "score")
        method = "stochastic" if sampled else "deterministic"
        why = "mini-batches" if noisy else "family"
        large = kind is FullRank and dim > limits.MAX_DENSE_DIMENSIONS
        if large and whole and not sampled and settings.draws is None:
            method, why = "natural_gradient", f"{dim} dimensions"
    if method in ("batch_and_match", "natural_gradient"):
        full = kind is FullRank
        require(full, "family", f"full_rank for {method}", kind.name, "another method")
    few, many = _draws(some, dim, method)
    few = few if settings.draws is None else settings.draws
    if target.looped and settings.draws is None and method == "deterministic":
        few = many = max(limits.LOOPED_DRAWS, 1 << (4 * dim - 1).bit_length())
    refine = (
        automatic
        and not target.looped
        and method == "deterministic"
        and dim <= limits.MAX_REFINED_DIMENSIONS
        and target.rows is None
    )
    many = few if settings.draws is not None else many
    most = max(few, min(many, limits.MAX_REFINED_DRAWS) if refine else many)
    return Plan(
        make=make,
        method=method,
        draws=few,
        max_draws=most,
        refine=refine,
        automatic=automatic,
        why=why,
    )


def _draws(family: Family, dim: int, method: str) -> tuple[int, int]:
    """Return the draws to begin with and the most there may be."""
    if method == "stochastic" and isinstance(family, Flow):
        return max(64, min(256, 25_600 // dim)), 0
    if method == "stochastic":
        return min(128, max(16, dim // 2)), 0
    if method == "batch_and_match":
        return max(32, 4 * dim), 0
    mixed = isinstance(family, Mixture)
    if not family.dense or (mixed and family.covariance == "diagonal"):
        return 256, 1024
    power = 1 << (4 * dim - 1).bit_length()
    return max(1024 if mixed else 256, power), max(4096, power)


def maker(family: str | Make) -> Make:
    """Turn a family's name, its class or a function of a frame into a function of a frame."""
    if isinstance(family, str):
        known = ", ".join(("auto", *NAMED))
        require(family in NAMED, "family", f"one of {known}, a class or a function", repr(family))
        return NAMED[family]
    hint = "functools.partial(Mixture, components=3)"
    require(callable(family), "family", "a name, or a function of a frame", repr(family), hint)
    return family


COMPONENTS = 3


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

    def log_weights(self, family: Family, draws: int = limits.CHECK_DRAWS) -> Tensor:
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
            bounded = _within_edges(problem)
            if bounded is None:
                raise
            yield from bounded
            return
        lost = _improper(target, found[0])
        if lost:
            yield Progress(_begin(how, found), -found[0].elbo, math.nan, done=True, reason=lost)
            return
        if target.dim <= limits.MAX_DENSE_DIMENSIONS:
            found = _mended(target, found, generator)
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


def _by_natural_gradient(problem: _Problem) -> Iterator[Progress]:
    """Fit by natural gradients from near 0, else from a climb; else by what needs no precision.

    They begin where q is wide: a climb leads into the neck of a funnel, where the ELBO has an
    optimum of its own. What is left where they do not converge is low rank by Adam, or fixed draws
    where the user asked for full rank.
    """
    target, generator, how = problem.target, problem.generator, problem.how
    start = near_zero(target, generator, first=problem.settings.init)
    if start is not None:
        last = yield from _until_done(natural_gradient(start.frame, target, generator))
        if last.converged:
            yield _in_time(problem, last)
            return
    found = find_start(target, generator, first=problem.settings.init)
    again = yield from _until_done(natural_gradient(found[0].frame, target, generator))
    if again.converged:
        yield _in_time(problem, again)
        return
    name = LowRank.name if how.automatic else FullRank.name
    method = "auto" if how.automatic else "deterministic"
    settings = replace(problem.settings, family=name, method=method)
    other = _Problem(target, settings, plan(target, settings), generator)
    fitted = _by_steps if other.how.method == "stochastic" else _by_fixed_draws
    for now in fitted(other, found):
        why = f"{now.reason}; {name} by {other.how.method}, since full rank {again.reason}"
        yield replace(now, reason=why) if now.done else now


def _in_time(problem: _Problem, last: Progress) -> Progress:
    """Return `_corrected`, or what there was where the time is over."""
    try:
        return _corrected(problem, last)
    except OutOfTime as error:
        return replace(last, reason=f"{last.reason}; what would follow {error}")


def _corrected(problem: _Problem, last: Progress) -> Progress:
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


def _mended(target: Target, found: list[Start], generator: torch.Generator) -> list[Start]:
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


def _by_fixed_draws(problem: _Problem, found: list[Start]) -> Iterator[Progress]:
    """Fit by fixed draws, and reach further where that falls short; see `_improved`."""
    last = yield from _until_done(_fitted(problem, found))
    try:
        better = yield from _improved(problem, last, found)
    except OutOfTime as error:
        text = f"{last.reason}; what would follow {error}"
        better = replace(last, reason=text)
    yield better


def _improved(
    problem: _Problem, last: Progress, found: list[Start]
) -> Generator[Progress, None, Progress]:
    """Fit again with peaks that a search finds; then match moments and reach missed mass."""
    searched = problem.how.refine
    for _ in range(limits.MAX_SEARCHES if searched else 0):
        if not last.converged:
            break
        probed = _elsewhere(problem, last)
        if probed is None:
            break
        last = replace(last, searched=(last.family, probed))
        if probed.draws is None or probed.share < limits.MIN_SHARE_ELSEWHERE:
            break
        found, share = _with_peak(problem, last, found, probed), probed.share
        last = yield from _until_done(_fitted(problem, found))
        text = f"{last.reason}; fitted again with a peak of {share:.0%} of p that a search found"
        last = replace(last, reason=text)
    if searched and problem.settings.objective == "elbo":
        bounded = _within_edges(problem) if _meets_edges(problem, last.family) else None
        if bounded is not None:
            return (yield from _until_done(bounded))
        if not last.reason.startswith(IMPROPER):
            fitted, seen = yield from _matched(problem, last)
            last, seen = yield from _reached(problem, fitted, seen)
            last, seen = yield from _by_chains(problem, last, seen)
            last = _moved(problem, last, seen)
    elif problem.target.dim > limits.MAX_REFINED_DIMENSIONS and last.converged:
        last = _corrected(problem, last)
    return last


def _meets_edges(problem: _Problem, family: Family) -> bool:
    """Say whether log p is −inf at draws of q."""
    z = family.sample(limits.CHECK_DRAWS, problem.generator)
    with torch.no_grad():
        log_p = problem.target.log_density(z)
    return int((log_p == -math.inf).sum()) > 1


def _within_edges(problem: _Problem) -> Iterator[Progress] | None:
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
    words = edges(target, points) or "log_density is -inf in places among its mass"
    with torch.no_grad():
        first = proposals(points, target.log_density(points))

    def fitted(starts: list[Start], *, defensive: bool = False) -> Iterator[Progress]:
        draws = 2 * limits.MATCHED_DRAWS
        return forward_kl.adaptive(
            target, starts, FullRank, generator, draws=draws, defensive=defensive
        )

    def steps() -> Iterator[Progress]:
        last = yield from _until_done(fitted(first))
        apart = _regions(problem, last.family)
        if apart:
            last = yield from _until_done(fitted(apart, defensive=True))
        last = yield from _whole(problem, last)
        text = f"{last.reason}; KL(p||q) by importance sampling: {words}"
        yield replace(last, reason=text, bounded=True)

    return steps()


def _regions(problem: _Problem, family: Family) -> list[Start]:
    """Return starts on q's region and on another, beyond log p = −inf; none where none is found."""
    z = family.sample(limits.CHECK_DRAWS, problem.generator)
    density, here = problem.target.log_density, family.absorb()
    with torch.no_grad():
        log_p, log_q = density(z), family.log_prob(z)
    if here is None or not bool(log_p.isfinite().any()):
        return []
    probed = probe(density, z, log_p, log_q, generator=problem.generator)
    if probed.draws is None or probed.log_weights is None or probed.share < limits.NAMED_ELSEWHERE:
        return []
    there = probed.log_weights.softmax(0) @ probed.draws
    return [Start(here, 0.0), Start(Frame(there, here.scale), 0.0)]


def _whole(problem: _Problem, last: Progress) -> Generator[Progress, None, Progress]:
    """Fit what is no Gaussian to weighted draws, where a Gaussian of KL(p‖q) misses much of p."""
    if not last.converged:
        return last
    seen = _pool_of(problem, last.family)
    if seen.missed <= limits.LIMITS.unreached or seen.size < limits.MIN_MATCHED_DRAWS:
        return last
    draws = seen.resampled(limits.RESAMPLED_DRAWS, problem.generator)
    best, kept = yield from _fitted_to(problem, last, seen, draws)
    if best is last:
        return last
    text = f"{last.reason}; q had next to no draws where {seen.missed:.0%} of p is, now "
    text += f"{kept.missed:.1%}, by a {best.family.name} fitted to weighted draws"
    return replace(best, loss=last.loss, converged=True, reason=text)


@dataclass(frozen=True, slots=True)
class _Pooled:
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


def _sample(problem: _Problem, family: Family, number: int) -> Sample:
    """Draw from q, with log p, log q and the gradient of log p."""
    z = family.sample(number, problem.generator)
    log_p, slope = problem.target.score(z)
    with torch.no_grad():
        log_q = family.log_prob(z)
    return Sample(draws=z, log_p=log_p, log_q=log_q, scores=(slope, slope))


def _more(problem: _Problem, family: Family, seen: _Pooled) -> _Pooled:
    """Draw anew where a few draws do not settle it, about the paths that they showed."""
    z = family.sample(limits.MATCHED_DRAWS, problem.generator)
    with torch.no_grad():
        log_p, log_q = problem.target.log_density(z), family.log_prob(z)
    return _pooled_with(problem, family, Sample(draws=z, log_p=log_p, log_q=log_q), seen.ridges)


def _pool_of(problem: _Problem, family: Family, number: int = limits.MATCHED_DRAWS) -> _Pooled:
    """Draw from q and beyond it."""
    sample = _sample(problem, family, number)
    ridges = ridges_of(problem.target.log_density, sample)
    return _pooled_with(problem, family, sample, ridges)


def _pooled_with(problem: _Problem, family: Family, sample: Sample, ridges: list[Ridge]) -> _Pooled:
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
    return _Pooled(sample, wide, ridges, pooled(z, log_p, log_q, wide), missed)


def _shift(target: Target, z: Tensor, pool: Pool) -> tuple[float, float, float]:
    """Return how far weighted draws move q's moments, by the parameters as they were declared.

    The largest move of a mean (sd) or log sd beyond its standard error, that error, and the
    effective draws.
    """
    if len(pool.draws) == 0 or not bool(pool.log_weights.isfinite().all()):
        return 0.0, math.inf, 0.0
    flat = _flat_values(target, torch.cat([z, pool.draws]))
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


def _flat_values(target: Target, z: Tensor) -> Tensor:
    """Return all parameters as they were declared, side by side, `[n, m]`."""
    return torch.cat([v.reshape(len(v), -1) for v in target.constrain(z).values()], 1)


def _still(target: Target, seen: _Pooled) -> bool:
    """Say whether p's moments are q's, both by the same pooled draws.

    With its errors the difference must be below what many draws allow.
    """
    known = seen.weighed
    w, v = (known.weights(logs) for logs in (known.log_p, known.log_q))
    most = moves(_flat_values(target, known.draws), w, v).most
    own = limits.MOMENT_SHIFT_ERRORS / math.sqrt(limits.MATCHED_DRAWS)
    return bool((most < limits.MIN_MOMENT_SHIFT + own).all())


def _close_by(problem: _Problem, family: Family) -> tuple[bool, _Pooled]:
    """Say by a few draws whether no moment of q is off and next to nothing is missed.

    Either q's own weights have light tails and move no moment; or pooled draws move none. The draws
    are returned.
    """
    sample = _sample(problem, family, limits.CLOSE_DRAWS)
    log_weights = sample.log_weights
    if float(pareto_k(log_weights)) < limits.LIMITS.light:
        pool = Pool(sample.draws, log_weights)
        if _shift(problem.target, sample.draws, pool)[0] < limits.MIN_MOMENT_SHIFT:
            return True, _Pooled(sample, None, [], pool, 0.0)
    ridges = ridges_of(problem.target.log_density, sample)
    seen = _pooled_with(problem, family, sample, ridges)
    whole = seen.missed < limits.CLOSE_MISSED * limits.LIMITS.unreached
    enough = seen.size > limits.MIN_MATCHED_DRAWS
    return enough and whole and _still(problem.target, seen), seen


def _matched(
    problem: _Problem, last: Progress
) -> Generator[Progress, None, tuple[Progress, _Pooled]]:
    """Fit a mixture to p's own moments, KL(p‖q), where weighted draws show that q's are off.

    Returns what is kept, with the draws that settle it.
    """
    target, begin = problem.target, time.perf_counter()
    close, first = _close_by(problem, last.family)
    if close:
        return last, first
    seen = _more(problem, last.family, first)
    if seen.size < limits.MIN_MATCHED_DRAWS < first.size:  # a few draws that weigh much: what is
        seen = first  # fitted to either is judged by draws of its own
    kept = seen
    before, error, size = _shift(target, seen.draws, seen.pool)
    if (
        size < limits.MIN_MATCHED_DRAWS
        or before < limits.MIN_MOMENT_SHIFT + limits.MOMENT_SHIFT_ERRORS * error
    ):
        return last, seen
    make = functools.partial(Mixture, components=COMPONENTS)
    best, least = last, limits.MIN_MATCHED_GAIN * before
    for _ in range(limits.MATCHED_ROUNDS):
        now = yield from _until_done(
            forward_kl.maximum_likelihood(
                seen.resampled(limits.RESAMPLED_DRAWS, problem.generator),
                make,
                problem.generator,
                iterations=limits.MATCHED_ITERATIONS,
            )
        )
        seen = _pool_of(problem, now.family)
        after, _, size = _shift(target, seen.draws, seen.pool)
        if size < limits.MIN_MATCHED_DRAWS:
            break
        if after < least:
            best, least, kept = now, after, seen
    cost = f"importance sampling of KL(p||q), {time.perf_counter() - begin:.1f} s"
    if best is last:
        tried = replace(last, reason=f"{last.reason}; {cost}, was tried and not kept")
        return tried, kept
    text = f"converged: moments were {before:.2f} off, now {least:.2f}, by {cost}; {last.reason}"
    return replace(best, loss=last.loss, converged=True, reason=text), kept


def _moved(problem: _Problem, last: Progress, seen: _Pooled) -> Progress:
    """Move and scale q where weighted draws show that its moments are a little off."""
    target = problem.target
    if seen.size < limits.MIN_MATCHED_DRAWS or seen.missed > limits.LIMITS.unreached:
        return last
    found = moved_to_moments(last.family, seen.weighed, lambda z: _flat_values(target, z))
    if found is None:
        return last
    family, before, after = found
    text = f"{last.reason}; q moved to weighted moments, which were {before:.2f} off, now"
    searched = None if last.searched is None else (family, last.searched[1])
    return replace(last, family=family, searched=searched, reason=f"{text} {after:.2f}")


def _by_chains(
    problem: _Problem, last: Progress, seen: _Pooled
) -> Generator[Progress, None, tuple[Progress, _Pooled]]:
    """Fit to draws of a Hamiltonian run where weighted draws are too few to know p's moments.

    Beyond some ten dimensions a q without p's shape leaves few effective draws of any number, and
    is far too narrow itself. What is fitted is kept where less of p is missed.
    """
    few = seen.size < limits.MIN_MATCHED_DRAWS and seen.missed > limits.LIMITS.unreached
    begin, first = time.perf_counter(), seen.draws[seen.sample.log_p.isfinite()]
    first = first[: limits.MANY_CHAINS]
    if not few or len(first) <= 2 * problem.target.dim:
        return last, seen
    chains = from_narrow(problem.target, seen.draws, first, problem.generator)
    best, kept = last, seen
    if chains.moving <= limits.MAX_CHAIN_MOVING and chains.error <= limits.MAX_CHAIN_ERROR:
        best, kept = yield from _fitted_to(problem, last, seen, chains.pooled)
    words = f"fitted to a Hamiltonian run, {time.perf_counter() - begin:.1f} s"
    if best is last:
        tried = replace(last, reason=f"{last.reason}; a mixture {words}, was tried and not kept")
        return tried, seen
    text = f"converged: q had next to no draws where {seen.missed:.0%} of p is, now "
    text += f"{kept.missed:.1%}, by a {best.family.name} {words}; {last.reason}"
    return replace(best, loss=last.loss, converged=True, reason=text), kept


def _fitted_to(
    problem: _Problem, last: Progress, seen: _Pooled, draws: Tensor
) -> Generator[Progress, None, tuple[Progress, _Pooled]]:
    """Return what is fitted to draws `[n, d]` of p and misses less of p than `last`, and its pool.

    A mixture is asked first, a flow where that misses too much. They get the draws' means and sds.
    """
    best, kept = last, seen
    for fitted in _fits_to(problem, draws):
        now = yield from _until_done(fitted)
        family = to_draws(now.family, draws, problem.generator)
        after = _pool_of(problem, family)
        off = (after.draws.std(0) / draws.std(0)).log().abs().max()
        steady = float(off) < limits.REACHED_SHIFT  # far draws of a flow may carry its sd
        if steady and after.missed < limits.MIN_MATCHED_GAIN * kept.missed:
            best, kept = replace(now, family=family), after
        if kept.missed <= limits.LIMITS.unreached:
            break
    return best, kept


def _fits_to(problem: _Problem, draws: Tensor) -> Iterator[Iterator[Progress]]:
    """Give fits to draws by KL(p‖q), the cheaper first: of a mixture, and of a flow with zuko."""
    generator = problem.generator
    some = torch.randperm(len(draws), generator=generator)[: limits.RESAMPLED_DRAWS]
    make = functools.partial(Mixture, components=COMPONENTS)
    yield forward_kl.maximum_likelihood(
        draws[some], make, generator, iterations=limits.MATCHED_ITERATIONS
    )
    if importlib.util.find_spec("zuko") is not None and problem.target.dim > 1:
        yield forward_kl.by_steps(draws, Flow(Frame.of_draws(draws)), generator)


def _reached(
    problem: _Problem, last: Progress, seen: _Pooled
) -> Generator[Progress, None, tuple[Progress, _Pooled]]:
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
        now = yield from _until_done(steps)
        after = _pool_of(problem, now.family)
    else:
        flow = Flow(Frame.of_draws(draws))
        now = yield from _until_done(forward_kl.by_steps(draws, flow, generator))
        for _ in range(limits.POLISH_ROUNDS):
            now = yield from _until_done(_polished(problem, flow))
            after = _pool_of(problem, flow)
            if after.missed <= limits.LIMITS.unreached:
                break
    words = f"a {now.family.name} fitted to weighted draws, {time.perf_counter() - begin:.1f} s"
    was_off = _shift(problem.target, seen.draws, seen.pool)[0]
    off, error, _ = _shift(problem.target, after.draws, after.pool)
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
    return replace(now, loss=last.loss, converged=True, reason=text), after


def _polished(problem: _Problem, flow: Flow) -> Iterator[Progress]:
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
    yield _finished(replace(last, done=True), problem.target, problem.generator)


def _elsewhere(problem: _Problem, last: Progress) -> Probed | None:
    """Search for a peak that q has not; None where log p is not finite at q's draws."""
    target, generator = problem.target, problem.generator
    z = last.family.sample(limits.CHECK_DRAWS, generator)
    with torch.no_grad():
        log_p, log_q = target.log_density(z), last.family.log_prob(z)
    if not bool(log_p.isfinite().all()):
        return None
    return probe(target.log_density, z, log_p, log_q, generator=generator)


def _with_peak(
    problem: _Problem, last: Progress, found: list[Start], probed: Probed
) -> list[Start]:
    """Return all starts and one on the peak that was found."""
    weights = cast(Tensor, probed.log_weights).softmax(0)
    frame = forward_kl.moments(cast(Tensor, probed.draws), weights)
    there = replace(judged(problem.target, frame, problem.generator), apart=True)
    here = last.family.absorb()
    known = [Start(here, -last.loss)] if here is not None else found
    return sorted([*known, there], key=lambda start: -start.elbo)


def _fitted(problem: _Problem, found: list[Start]) -> Iterator[Progress]:
    target, how = problem.target, problem.how
    family = _begin(how, found)
    refine = how.refine and problem.settings.objective == "elbo"
    # where they are plenty, the first draws already show whether one Gaussian will do
    early = refine and how.draws >= limits.EARLY_DRAWS_PER_DIMENSION * target.dim
    most = how.draws if early else how.max_draws
    minimised = functools.partial(
        deterministic, loss=problem.loss(), generator=problem.generator, names=target.names
    )
    last = yield from _until_done(minimised(family, draws=how.draws, max_draws=most))
    # also where few draws are all that is wrong
    if refine and last.gradient_norm < limits.MAX_REFINED_GRADIENT:
        better = yield from _until_done(_refined(problem, last, found))
        if better is not last:
            yield better
            return
    if last.disagreement > limits.FRESH_DRAWS_AGREE and most < how.max_draws:
        more = minimised(last.family, draws=2 * most, max_draws=how.max_draws)
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
    now = yield from _until_done(refined)
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


def _finished(now: Progress, target: Target, generator: torch.Generator) -> Progress:
    """Widen a flow that is done, and say so; not with rows, which every draw would have to meet."""
    if not now.done or not isinstance(now.family, Flow) or target.rows is not None:
        return now
    h = widen_tails(now.family, target, generator)
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


def _begin(how: Plan, found: list[Start]) -> Family:
    """Make the family in the best start's frame; a mixture begins on every peak that was found."""
    partial = how.make if isinstance(how.make, functools.partial) else functools.partial(how.make)
    if partial.func is Mixture and "starts" not in partial.keywords:
        return mixture_of(found, **partial.keywords)
    return how.make(found[0].frame)
