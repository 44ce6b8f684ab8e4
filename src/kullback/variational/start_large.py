"""Where a fit begins in many dimensions: L-BFGS uphill, and the diagonal of the curvature there.

Which to use: `find_large_start`, through `find_start`, above a few hundred dimensions, where a
dense Hessian costs too much. Its frame has one scale an axis.
"""

import math

import torch
from torch import Tensor

from .frame import Frame
from .lbfgs import minimise
from .noise import fixed_normals
from .target import Target

__all__ = ["find_large_start"]

STEPS, PROBES = 300, 32


def find_large_start(
    target: Target, z: Tensor, generator: torch.Generator, rows: Tensor | None
) -> tuple[Frame | None, float]:
    """Climb from z `[d]`; return a diagonal frame at the stop of the highest ELBO, and that ELBO.

    The ELBO is judged at every tenth step, by 32 fixed draws. None where none was finite.
    """

    def downhill(x: Tensor) -> tuple[float, Tensor]:
        value, slope = target.score(x[None], rows)
        return -float(value), -slope[0]

    best: tuple[Frame | None, float] = (None, -math.inf)
    noise = fixed_normals(32, target.dim, generator)
    for count, step in enumerate(minimise(downhill, z)):
        last = step.stuck or count == STEPS or float(step.gradient.norm()) < 1e-4
        if last or count % 10 == 0:
            frame = Frame.diagonal(step.x, _curvature(target, step.x, generator, rows).rsqrt())
            value = _elbo(target, frame, noise, rows)
            best = (frame, value) if value > best[1] else best
        if last:
            break
    return best


def _curvature(
    target: Target, z: Tensor, generator: torch.Generator, rows: Tensor | None
) -> Tensor:
    """Estimate the diagonal of −∂² log p by Hutchinson's probes, `E[v ∘ Hv]`, away from zero."""
    signs = torch.randint(2, (PROBES, len(z)), generator=generator).double() * 2 - 1
    width = 1e-5 * (1 + z.abs())
    steps = signs * width
    slopes = target.score(torch.cat([z + steps, z - steps]), rows)[1]
    up, down = slopes.chunk(2)
    diagonal = (-signs * (up - down) / (2 * width)).mean(0).abs()
    return diagonal.clamp_min(1e-2 * float(diagonal.median().clamp_min(1e-12)))


def _elbo(target: Target, frame: Frame, noise: Tensor, rows: Tensor | None) -> float:
    with torch.no_grad():
        mean = float(target.log_density(frame.outwards(noise), rows).mean())
    value = mean + float(frame.log_det) + 0.5 * len(frame.shift) * (1 + math.log(2 * math.pi))
    return value if math.isfinite(value) else -math.inf
