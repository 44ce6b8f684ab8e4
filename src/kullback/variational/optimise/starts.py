"""Fixed standard-normal noise that is better than random: low discrepancy, exact first moments.

Which to use: `fixed_normals` for an objective that is to be a function (deterministic fits).

Where a fit begins in many dimensions: L-BFGS uphill, and the diagonal of the curvature there.

Which to use: `find_large_start`, through `find_start`, above a few hundred dimensions, where a
dense Hessian costs too much. Its frame has one scale an axis.

Where a fit begins: damped Newton paths uphill, judged by the ELBO of a Gaussian at each stop.

Which to use: `find_start`, which climbs from several random points at once and returns the best
Gaussian frames met on the way, not the modes: near a mode without mass (a funnel's neck, an
unbounded peak) the ELBO falls, and what is kept lies before it.
Reference: Zhang et al. (2022), "Pathfinder", for the idea; curvature here comes from differences of
the gradient, which cost one batched evaluation and care nothing for the scale of the axes.
"""

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from kullback.core import RunError, require
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

from .lbfgs import minimise

__all__ = ["Start", "find_large_start", "find_start", "fixed_normals"]


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


LBFGS_STEPS, PROBES = 300, 32


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
        last = step.stuck or count == LBFGS_STEPS or float(step.gradient.norm()) < 1e-4
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


NEWTON_STEPS, PATIENCE = 100, 8
FAR = 10.0  # standard deviations to the next stop, from where there is nothing to judge yet
HALVINGS = (range(1), range(1, 4), range(4, 10), range(10, 25))  # tried at once in a line search
DENSE = 300  # dimensions up to which the curvature is a matrix


@dataclass(frozen=True, slots=True)
class Start:
    """A Gaussian to begin with, N(0, I) in its frame, and its ELBO in nats."""

    frame: Frame
    elbo: float


def find_start(
    target: Target, generator: torch.Generator, *, starts: int = 4, rows: Tensor | None = None
) -> list[Start]:
    """Return the Gaussian of the highest ELBO on each of `starts` paths, the best one first.

    The paths begin at uniform points on (−2, 2), the first one on (−0.1, 0.1); above 300 dimensions
    there is one path, and its Gaussian has no correlations. rows: a fixed
    mini-batch to stand for the data. Paths without a finite ELBO are left out.
    Errors: `RunError` when no path has one; it says which parameter values (and which data row)
    were not finite.
    """
    require(starts >= 1, "starts", "at least 1", starts)
    if target.dim > DENSE:
        z = 0.2 * torch.rand(target.dim, generator=generator, dtype=torch.float64) - 0.1
        frame, elbo = find_large_start(target, z, generator, rows)
        return [Start(frame, elbo)] if frame is not None else _refuse(target, z[None])
    noise = fixed_normals(32, target.dim, generator)
    reach = torch.full((starts, 1), 2.0, dtype=torch.float64)
    reach[0] = 0.1
    uniform = torch.rand(starts, target.dim, generator=generator, dtype=torch.float64)
    first = reach * (2 * uniform - 1)
    paths = _Paths.begin(target, first, noise, rows)
    for _ in range(NEWTON_STEPS):
        if not paths.climb():
            break
    paths.judge_the_rest()
    found = [Start(f, e) for f, e in zip(paths.frames, paths.elbos.tolist(), strict=True) if f]
    if not found:
        _refuse(target, torch.cat([first, paths.z]))
    return sorted(found, key=lambda start: -start.elbo)


def _refuse(target: Target, z: Tensor) -> NoReturn:
    why = target.explain(z) or "every Gaussian tried had an ELBO that is not finite"
    hint = "a constraint for every parameter that has a range, e.g. constraints.positive"
    raise RunError(f"log_density: no place to start from was found: {why}. Try: {hint}")


@dataclass
class _Paths:
    """K paths that climb together, so that one call of the density serves them all.

    z, slope: `[K, d]`; value, elbos: `[K]`; worse: steps since a path's ELBO rose; active: bool.
    """

    target: Target
    noise: Tensor
    rows: Tensor | None
    z: Tensor
    value: Tensor
    slope: Tensor
    elbos: Tensor
    frames: list[Frame | None]
    worse: Tensor
    active: Tensor

    @classmethod
    def begin(cls, target: Target, z: Tensor, noise: Tensor, rows: Tensor | None) -> "_Paths":
        value, slope = target.score(z, rows)
        elbos = torch.full_like(value, -math.inf)
        active = value.isfinite() & slope.isfinite().all(-1)
        none: list[Frame | None] = [None] * len(z)
        worse = torch.zeros(len(z))
        return cls(target, noise, rows, z, value, slope, elbos, none, worse, active)

    def climb(self) -> bool:
        """Judge where the paths are and take a Newton step; say whether any goes on."""
        (which,) = self.active.nonzero(as_tuple=True)
        if len(which) == 0:
            return False
        values, vectors = self._curvature(which)
        slope = self.slope[which]
        along = (vectors.mT @ slope[:, :, None])[..., 0] / values
        move = (vectors @ along[:, :, None])[..., 0]
        gain = (move * slope).sum(-1)  # twice the rise in log p that a quadratic promises
        near = gain < FAR**2  # it is the squared length of the move, in standard deviations, too
        self._judge(which[near], (vectors * values.rsqrt()[:, None, :])[near])
        self._line_search(which, move, gain)
        self.active[which] &= (gain > 1e-6) & (self.worse[which] <= PATIENCE)
        return bool(self.active.any())

    def judge_the_rest(self) -> None:
        """Judge where the paths ended that were never near enough to anything to be judged."""
        (which,) = torch.tensor([frame is None for frame in self.frames]).nonzero(as_tuple=True)
        which = which[self.slope[which].isfinite().all(-1)]
        if len(which) == 0:
            return
        values, vectors = self._curvature(which)
        self._judge(which, vectors * values.rsqrt()[:, None, :])

    def _curvature(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return floored eigenvalues `[k, d]` of `|−∂² log p|` and vectors W: H⁻¹ = W Λ⁻¹ Wᵀ."""
        z = self.z[which]
        width = 1e-5 * (1 + z.abs())
        steps = torch.diag_embed(width)
        points = torch.stack([z[:, None] + steps, z[:, None] - steps])
        slopes = self.target.score(points.flatten(0, 2), self.rows)[1].view_as(points)
        hessian = (slopes[0] - slopes[1]) / (2 * width[..., None])
        hessian = torch.where(hessian.isfinite(), hessian, 0.0)
        balance = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-12).rsqrt()
        balanced = -0.5 * (hessian + hessian.mT) * balance[:, :, None] * balance[:, None, :]
        values, vectors = torch.linalg.eigh(balanced)
        values = values.abs()
        floor = 1e-7 * values.amax(-1, keepdim=True).clamp_min(1e-6)
        return torch.maximum(values, floor), balance[:, :, None] * vectors

    def _judge(self, which: Tensor, whole: Tensor) -> None:
        """Keep the Gaussians N(z, H⁻¹), or narrower ones, whose ELBO is the best of their path."""
        if len(which) == 0:
            return
        shrink = torch.tensor([1.0, 0.3], dtype=whole.dtype)
        roots, bad = torch.linalg.cholesky_ex(whole @ whole.mT)
        spread = shrink[:, None, None, None] * (self.noise @ roots.mT)
        points = self.z[which][:, None] + spread  # [shrinks, k, draws, d]
        with torch.no_grad():
            log_p = self.target.log_density(points.flatten(0, 2), self.rows)
        size = points.shape[-1]
        entropy = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + size * shrink.log()[:, None]
        elbos = log_p.view(points.shape[:3]).mean(-1) + entropy
        elbos = elbos + 0.5 * size * (1 + math.log(2 * math.pi))
        elbos = torch.where(elbos.isfinite() & (bad == 0), elbos, -math.inf)
        best, at = elbos.max(0)
        rose = best > self.elbos[which] + 1e-2
        self.worse[which] = torch.where(rose, 0.0, self.worse[which] + 1)
        for k in rose.nonzero().flatten().tolist():
            path = int(which[k])
            self.elbos[path] = best[k]
            self.frames[path] = Frame.dense(self.z[path].clone(), shrink[at[k]] * roots[k])

    def _line_search(self, which: Tensor, move: Tensor, gain: Tensor) -> None:
        """Halve the steps until log p rises enough; a path without such a step ends.

        Several halvings are tried in one call, of which the longest good step is taken.
        """
        waiting = torch.ones_like(gain, dtype=torch.bool)
        for powers in HALVINGS:
            (left,) = waiting.nonzero(as_tuple=True)
            if len(left) == 0:
                return
            path = which[left]
            steps = 0.5 ** torch.arange(powers.start, powers.stop, dtype=gain.dtype)[:, None]
            z = self.z[path] + steps[:, :, None] * move[left]  # [powers, k, d]
            value, slope = self.target.score(z.flatten(0, 1), self.rows)
            value, slope = value.view(z.shape[:2]), slope.view(z.shape)
            good = value >= self.value[path] + 1e-4 * steps * gain[left]
            good &= slope.isfinite().all(-1)
            (found,) = good.any(0).nonzero(as_tuple=True)
            place = (good.int().argmax(0)[found], found)
            taken = path[found]
            self.z[taken], self.value[taken], self.slope[taken] = (
                z[place],
                value[place],
                slope[place],
            )
            waiting[left[found]] = False
        self.active[which[waiting]] = False
