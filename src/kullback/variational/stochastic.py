"""The stochastic fit: gradient steps in a frame, that shrink when they have nothing more to gain.

Which to use: `stochastic`, through `fit`: for data in mini-batches, for flows, for densities that
cannot be reparameterised. In the frame's coordinates a gradient *is* about the distance to the
optimum in posterior standard deviations, whatever the units: a full-rank Gaussian, whose curvature
the frame has made about 1, takes plain steps of a share of it; all else takes Adam's. No learning
rate is asked for. At each step size the iterates are watched window by window: when R-hat of the
window's halves says they no longer travel, their average is taken, the step size is halved and the
window doubled; when two averages in a row agree, the fit is over.
Reference: Welandawe, Andersen, Vehtari and Huggins (2022), "Robust, automated, and accurate
black-box variational inference".
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .adam import Adam
from .families import Family
from .progress import Progress
from .window import Window

__all__ = ["stochastic"]

LONG, SHORT = 200, 50  # the first window: several times the memory of iterates, or of losses
LEVELS, PATIENCE = 8, 12
STILL = 1.2  # R-hat
AGREE, NATS = 0.05, 0.01  # between two averages of parameters (sd) or of the loss
LOST = 100.0  # times the first gradient: the step size was too large

Loss = Callable[[Family, Tensor], Tensor]


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
    window = LONG if watch else SHORT
    kept, moved, used = None, math.inf, 0
    now = Progress(family, math.nan, math.nan)
    for level in range(LEVELS):
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
        if moved < (AGREE if watch else NATS):
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

    def step(self, value: Tensor) -> float:
        """Take a step down the gradient of a scalar; return its largest entry."""
        gradients = torch.autograd.grad(value, list(self.family.parameters()))
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        norm, value = float(gradient.abs().max()), value.detach()
        self.limit = LOST * (norm + 1) if self.count == 0 else self.limit
        self.count += 1
        if not (norm <= self.limit and math.isfinite(float(value))):
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
    for number in range(PATIENCE):
        seen, mean = Window.of(walk.x if watch else walk.x[:1], size), torch.zeros_like(walk.x)
        for count in range(size):
            half = walk.family.noise((draws + 1) // 2, generator)
            value = loss(walk.family, torch.cat([half, -half]))
            norm = walk.step(value)
            if norm == math.inf:
                walk.go_to(walk.home)
                return
            mean += (walk.x - mean) / (count + 1)
            seen.add(walk.x if watch else value.detach().reshape(1))
            yield Progress(walk.family, float(value.detach()), norm)
        if float(seen.r_hat()) < STILL or number == PATIENCE - 1:
            walk.go_to(mean)
            walk.average = mean if watch else seen.mean
            return
