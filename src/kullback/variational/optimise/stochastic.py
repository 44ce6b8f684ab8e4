"""Adam's steps: about one step size an entry, whatever the scale of the gradient.

Which to use: `Adam`, where the curvature is not known. PyTorch's own, when first made, imports a
compiler, which costs two seconds of CPU.
Reference: Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.

Running moments of a window of vectors, and whether its two halves tell the same story.

The stochastic fit: gradient steps in a frame, that shrink when they have nothing more to gain.

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

from kullback.variational.families import Family

from .progress import Progress

__all__ = ["Adam", "Window", "stochastic"]

FAST, SLOW = 0.9, 0.99  # the memories, of gradients and of their squares


@dataclass
class Adam:
    """Running means of the gradient and of its square, for one tensor of any shape.

    >>> import torch
    >>> Adam().step(torch.tensor([3.0, -0.001]), 0.1)
    tensor([-0.1000,  0.1000])
    """

    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    count: int = 0

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step to add to what has this gradient, to go down."""
        self.count += 1
        self.first = FAST * self.first + (1 - FAST) * gradient
        self.second = SLOW * self.second + (1 - SLOW) * gradient.square()
        root = (self.second / (1 - SLOW**self.count)).sqrt() + 1e-12
        return -rate / (1 - FAST**self.count) * self.first / root


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
