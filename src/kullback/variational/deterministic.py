"""The deterministic fit: fixed draws make the objective a function, L-BFGS finds its optimum.

Which to use: `fit_deterministic`, through `fit`. With fixed draws (more of them than dimensions) the
average over draws is a smooth function of q's parameters, so that "converged" has a meaning: in the
frame's coordinates, where one unit is about one posterior standard deviation, no entry of the
gradient exceeds a tolerance. Then fresh draws are asked whether they agree; if not, the number of
draws is doubled.
Reference: Giordano, Ingram and Broderick (2024), "Black box variational inference with a
deterministic objective"; Burroni, Domke and Sheldon (2024), "Sample average approximation".
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .families import Family
from .lbfgs import Step, minimise
from .noise import fixed_normals

__all__ = ["Progress", "fit_deterministic"]

Loss = Callable[[Family, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a fitter shows after an iteration: q so far, loss, gradient, and whether it is done.

    gradient_norm: the largest entry of the objective's gradient in the frame's coordinates, about
    the distance to the optimum in posterior standard deviations.
    """

    family: Family
    loss: float
    gradient_norm: float
    done: bool = False
    converged: bool = False
    reason: str = ""


def fit_deterministic(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    *,
    draws: int,
    max_draws: int,
    tolerance: float = 1e-3,
    agreement: float = 0.02,
    iterations: int = 500,
) -> Iterator[Progress]:
    """Minimise `loss(family, noise)` over q's parameters, yielding `Progress` each iteration.

    draws: fixed normals to begin with, doubled up to max_draws while fresh ones disagree with the
    optimum by more than `agreement` in any entry of the gradient.
    """
    size = draws
    while True:
        noise = fixed_normals(size, family.noise_dim, generator)
        last = None
        for last in _rounds(family, loss, noise, tolerance, iterations):
            family = last.family
            if not last.done:
                yield last
        if last is None or not last.converged:
            break
        fresh = fixed_normals(2 * size, family.noise_dim, generator)
        off = float(_value_and_gradient(family, loss, fresh)[1].abs().max())
        if off <= agreement or 2 * size > max_draws:
            break
        size *= 2
    if last is not None:
        yield last


def _rounds(
    family: Family, loss: Loss, noise: Tensor, tolerance: float, iterations: int
) -> Iterator[Progress]:
    """Minimise with fixed noise; a Gaussian is looked at anew, as N(0, I), every few iterations."""
    used, patience = 0, 20
    while True:
        start = parameters_to_vector(family.parameters()).detach()
        step: Step | None = None
        for count, step in enumerate(minimise(_objective(family, loss, noise), start)):
            norm = float(step.gradient.abs().max())
            moved = float((step.x - start).abs().max())
            settled = norm <= tolerance and moved <= 1.0
            used += 1
            vector_to_parameters(step.x, family.parameters())
            finished = _verdict(step, norm, settled, used, iterations)
            frame = None if finished else family.absorb()
            yield Progress(family, step.loss, norm, bool(finished), settled, finished)
            if finished:
                return
            if frame is not None and (count >= patience or moved > 1.0 or norm <= tolerance):
                family = type(family)(frame)
                break


def _verdict(step: Step, norm: float, settled: bool, used: int, iterations: int) -> str:  # noqa: FBT001
    """Say why to stop, or nothing."""
    if settled:
        return f"converged: largest gradient entry {norm:.1e} in units of one standard deviation"
    if step.stuck:
        return f"stopped: no lower objective in reach; largest gradient entry {norm:.1e}"
    if used >= iterations:
        return f"stopped after {used} iterations; largest gradient entry {norm:.1e}"
    return ""


def _objective(
    family: Family, loss: Loss, noise: Tensor
) -> Callable[[Tensor], tuple[float, Tensor]]:
    def objective(x: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(x, family.parameters())
        return _value_and_gradient(family, loss, noise)

    return objective


def _value_and_gradient(family: Family, loss: Loss, noise: Tensor) -> tuple[float, Tensor]:
    value = loss(family, noise)
    gradients = torch.autograd.grad(value, list(family.parameters()))
    return float(value.detach()), torch.cat([g.reshape(-1) for g in gradients])
