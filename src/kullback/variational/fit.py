"""Fit q(z) to a log density: `fit`, and the `Fit` that it returns.

Which to use: `fit(log_density, parameters)` and nothing else, for a start: it finds where to begin,
chooses family and method, says what it chose, and stops when it has converged.
`direction="forward"` for KL(p‖q) instead of KL(q‖p) (MATH 4).

A `Fit` is a `FittedPosterior`, as is `Saved`, a fit read from disk: `posterior` and
`sample_posterior` give named draws in the parameters as the user declared them; `draws`, `sample`,
`log_prob` and `distribution` are about z, the vector of unconstrained reals on which q lives (the
log of a positive parameter, for example).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from kullback.core import Estimate, RunError, message, require, require_count, require_type

from . import limits
from .diagnostics.diagnose import Diagnosis
from .diagnostics.missed_modes import Probed
from .diagnostics.summary import Summary, assess, summarise
from .families import Family
from .final_draws import coarse_rounding, evaluated, infinite_mass
from .fitted_posterior import FittedPosterior
from .objectives import Gradient, Objective
from .optimise import Progress, shown
from .stages import Direction, Make, Settings, forwards, reverse
from .starting_points import Init, first_points
from .target.batches import score_in_pieces
from .target.deadline import OutOfTime
from .target.density import Target
from .target.functions import PointDensity
from .target.parameters import Parameters

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit(FittedPosterior):
    """A fitted q(z), how it was fitted, and draws to judge it by.

    Attributes:
        target: p.
        family: q.
        objective: what was maximised, such as "elbo".
        direction: "reverse", KL(q‖p), or "forward", KL(p‖q).
        method: how.
        trace: the objective after every iteration, in nats, higher is better.
        converged: whether the method's own convergence test passed.
        reason: why it stopped, in words.
        gradient_norm: the largest entry of the objective's gradient at the end, in about posterior
            standard deviations.
        seconds: of wall time, without that of other programs' compilers.
        compile_seconds: of these, for the target so far (XLA, PyTensor, Stan's C++).
        draws: `[n, d]` independent draws of q on the unconstrained space, made at the end
            (`posterior` has them in the user's own parameters, by name).
        log_p: `[n]` at the draws, in nats, up to p's constant.
        log_q: `[n]` at the draws, in nats.
        scores: `∂ log p/∂z` and `∂ log q/∂z` at the draws, `[n, d]` each.
        chosen: what was left to choose, and was.
        probed: what a search for other peaks from this q found, where the fit made one; a verdict
            does not repeat it.
        improper: whether it was given up because p has no finite mass, as `reason` says.
        declare: which constraints would remove the edges beyond which log p is −inf; "" where none
            was met.

    Example:
        >>> found = fit(lambda z: -0.5 * z.square().sum(), 1)
        >>> found.converged, found.method, found.draws.shape
        (True, 'deterministic', torch.Size([4000, 1]))
    """

    target: Target
    family: Family
    objective: str
    direction: str
    method: str
    trace: tuple[float, ...]
    converged: bool
    reason: str
    gradient_norm: float
    seconds: float
    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor]
    chosen: str = ""
    compile_seconds: float = 0.0
    probed: Probed | None = None
    improper: bool = False
    declare: str = ""

    @cached_property
    def elbo(self) -> Estimate:
        """The evidence lower bound `E_q[log p − log q]` with its error, from the final draws."""
        why = "a lower bound on the log evidence (Jensen)"
        return Estimate.from_terms(self.log_p - self.log_q, bias="low", why=why)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """How far it may be trusted: bounds on errors and a verdict in words (see `assess`)."""
        return assess(self)

    @cached_property
    def summary(self) -> Summary:
        """A table by parameter, with the verdict; prints as text (see `summarise`)."""
        return summarise(self, self.diagnosis)


def fit(
    log_density: PointDensity | Target,
    parameters: Parameters | None = None,
    *,
    data: Sequence[Tensor] | Tensor | None = None,
    log_prior: PointDensity | None = None,
    batch_size: int | None = None,
    family: str | Make = "auto",
    direction: Direction = "reverse",
    objective: Objective = "elbo",
    gradient: Gradient | Literal["auto"] = "auto",
    method: str = "auto",
    alpha: float = 0.5,
    group: int = 8,
    samples: Tensor | None = None,
    init: Init | None = None,
    starts: int = 4,
    draws: int | None = None,
    evaluation_draws: int | None = None,
    max_seconds: float = limits.MAX_FIT_SECONDS,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Fit:
    """Fit q to p: minimise KL(q‖p) (maximise the ELBO, MATH 2.4), or KL(p‖q) when asked to.

    Approximate: q is the nearest of its family that was found. The result says whether it converged
    and why it stopped; a fit that did not converge is returned too.

    Args:
        log_density: log p up to a constant, in nats, for one point, as `Target.of` takes it; or a
            `Target`, and then without the four arguments that follow.
        parameters: the dimension of z, or names with shapes and constraints.
        data: tensors of rows, of which `log_density` is then the likelihood: of z or of values by
            name, and of some rows of each tensor, it returns one term a row, `[rows]`.
        log_prior: with `data`, the log density of the parameters.
        batch_size: rows that are evaluated together; a step takes one batch, a full pass as many
            calls as there are batches. Few rows are slow: see docs/fitting.md.
        family: a name ("full_rank", "mean_field", "low_rank", "mixture", "student_t", "flow"), or a
            function of a frame such as `functools.partial(Mixture, components=3)`; "auto" takes a
            full-rank Gaussian up to 1,200 dimensions, low rank above, and a mixture of Gaussians
            where fresh draws show that one falls short and the mixture's ELBO is higher, where a
            search finds another peak, or where weighted draws show that moments are off (a mixture
            then fitted to those draws by KL(p‖q)). Where that still misses mass it is a flow (with
            zuko; else more Gaussians), and where weights leave too few draws a mixture or flow is
            fitted to a short Hamiltonian run; above 50 dimensions, where the scores are not linear
            in z, means and sds are those of such a run from q's draws.
        direction: "reverse" for KL(q‖p); "forward" for KL(p‖q), by maximum likelihood.
        objective: what is maximised; see `loss_of`.
        gradient: its estimator; see `loss_of`.
        method: "deterministic" (fixed draws, L-BFGS), "natural_gradient" (full rank, from 300
            dimensions), "batch_and_match" or "stochastic"; "auto" by data and family.
        alpha: the order of a Rényi objective; see `loss_of`.
        group: draws in each importance-weighted term; see `loss_of`.
        samples: `[n, d]` of p on the unconstrained space, for "forward"; without them
            importance-weighted draws are used.
        init: where to begin, instead of points near 0: one value of every parameter, by name, or
            draws `[n, *shape]` of each; an earlier fit, also one that `load` read; or
            unconstrained points, `[d]` or `[n, d]`. Of many, as many as `starts` are taken.
        starts: random places to begin from, the best of which is kept.
        draws: of q in each step.
        evaluation_draws: of q, made at the end: the ones in `Fit.draws`; 4,000 by default, 1,000
            where the density is evaluated one point at a time.
        max_seconds: wall time, not processor time, after which a fit stops, between two evaluations
            of the density, and returns the q that it has; `reason` says so. Of them a tenth is for
            the draws at the end, which are fewer where they would take longer, and never below 100.
        generator: all randomness; without one, seed 0, so that a fit can be repeated.
        progress: a line on stderr, where that is a terminal.

    Returns:
        The fit: q, its draws (`posterior` has them by name), and how far to trust them
        (`diagnosis`).

    Raises:
        RunError: when no finite start is found, with the parameter values (and the data row) that
            are to blame; when `max_seconds` are over before there is any q.
        ArgumentValueError: for names that do not exist, and as `Target.of` raises.
        ArgumentTypeError: as `Target.of` raises.

    Example:
        >>> result = fit(lambda z: -0.5 * ((z - 3.0) / 2.0).square().sum(), 2)
        >>> result.converged, [round(v, 6) for v in result.family.absorb().shift.tolist()]
        (True, [3.0, 3.0])
    """
    target = _target(log_density, parameters, data, log_prior, batch_size)
    known = direction in ("reverse", "forward")
    require(known, "direction", "reverse or forward", repr(direction))
    require(samples is None or direction == "forward", "samples", "direction forward", direction)
    if evaluation_draws is None:
        evaluation_draws = limits.LOOPED_EVALUATION_DRAWS if target.looped else 4000
    require_count(evaluation_draws, "evaluation_draws", 2)
    require_count(starts, "starts")
    require_count(1 if draws is None else draws, "draws")
    hint = "math.inf for no limit"
    require_type(max_seconds, (int, float), "max_seconds", hint)
    require(max_seconds > 0, "max_seconds", "seconds above 0", max_seconds, hint)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    settings = Settings(
        family=family,
        direction=direction,
        method=method,
        objective=objective,
        gradient=gradient,
        alpha=alpha,
        group=group,
        samples=samples,
        init=None if init is None else first_points(target, init),
        starts=starts,
        draws=draws,
        evaluation_draws=evaluation_draws,
        max_seconds=max_seconds,
    )
    return _carry_out(target, settings, generator, show=progress)


def _carry_out(
    target: Target, settings: Settings, generator: torch.Generator, *, show: bool
) -> Fit:
    work = (forwards if settings.direction == "forward" else reverse)(target, settings, generator)
    begin, trace, compiled = time.perf_counter(), [], target.compiling.seconds
    last, in_time = None, True
    seconds = (1 - limits.EVALUATION_SHARE) * settings.max_seconds
    try:
        with target.deadline.within(seconds):
            steps = work.steps()
            for last in shown(steps, work.method, seconds=settings.max_seconds, progress=show):
                trace.append(-last.loss)
    except OutOfTime:
        last, in_time = _unfinished(target, last, settings.max_seconds), False
    except LinAlgError as error:
        hint = "a proper prior for every parameter"
        raise RunError(
            f"q became a matrix of no rank: is the target proper? Try: {hint}"
        ) from error
    if last is None:
        raise RunError("the fit ended before it began")
    family = last.family.requires_grad_(requires_grad=False)
    z = family.sample(settings.evaluation_draws, generator)
    z, log_p, by_p = evaluated(target, z, math.inf if in_time else settings.max_seconds)
    log_q, by_q = score_in_pieces(family.log_prob, z, len(z))
    target.raise_if_all_refused(log_p)
    why = "" if bool(log_p.isfinite().all()) else target.explain(z)
    lost = "" if last.improper or last.bounded else infinite_mass(target, last, z)
    if lost:
        text = f"{lost}; {last.reason}"
        last = replace(last, converged=False, improper=True, reason=text)
    single = coarse_rounding(target, z, log_p, converged=last.converged)
    return Fit(
        target=target,
        family=family,
        objective=settings.maximised,
        direction=settings.direction,
        method=work.method,
        trace=tuple(trace),
        converged=last.converged and (not why or last.bounded),
        reason="; ".join(t for t in (last.reason, single, why or str(target.refusals)) if t),
        gradient_norm=last.gradient_norm,
        seconds=time.perf_counter() - begin - (target.compiling.seconds - compiled),
        draws=z,
        log_p=log_p,
        log_q=log_q,
        scores=(by_p, by_q),
        chosen=work.chosen(family),
        compile_seconds=target.compiling.seconds,
        probed=_probed(last),
        improper=last.improper,
        declare=last.declare,
    )


def _probed(last: Progress) -> Probed | None:
    """Return what a search from this very q found."""
    if last.searched is None or last.searched[0] is not last.family:
        return None
    return last.searched[1]


def _unfinished(target: Target, last: Progress | None, seconds: float) -> Progress:
    """Return what there was when the time was over, and say so."""
    if last is None:
        faster = ", or a log_density that is vectorised over points" if target.looped else ""
        hint = f"more max_seconds{faster}"
        got = f"{seconds:g} s, which were over before any q was found"
        raise RunError(message("max_seconds", "time for a start", got, hint)) from None
    text = f"stopped: {seconds:g} s of wall time (max_seconds) were over"
    return replace(last, done=True, converged=False, reason=text)


def _target(
    log_density: PointDensity | Target,
    parameters: Parameters | None,
    data: Sequence[Tensor] | Tensor | None,
    log_prior: PointDensity | None,
    batch_size: int | None,
) -> Target:
    if isinstance(log_density, Target):
        bare = parameters is None and data is None and log_prior is None and batch_size is None
        require(bare, "parameters", "none beside a Target, which has its own", "some")
        return log_density
    require(callable(log_density), "log_density", "a function or a Target", repr(log_density))
    hint = 'the dimension of z, or {"mu": (), "tau": constraints.positive}'
    require(parameters is not None, "parameters", "what log_density takes", "none", hint)
    extra = {"data": data, "log_prior": log_prior, "batch_size": batch_size}
    return Target.of(log_density, parameters, **extra)  # type: ignore[arg-type]
