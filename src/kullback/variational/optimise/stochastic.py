"""Gradient steps on fresh draws: averaged windows, cosine annealing, quiet mini-batches.

Which to use: `stochastic`, through `fit`, for data in mini-batches and for densities that cannot be
reparameterised. In the frame's coordinates a gradient *is* about the distance to the optimum in
posterior standard deviations, whatever the units: a full-rank Gaussian, whose curvature the frame
has made about 1, takes plain steps of a share of it; all else takes Adam's. No learning rate is
asked for. At each step size the iterates are watched window by window: when R-hat of the window's
halves says they no longer travel, their average is taken, the step size is halved and the window
doubled; when two averages in a row agree, the fit is over.

`cosine_annealing`, then `widen_tails`, for flows, whose parameters have no scale of their own, so
that how far they still travel says little. A round's step size falls along half a cosine; its end,
where steps are small, is an average in all but name. The next round is twice as long and starts
half as high. When it raises the objective by less than 0.02 nats, or by less than the error of
that, the fit is over.

`anchor` climbs to near the top of the full data's posterior with a few passes; `anchored` is then
an unbiased mini-batch log density whose noise is that of the second-order rest, small when q is
narrow about the anchor, which is what many rows make it.

Reference: Welandawe, Andersen, Vehtari and Huggins (2022), "Robust, automated, and accurate
black-box variational inference"; Loshchilov and Hutter (2017), "SGDR: stochastic gradient descent
with warm restarts"; Agrawal, Sheldon and Domke (2020), "Advances in black-box VI", for the path
gradient in flows; Johnson and Zhang (2013), "Accelerating stochastic gradient descent using
predictive variance reduction", and Baker et al. (2019), "Control variates for stochastic gradient
MCMC", for mini-batches.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kullback.core import require
from kullback.sampled import pareto_k
from kullback.variational import limits
from kullback.variational.families import Family, Flow
from kullback.variational.families.family import Frame
from kullback.variational.target.batches import Rows
from kullback.variational.target.density import Target

from . import Progress
from .deterministic import Loss, value_and_gradient

__all__ = [
    "Adam",
    "Window",
    "anchor",
    "anchored",
    "cosine_annealing",
    "one_round",
    "stochastic",
    "widen_tails",
]

FAST, SLOW = 0.9, 0.99  # the memories, of gradients and of their squares


@dataclass
class Adam:
    """Running means of the gradient and of its square, for one tensor of any shape.

    PyTorch's own, when first made, imports a compiler, which costs two seconds of CPU; with its
    epsilon of 1e-8 the steps are the same.
    Reference: Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.

    >>> import torch
    >>> Adam().step(torch.tensor([3.0, -0.001]), 0.1)
    tensor([-0.1000,  0.1000])
    """

    epsilon: float = 1e-12
    first: Tensor | None = None
    second: Tensor | None = None
    count: int = 0

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step to add to what has this gradient, to go down."""
        zero = torch.zeros_like(gradient)
        first, second = (zero if x is None else x for x in (self.first, self.second))
        self.count += 1
        self.first = first.lerp(gradient, 1 - FAST)
        self.second = (second * SLOW).addcmul(gradient, gradient, value=1 - SLOW)
        root = self.second.sqrt() / (1 - SLOW**self.count) ** 0.5 + self.epsilon
        return torch.addcdiv(zero, self.first, root, value=-rate / (1 - FAST**self.count))

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows of the tensor alone."""
        if self.first is not None and self.second is not None:
            self.first, self.second = self.first[rows], self.second[rows]


@dataclass
class Window:
    """Running mean and variance of the two halves of a window of vectors, in constant memory.

    >>> import torch
    >>> window = Window.of(torch.zeros(1), 4)
    >>> for value in (1.0, 2.0, 1.0, 2.0):
    ...     window.add(torch.tensor([value]))
    >>> window.r_hat(), window.mean
    (tensor(1.), tensor([1.5000]))
    """

    means: Tensor
    squares: Tensor
    size: int
    count: int = 0

    @classmethod
    def of(cls, like: Tensor, size: int) -> "Window":
        """Make an empty window for `size` vectors."""
        return cls(like.new_zeros(2, len(like)), like.new_zeros(2, len(like)), size)

    def add(self, vector: Tensor) -> None:
        """Take in the next vector (Welford's recurrence)."""
        half = int(self.count >= self.size // 2)
        seen = self.count - half * (self.size // 2) + 1
        change = vector - self.means[half]
        self.means[half] += change / seen
        self.squares[half] += change * (vector - self.means[half])
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """The mean of all vectors, once the window is full."""
        return self.means.mean(0)

    def r_hat(self) -> Tensor:
        """Return the split R-hat `√(1 + variance of means / mean of variances)`, a scalar.

        Of all entries the one that nine in ten do not exceed: among thousands the largest is noise.
        """
        within = self.squares.mean(0) / (self.size // 2 - 1)
        between = (self.means[0] - self.means[1]).square() / 2
        ratios = (1 + between / within.clamp_min(1e-300)).sqrt()
        return ratios.sort().values[int(0.9 * (len(ratios) - 1))]


def stochastic(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    *,
    draws: int,
    rate: float,
    iterations: int,
    plain: bool = False,
) -> Iterator[Progress]:
    """Minimise the expectation of `loss(family, noise)`, yielding `Progress` each iteration.

    draws: fresh antithetic normals a step. rate: the first step size, in the frame's coordinates.
    plain: steps of rate times the gradient (a curvature of about 1 is known), not Adam's.
    What is watched are q's parameters where they are in units of standard deviations (a Gaussian),
    else the loss. Where gradients grow or stop being finite, q goes back and the steps are halved.
    """
    watch = family.absorb() is not None
    window = limits.PARAMETER_WINDOW if watch else limits.LOSS_WINDOW
    kept, moved, used = None, math.inf, 0
    now = Progress(family, math.nan, math.nan)
    for level in range(limits.MAX_STEP_SIZES):
        walk = _Walk(family, rate * 0.5**level, plain)
        for now in _level(walk, loss, generator, draws, window << level, watch=watch):
            used += 1
            if used >= iterations:
                reason = f"stopped after {used} iterations, before averages agreed"
                yield replace(now, done=True, reason=reason)
                return
            yield now
        if walk.average is None:  # lost: again with smaller steps
            continue
        moved = math.inf if kept is None else float((walk.average - kept).abs().max())
        kept = walk.average
        if moved < (limits.AVERAGES_AGREE_SD if watch else limits.AVERAGES_AGREE_NATS):
            unit = "posterior standard deviations" if watch else "nats"
            reason = f"converged: averages at two step sizes agree to {moved:.3f} {unit}"
            yield Progress(family, now.loss, moved, done=True, converged=True, reason=reason)
            return
    reason = f"stopped: the averages still move by {moved:.3f} at the smallest step"
    if kept is None:
        reason = "stopped: gradients grow without bound, or are not finite, at every step size"
    yield Progress(family, now.loss, moved, done=True, reason=reason)


@dataclass
class _Walk:
    """A family's flat parameters on the move. average: of what is watched, once it stands still."""

    family: Family
    rate: float
    plain: bool
    average: Tensor | None = None

    def __post_init__(self) -> None:
        self.x = parameters_to_vector(self.family.parameters()).detach()
        self.home = self.x
        self.adam, self.count, self.limit = Adam(), 0, math.inf

    def step(self, value: float, gradient: Tensor) -> float:
        """Take a step down the gradient of a loss; return its largest entry, inf if it is lost."""
        norm = float(gradient.abs().max())
        self.limit = limits.DIVERGED_GRADIENT * (norm + 1) if self.count == 0 else self.limit
        self.count += 1
        if not (norm <= self.limit and math.isfinite(value)):
            return math.inf
        if self.plain:
            self.x = self.x - self.rate * gradient
        else:
            self.x = self.x + self.adam.step(gradient, self.rate)
        vector_to_parameters(self.x, self.family.parameters())
        return norm

    def go_to(self, x: Tensor) -> None:
        """Put the family's parameters at x."""
        self.x = x
        vector_to_parameters(x, self.family.parameters())


def _level(
    walk: _Walk, loss: Loss, generator: torch.Generator, draws: int, size: int, *, watch: bool
) -> Iterator[Progress]:
    """Run at one step size until the iterates stand still; leave q at their average."""
    for number in range(limits.MAX_WINDOWS):
        seen, mean = Window.of(walk.x if watch else walk.x[:1], size), torch.zeros_like(walk.x)
        for count in range(size):
            half = walk.family.noise((draws + 1) // 2, generator)
            value, gradient = value_and_gradient(
                walk.family, loss(walk.family, torch.cat([half, -half]))
            )
            norm = walk.step(value, gradient)
            if norm == math.inf:
                walk.go_to(walk.home)
                return
            mean += (walk.x - mean) / (count + 1)
            seen.add(walk.x if watch else walk.x.new_tensor([value]))
            yield Progress(walk.family, value, norm)
        if float(seen.r_hat()) < limits.MAX_R_HAT or number == limits.MAX_WINDOWS - 1:
            walk.go_to(mean)
            walk.average = mean if watch else seen.mean
            return


def cosine_annealing(
    family: Family, loss: Loss, generator: torch.Generator, *, draws: int
) -> Iterator[Progress]:
    """Minimise the expectation of `loss(family, noise)`, yielding `Progress` each step.

    draws: fresh antithetic normals a step. A step whose loss or gradient is not finite is left out;
    when 20 in a row are, the fit stops and says so.
    """
    best, gain = math.inf, math.inf
    for number in range(limits.MAX_ROUNDS):
        ends: list[float] = []
        steps = limits.FIRST_ROUND_STEPS << number
        rate = limits.FIRST_RATE * 0.5**number
        for now in one_round(family, loss, generator, draws=draws, steps=steps, rate=rate):
            if now.done:
                yield now
                return
            ends.append(now.loss)
            yield now
        tail = torch.tensor(ends[-int(limits.ROUND_END * steps) :], dtype=torch.float64)
        gain, best = best - float(tail.mean()), min(best, float(tail.mean()))
        error = 2 * float(tail.std()) / math.sqrt(len(tail))
        if gain < max(limits.MIN_ROUND_GAIN, error):
            reason = f"converged: twice the steps raised the objective by {max(gain, 0.0):.3f} nats"
            yield Progress(family, best, gain, done=True, converged=True, reason=reason)
            return
    reason = f"stopped: the last {steps} steps still raised the objective by {gain:.3f} nats"
    yield Progress(family, best, gain, done=True, reason=reason)


def widen_tails(flow: Flow, target: Target, generator: torch.Generator) -> float:
    """Widen a fitted flow's base as little as makes the weights p/q light-tailed; return how much.

    KL(q‖p) hardly notices a tail that is missing. Here k-hat, averaged over four sets of 4,000
    draws, decides: the first of eight widths with k-hat below 0.45 is taken, else the best of them.
    """
    found: dict[float, float] = {}
    for h in limits.TAIL_WIDTHS:
        flow.widen(h)
        found[h] = (
            sum(_k_hat(flow, target, generator) for _ in range(limits.K_HAT_SETS))
            / limits.K_HAT_SETS
        )
        if found[h] < limits.MAX_FLOW_K_HAT:
            return h
    best = min(found, key=lambda h: found[h] if math.isfinite(found[h]) else math.inf)
    flow.widen(best)
    return best


def _k_hat(flow: Flow, target: Target, generator: torch.Generator) -> float:
    with torch.no_grad():
        draws = flow.push(flow.noise(limits.K_HAT_DRAWS, generator))  # with log q, in one pass
        return float(pareto_k(target.log_density(draws.z) - draws.log_q))


def one_round(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    *,
    draws: int,
    steps: int,
    rate: float,
) -> Iterator[Progress]:
    """Run Adam over one fall of the step size."""
    x, adam, lost = parameters_to_vector(family.parameters()).detach(), Adam(epsilon=1e-8), 0
    for step in range(1, steps + 1):
        half = family.noise((draws + 1) // 2, generator)
        value, gradient = value_and_gradient(family, loss(family, torch.cat([half, -half])))
        norm = float(gradient.abs().max())
        good = math.isfinite(norm) and math.isfinite(value)
        lost = 0 if good else lost + 1
        if lost == limits.MAX_STEPS_NOT_FINITE:
            reason = "stopped: the loss or its gradient is not finite, step after step"
            yield Progress(family, math.nan, norm, done=True, reason=reason)
            return
        if good:
            x = x + adam.step(gradient, rate)
            vector_to_parameters(x, family.parameters())
        falls = [1 + math.cos(math.pi * k / steps) for k in (step, step - 1)]
        rate *= falls[0] / falls[1]
        if good:
            yield Progress(family, value, norm)


def anchor(target: Target, frame: Frame, *, passes: int = 5, close: float = 0.05) -> Frame:
    """Move a frame's centre uphill by full passes over the rows, `u ← u + ∂ log p/∂u` from u = 0.

    One Newton step where the frame's covariance is the inverse curvature. Ends when a step is
    shorter than `close` in every coordinate (standard deviations), or after `passes` passes; a step
    that does not raise log p is halved.
    """
    z, step = frame.shift, 1.0
    value, slope = target.score(z[None])
    for _ in range(passes):
        move = slope[0] @ frame.factor  # the gradient in u
        if float((step * move).abs().max()) < close:
            break
        new = frame.outwards(frame.inwards(z) + step * move)
        higher, turned = target.score(new[None])
        if bool(higher >= value):
            z, value, slope, step = new, higher, turned, min(1.0, 2 * step)
        else:
            step *= 0.25
    return Frame(z, frame.scale)


def anchored(target: Target, at: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return `log_density(z, rows)`, unbiased for the full log density, quiet near `at` `[d]`.

    `log p(z) ≈ prior(z) + L(a) + ∂L(a)·(z − a) + N/B Σ_batch [l(z) − l(a) − ∂l(a)·(z − a)]`, with
    L the log likelihood of all rows, computed once, here. Errors: `ArgumentValueError` without
    rows.
    """
    data = cast(Rows, target.rows)
    require(data is not None, "target", "one with data rows", "none")

    def likelihood(z: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return data.everything(z, target.constrain)
        return data.scaled(target.constrain(z), rows)

    def tangent(rows: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = at.detach()[None].requires_grad_()
            value = likelihood(leaf, rows)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope[0]

    whole, whole_slope = tangent(None)

    def log_density(z: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return target.log_density(z)
        part, slope = tangent(rows)
        linear = (whole - part) + (z - at) @ (whole_slope - slope)
        return target.prior(z) + likelihood(z, rows) + linear

    return log_density
