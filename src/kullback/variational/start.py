"""Where a fit begins: a damped Newton path uphill, judged by the ELBO of a Gaussian at each stop.

Which to use: `find_start`, which tries several random starting points and returns the best Gaussian
frame met on the way, not the mode: near a mode without mass (a funnel's neck, an unbounded peak)
the ELBO falls, and the path is left there.
Reference: Zhang et al. (2022), "Pathfinder", for the idea; curvature here comes from differences of
the gradient, which cost one batched evaluation and care nothing for the scale of the axes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import RunError

from .frame import Frame
from .noise import fixed_normals
from .target import Target

__all__ = ["Start", "find_start"]


@dataclass(frozen=True, slots=True)
class Start:
    """A Gaussian to begin with and its ELBO in nats; `others` are the ends of the other paths."""

    frame: Frame
    elbo: float
    others: tuple["Start", ...] = ()


def find_start(
    target: Target, generator: torch.Generator, *, starts: int = 4, rows: Tensor | None = None
) -> Start:
    """Return the Gaussian of the highest ELBO on `starts` paths from random points, `dim` reals.

    The points are uniform on (−2, 2), the first one on (−0.1, 0.1). rows: a fixed mini-batch to
    stand for the data.
    Errors: `RunError` when no point with a finite density and a finite ELBO was met; it says which
    parameter values (and which data row) were not finite.
    """
    noise = fixed_normals(64, target.dim, generator)
    best: list[Start] = []
    for number in range(starts):
        reach = 0.1 if number == 0 else 2.0
        uniform = torch.rand(target.dim, generator=generator, dtype=torch.float64)
        found = _path(target, reach * (2 * uniform - 1), noise, rows)
        if found is not None:
            best.append(found)
    if not best:
        points = 2 * torch.rand(64, target.dim, generator=generator, dtype=torch.float64) - 1
        why = target.explain(points) or "every Gaussian tried had an ELBO that is not finite"
        raise RunError(f"log_density: no place to start from was found: {why}")
    best.sort(key=lambda start: -start.elbo)
    return Start(best[0].frame, best[0].elbo, tuple(best[1:]))


def _path(target: Target, z: Tensor, noise: Tensor, rows: Tensor | None) -> Start | None:
    """Climb from z `[d]`; return the best Gaussian on the way."""
    best: Start | None = None
    worse, step = 0, 1.0
    value, slope = _at(target, z, rows)
    for _ in range(100):
        if not math.isfinite(value) or not bool(slope.isfinite().all()):
            break
        values, vectors = _curvature(target, z, slope, rows)
        here = _best_of(target, z, values, vectors, noise, rows)
        if here is not None and (best is None or here.elbo > best.elbo + 1e-3):
            best, worse = here, 0
        else:
            worse += 1
        move = vectors @ ((vectors.mT @ slope) / values)
        gain = float(move @ slope)
        if gain < 1e-6 or worse > 12:  # twice the rise in log p that a quadratic promises
            break
        z, value, slope, step = _uphill(target, z, value, move, gain, min(1.0, 4 * step), rows)
        if step == 0.0:
            break
    return best


def _at(target: Target, z: Tensor, rows: Tensor | None) -> tuple[float, Tensor]:
    value, slope = target.score(z[None], rows)
    return float(value), slope[0]


def _curvature(
    target: Target, z: Tensor, slope: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return eigenvalues of `|−∂² log p|`, floored, and eigenvectors, by central differences."""
    width = 1e-5 * (1 + z.abs())
    steps = torch.diag(width)
    _, slopes = target.score(torch.cat([z + steps, z - steps]), rows)
    up, down = slopes.chunk(2)
    hessian = (up - down) / (2 * width[:, None])
    hessian = torch.where(hessian.isfinite(), hessian, 0.0)
    scale = hessian.diagonal().abs().clamp_min(1e-12).rsqrt()  # eigenvectors of a balanced matrix
    balanced = -0.5 * (hessian + hessian.mT) * scale[:, None] * scale
    values, vectors = torch.linalg.eigh(balanced)
    values = values.abs().clamp_min(1e-6 * float(values.abs().max().clamp_min(1e-300)))
    # H ≈ S⁻¹ V Λ Vᵀ S⁻¹; hand back W = S V with H⁻¹ = W Λ⁻¹ Wᵀ
    return values, scale[:, None] * vectors


def _uphill(
    target: Target,
    z: Tensor,
    value: float,
    move: Tensor,
    gain: float,
    step: float,
    rows: Tensor | None,
) -> tuple[Tensor, float, Tensor, float]:
    """Halve the step until log p rises enough."""
    for _ in range(30):
        new = z + step * move
        here, slope = _at(target, new, rows)
        if here >= value + 1e-4 * step * gain:
            return new, here, slope, step
        step *= 0.5
    return z, value, slope, 0.0


def _best_of(
    target: Target, z: Tensor, values: Tensor, vectors: Tensor, noise: Tensor, rows: Tensor | None
) -> Start | None:
    """Judge N(z, H⁻¹) and narrower ones by their ELBO."""
    best: Start | None = None
    whole = vectors * values.rsqrt()
    for shrink in (1.0, 0.3):
        root, bad = torch.linalg.cholesky_ex(shrink**2 * whole @ whole.mT)
        if int(bad) or not bool(root.isfinite().all()):
            continue
        frame = Frame.dense(z, root)
        with torch.no_grad():
            mean = float(target.log_density(frame.outwards(noise), rows).mean())
        size = len(z)
        elbo = mean + float(frame.log_det) + 0.5 * size * (1 + math.log(2 * math.pi))
        if math.isfinite(elbo) and (best is None or elbo > best.elbo):
            best = Start(frame, elbo)
    return best
