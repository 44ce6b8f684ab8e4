"""The deterministic fit: fixed draws make the objective a function, L-BFGS finds its optimum.

Which to use: `deterministic`, through `fit`. With fixed draws (`fixed_normals`, more of them than
dimensions) the average over draws is a smooth function of q's parameters, so that "converged" has a
meaning: in the frame's coordinates, where one unit is about one posterior standard deviation, no
entry of the gradient exceeds a tolerance. Then fresh draws are asked whether they agree; if not,
the number of draws is doubled.

`minimise` is L-BFGS for any smooth function of a flat vector; it yields a `Step` after every
iteration, so that the caller watches, stops and shows progress. torch's own optimiser hides the
line search and the reason why it stopped.

Reference: Giordano, Ingram and Broderick (2024), "Black box variational inference with a
deterministic objective"; Burroni, Domke and Sheldon (2024), "Sample average approximation";
Nocedal and Wright (2006), "Numerical Optimization", algorithms 7.4 and 3.5.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kullback.core import require
from kullback.variational import limits
from kullback.variational.families import Family
from kullback.variational.families.family import Frame

from . import IMPROPER, Progress

__all__ = ["Loss", "Step", "deterministic", "fixed_normals", "improper", "minimise"]

Objective = Callable[[Tensor], tuple[float, Tensor]]  # a point to loss and gradient
Loss = Callable[[Family, Tensor], Tensor]  # family and noise to a scalar, nats


def fixed_normals(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return n points `[n, dim]` (float64) that stand for N(0, I): Sobol, antithetic, whitened.

    Scrambled Sobol points through the normal quantile function (above 21,201 dimensions, where
    there are none, pseudo-random normals), and their mirror images, so that the mean and every odd
    moment are zero. Where n ≥ 4·dim they are then transformed so that their
    covariance is the identity, which makes averages of quadratics *exact*: a Gaussian target is
    fitted to rounding whatever n. With fewer points each axis alone is scaled to variance 1.
    n: rounded up to an even number. Errors: `ArgumentValueError` for n < 2.

    >>> points = fixed_normals(64, 2, torch.Generator().manual_seed(0))
    >>> torch.allclose(points.mT @ points / 64, torch.eye(2, dtype=torch.float64))
    True
    """
    require(n >= 2, "n", "at least 2 draws", n)
    half = (n + 1) // 2
    seed = int(torch.randint(2**31, (), generator=generator))
    if dim > torch.quasirandom.SobolEngine.MAXDIM:  # Joe and Kuo's direction numbers end there
        own = torch.Generator().manual_seed(seed)
        points = torch.randn(half, dim, generator=own, dtype=torch.float64)
    else:
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        uniform = engine.draw(half, dtype=torch.float64)
        uniform = uniform.clamp(2.0**-32, 1 - 2.0**-32)
        points = torch.special.ndtri(uniform)
    if 2 * half >= 4 * dim:
        root = torch.linalg.cholesky(points.mT @ points / half)
        points = torch.linalg.solve_triangular(root, points.mT, upper=False).mT
    else:
        points = points / points.square().mean(0).sqrt()
    return torch.cat([points, -points])


@dataclass(frozen=True, slots=True)
class Step:
    """Where an iteration ended: the point, its loss, its gradient, and evaluations so far.

    stuck: whether the line search found no lower point, so that there is no next step.
    """

    x: Tensor
    loss: float
    gradient: Tensor
    evaluations: int
    stuck: bool = False


def minimise(objective: Objective, x: Tensor, *, memory: int = 20) -> Iterator[Step]:
    """Go downhill from x `[d]`, yielding the start and then every iteration's `Step`, without end.

    objective: x to loss and gradient `[d]`; a loss that is not finite counts as infinitely high.
    The last step has `stuck` set when rounding or a wall leaves no lower point in reach.

    >>> import torch
    >>> bowl = lambda x: (float(x.square().sum()), 2 * x)
    >>> steps = minimise(bowl, torch.ones(2, dtype=torch.float64))
    >>> [round(next(steps).loss, 9) for _ in range(3)]
    [2.0, 0.171572875, 0.0]
    """
    loss, gradient = objective(x)
    step = Step(x, loss, gradient, 1)
    yield step
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)
    while not step.stuck:
        direction = _direction(step.gradient, pairs)
        if not bool((direction @ step.gradient) < 0):
            pairs.clear()
            direction = -step.gradient
        first = 1.0 if pairs else min(1.0, 1.0 / (float(step.gradient.norm()) + 1e-300))
        new = _search(objective, step, direction, first)
        if new.stuck and pairs:  # forget the curvature and try straight downhill, once
            pairs.clear()
            continue
        change, turn = new.x - step.x, new.gradient - step.gradient
        curvature = change @ turn
        if bool(curvature > limits.MIN_CURVATURE * change.norm() * turn.norm()):
            pairs.append((change, turn, 1.0 / curvature))
        step = new
        yield step


def _direction(gradient: Tensor, pairs: "deque[tuple[Tensor, Tensor, Tensor]]") -> Tensor:
    """Multiply minus the gradient by the inverse Hessian that the last steps tell of."""
    direction, shares = -gradient, []
    for change, turn, inverse in reversed(pairs):
        share = inverse * (change @ direction)
        direction = direction - share * turn
        shares.append(share)
    if pairs:
        _, turn, inverse = pairs[-1]
        direction = direction / (inverse * (turn @ turn))
    for (change, turn, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + (share - inverse * (turn @ direction)) * change
    return direction


def _search(objective: Objective, step: Step, direction: Tensor, length: float) -> Step:
    """Find a point that satisfies the weak Wolfe conditions by bisection and doubling."""
    slope = float(direction @ step.gradient)
    low, high, evaluations = 0.0, float("inf"), step.evaluations
    best: Step | None = None
    for _ in range(limits.MAX_LINE_SEARCH):
        x = step.x + length * direction
        loss, gradient = objective(x)
        evaluations += 1
        allowed = step.loss + limits.SUFFICIENT_DECREASE * length * slope
        if not loss <= allowed:  # also where it is NaN
            high = length
        else:
            best = Step(x, loss, gradient, evaluations)
            if float(direction @ gradient) >= limits.CURVATURE_CONDITION * slope:
                return best
            low = length
        length = 2 * low if high == float("inf") else 0.5 * (low + high)
        if best is not None and evaluations - step.evaluations > limits.ENOUGH_LINE_SEARCH:
            return best
    return Step(step.x, step.loss, step.gradient, evaluations, stuck=True)


def deterministic(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    *,
    draws: int,
    max_draws: int,
    agreement: float = limits.FRESH_DRAWS_AGREE,
    tolerance: float = limits.GRADIENT_TOLERANCE,
    iterations: int = 500,
    names: Sequence[str] = (),
) -> Iterator[Progress]:
    """Minimise `loss(family, noise)` over q's parameters, yielding `Progress` each iteration.

    draws: fixed normals to begin with, doubled up to max_draws while fresh ones disagree with the
    optimum by more than `agreement`, the largest entry of their gradient there. tolerance: the
    largest entry of the gradient at which it has converged. names: of z's coordinates, for what is
    said about an improper target.
    """
    size, used = draws, 0
    while True:
        noise = family.balanced(fixed_normals(size, family.noise_dim, generator))
        for now in _rounds(family, loss, noise, iterations - used, names, tolerance):
            used += 1
            if not now.done:
                yield now
        family = now.family
        if not now.converged or used >= iterations:
            yield now
            return
        fresh = family.balanced(fixed_normals(size, family.noise_dim, generator))
        off = float(value_and_gradient(family, loss(family, fresh))[1].abs().max())
        if off <= agreement or 2 * size > max_draws:
            fits = off <= limits.FRESH_DRAWS_CONVERGED
            reason = now.reason if fits else "stopped: q is fitted to too few draws"
            text = f"{reason}; {len(fresh)} fresh draws move the optimum by {off:.3f}"
            lost = fits and now.improper
            yield replace(now, converged=fits, reason=text, disagreement=off, improper=lost)
            return
        size *= 2


def _rounds(
    family: Family,
    loss: Loss,
    noise: Tensor,
    iterations: int,
    names: Sequence[str],
    tolerance: float,
) -> Iterator[Progress]:
    """Minimise with fixed noise; a Gaussian is looked at anew, as N(0, I), every few iterations."""
    used, first = 0, family.frame
    gaussian = family.absorb() is not None
    losses: deque[float] = deque(maxlen=limits.STILL_STEPS)
    while True:
        start = parameters_to_vector(family.parameters()).detach()
        objective = objective_of(family, lambda q: loss(q, noise))
        for count, step in enumerate(minimise(objective, start)):
            used += 1
            norm, moved = (float(v.abs().max()) for v in (step.gradient, step.x - start))
            vector_to_parameters(step.x, family.parameters())
            settled = (
                norm <= tolerance
                and abs(step.loss) < limits.MAX_OBJECTIVE
                and (moved <= limits.REFRAME_MOVE or not gaussian)
            )
            losses.append(step.loss)
            still = len(losses) == losses.maxlen and losses[0] - losses[-1] < limits.STILL_GAIN
            kink = max(limits.KINK_GRADIENT / len(noise), limits.FRESH_DRAWS_AGREE)
            kinked = (step.stuck or still) and norm <= kink
            reason = _verdict(step, norm, used, iterations, settled=settled or kinked)
            settled = settled or (kinked and bool(reason))
            yield Progress(
                family,
                step.loss,
                norm,
                done=bool(reason),
                converged=settled,
                reason=reason,
                improper=step.loss < -limits.MAX_OBJECTIVE,
            )
            if reason:
                return
            if gaussian and (
                count >= limits.REFRAME_ITERATIONS
                or moved > limits.REFRAME_MOVE
                or norm <= tolerance
            ):
                break
        frame = family.absorb()
        if frame is not None:
            family = type(family)(frame)
            lost = improper(first, frame, names)
            if lost:
                yield Progress(family, step.loss, norm, done=True, reason=lost, improper=True)
                return


def improper(first: Frame, now: Frame, names: Sequence[str] = ()) -> str:
    """Say which coordinates of a Gaussian run away from where it began; nothing if none does."""
    before, after = (f.sd for f in (first, now))
    growth = (after / before).log()
    drift = (now.shift - first.shift).abs() / torch.maximum(before, after)
    words = {
        "spreads without end: is the prior proper?": ~(growth < limits.MAX_LOG_GROWTH),
        "shrinks without end: the density is unbounded": growth < -limits.MAX_LOG_SHRINKAGE,
        "runs away: the density keeps rising": ~(drift < math.exp(limits.MAX_LOG_GROWTH)),
    }
    for text, bad in words.items():
        if bool(bad.any()):
            places = bad.nonzero().flatten().tolist()[: limits.SHOWN_COORDINATES]
            which = ", ".join(names[i] if names else f"z[{i + 1}]" for i in places)
            return f"{IMPROPER}: q({which}) {text}"
    return ""


def _verdict(step: Step, norm: float, used: int, iterations: int, *, settled: bool) -> str:
    """Say why to stop, or nothing."""
    if step.loss < -limits.MAX_OBJECTIVE:
        return f"{IMPROPER}: the objective passes 1e15 nats, so the density has no bound"
    if settled:
        return f"converged: largest gradient entry {norm:.1e}, in posterior standard deviations"
    if used >= limits.MAX_INFINITE_STEPS and not math.isfinite(step.loss):
        return "stopped: the objective is infinite, log p is -inf at draws of q"
    if step.stuck:
        return f"stopped: no lower objective within reach, largest gradient entry {norm:.1e}"
    if used >= iterations:
        return f"stopped after {used} iterations, largest gradient entry {norm:.1e}"
    return ""


def objective_of(family: Family, value: Callable[[Family], Tensor]) -> Objective:
    """Return a function of the family's flat parameters: a value, and its gradient in them."""

    def objective(x: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(x, family.parameters())
        return value_and_gradient(family, value(family))

    return objective


def value_and_gradient(family: Family, value: Tensor) -> tuple[float, Tensor]:
    """Return a scalar and its gradient in all parameters of the family, flat."""
    gradients = torch.autograd.grad(value, list(family.parameters()))
    return float(value.detach()), torch.cat([g.reshape(-1) for g in gradients])
