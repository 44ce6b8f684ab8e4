"""The stochastic fit: Adam in a frame, steps that shrink when they have nothing more to gain.

Which to use: `stochastic`, through `fit`: for data in mini-batches, for flows, for densities that
cannot be reparameterised. In the frame's coordinates a step of 0.05 is a twentieth of a posterior
standard deviation whatever the units, so no learning rate is asked for. At each step size the
iterates are watched window by window: when R-hat of the window's halves says they no longer travel,
their average is taken and the step size is cut; when two averages in a row agree, the fit is over.
Reference: Welandawe, Andersen, Vehtari and Huggins (2022), "Robust, automated, and accurate
black-box variational inference"; Dhaka et al. (2020) for averages and R-hat.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .families import Family
from .progress import Progress

__all__ = ["Window", "stochastic"]

WINDOW, LEVELS, PATIENCE = 100, 7, 12
STILL, AGREE = 1.2, 0.05  # R-hat; standard deviations (or nats) between two averages

Loss = Callable[[Family, Tensor], Tensor]


@dataclass
class Window:
    """Running mean and variance of the two halves of a window of vectors, in constant memory.

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
        """Return the largest split R-hat: `√(1 + variance of means / mean of variances)`."""
        within = self.squares.mean(0) / (self.size // 2 - 1)
        between = (self.means[0] - self.means[1]).square() / 2
        return (1 + between / within.clamp_min(1e-300)).sqrt().max()


def stochastic(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    *,
    draws: int,
    rate: float,
    iterations: int,
    window: int = WINDOW,
) -> Iterator[Progress]:
    """Minimise the expectation of `loss(family, noise)`, yielding `Progress` each iteration.

    draws: fresh antithetic normals a step. rate: the first step size, in the frame's coordinates.
    What is watched are q's parameters where they are in units of standard deviations (a Gaussian),
    else the loss. A step whose loss or gradient is not finite is skipped; ten in a row end the fit.
    """
    watch = family.absorb() is not None
    kept: Tensor | None = None
    used, last, norm = 0, math.nan, math.nan
    for _level in range(LEVELS):
        average = None
        for now, average in _level_of(family, loss, generator, draws, rate, window, watch=watch):
            used += 1
            last, norm = now.loss, now.gradient_norm
            if now.done or used >= iterations:
                reason = now.reason or f"stopped after {used} iterations, before averages agreed"
                yield Progress(family, last, norm, done=True, reason=reason)
                return
            yield now
        if average is None:
            continue
        moved = math.inf if kept is None else float((average - kept).abs().max())
        kept, rate = average, rate * 0.4
        if moved < AGREE:
            unit = "posterior standard deviations" if watch else "nats"
            reason = f"converged: averages at two step sizes agree to {moved:.3f} {unit}"
            yield Progress(family, last, moved, done=True, converged=True, reason=reason)
            return
    reason = f"stopped: the averages still move by {moved:.3f} at the smallest step"
    yield Progress(family, last, moved, done=True, reason=reason)


def _level_of(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    draws: int,
    rate: float,
    size: int,
    *,
    watch: bool,
) -> Iterator[tuple[Progress, Tensor | None]]:
    """Run at one step size until the iterates stand still; leave q at their average."""
    parameters = list(family.parameters())
    adam = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    mean, skipped = parameters_to_vector(parameters).detach(), 0
    for number in range(PATIENCE):
        seen = Window.of(mean if watch else mean[:1], size)
        mean = torch.zeros_like(mean)
        for count in range(size):
            half = family.noise((draws + 1) // 2, generator)
            value = loss(family, torch.cat([half, -half]))
            adam.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            norm = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
            good = math.isfinite(norm) and math.isfinite(float(value.detach()))
            skipped = 0 if good else skipped + 1
            if good:
                adam.step()
            vector = parameters_to_vector(parameters).detach()
            mean += (vector - mean) / (count + 1)
            seen.add(vector if watch else value.detach().reshape(1).to(vector.dtype))
            reason = "stopped: ten steps in a row were not finite" if skipped >= 10 else ""
            now = Progress(family, float(value.detach()), norm, bool(reason), reason=reason)
            last = count == size - 1
            still = last and (float(seen.r_hat()) < STILL or number == PATIENCE - 1)
            if still:
                vector_to_parameters(mean, parameters)
            yield now, (mean if watch else seen.mean) if still else None
            if still:
                return
