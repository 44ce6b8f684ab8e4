"""Where a fit begins: damped Newton paths uphill, judged by the ELBO of a Gaussian at each stop.

Which to use: `find_start`, which climbs from several random points at once and returns the best
Gaussian frames found on the way, not the modes: near a mode without mass (a funnel's neck, an
unbounded peak) the ELBO falls, and what is kept lies before it. Above 300 dimensions, where a dense
Hessian costs too much, `find_large_start` climbs by L-BFGS, and its frame has one scale an axis.
`distinct` and `mixture_of` turn the starts into peaks and a mixture that begins on them.
Reference: Zhang et al. (2022), "Pathfinder", for the idea; curvature here comes from differences of
the gradient, which cost one batched evaluation and care nothing for the scale of the axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from kullback.core import RunError, message, require
from kullback.exact import NORMAL_ENTROPY
from kullback.variational import limits
from kullback.variational.families import Family, Mixture
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

from .deterministic import fixed_normals, minimise

__all__ = [
    "Start",
    "distinct",
    "find_large_start",
    "find_start",
    "is_near",
    "judged",
    "mixture_of",
    "near_zero",
]


def find_large_start(
    target: Target, z: Tensor, generator: torch.Generator, rows: Tensor | None
) -> tuple[Frame | None, float]:
    """Climb from z `[d]`; return a diagonal frame at the stop of the highest ELBO, and that ELBO.

    The ELBO is judged at every tenth step, by 32 fixed draws. None where none was finite.
    """

    def downhill(x: Tensor) -> tuple[float, Tensor]:
        value, slope = target.score(x[None], rows)
        return -float(value), -slope[0]

    noise = fixed_normals(32, target.dim, generator)
    best = _plain(target, z[None], noise, rows)
    for count, step in enumerate(minimise(downhill, z)):
        last = (
            step.stuck
            or count == limits.MAX_LBFGS_STEPS
            or float(step.gradient.norm()) < limits.MIN_START_GRADIENT
        )
        early = count & (count - 1) == 0  # 0, 1, 2, 4, 8, …: a path may lead into a funnel's neck
        if last or early or count % limits.JUDGED_EVERY == 0:
            frame = Frame.diagonal(step.x, _curvature(target, step.x, generator, rows).rsqrt())
            value = _elbo(target, frame, noise, rows)
            best = (frame, value) if value > best[1] else best
        if last:
            break
    return best


def _plain(
    target: Target, first: Tensor, noise: Tensor, rows: Tensor | None
) -> tuple[Frame | None, float]:
    """Return the best of N(z, s²) at the first points `[k, d]`, for a few s, and its ELBO."""
    tried = [
        Frame.diagonal(z, torch.full_like(z, width)) for z in first for width in limits.PLAIN_WIDTHS
    ]
    values = [_elbo(target, frame, noise, rows) for frame in tried]
    best = max(values)
    return (tried[values.index(best)], best) if math.isfinite(best) else (None, -math.inf)


def _curvature(
    target: Target, z: Tensor, generator: torch.Generator, rows: Tensor | None
) -> Tensor:
    """Estimate the diagonal of −∂² log p by Hutchinson's probes, `E[v ∘ Hv]`, away from zero."""
    signs = (
        torch.randint(2, (limits.CURVATURE_PROBES, len(z)), generator=generator).double() * 2 - 1
    )
    width = 1e-5 * (1 + z.abs())
    steps = signs * width
    slopes = target.score(torch.cat([z + steps, z - steps]), rows)[1]
    up, down = slopes.chunk(2)
    diagonal = (-signs * (up - down) / (2 * width)).mean(0).abs()
    return diagonal.clamp_min(1e-2 * float(diagonal.median().clamp_min(1e-12)))


def _elbo(target: Target, frame: Frame, noise: Tensor, rows: Tensor | None) -> float:
    with torch.no_grad():
        mean = float(target.log_density(frame.outwards(noise), rows).mean())
    value = mean + float(frame.log_det) + len(frame.shift) * NORMAL_ENTROPY
    return value if math.isfinite(value) else -math.inf


HALVINGS = (range(1), range(1, 4), range(4, 10), range(10, 25))  # tried at once in a line search


@dataclass(frozen=True, slots=True)
class Start:
    """A Gaussian to begin with, N(0, I) in its frame, and its ELBO in nats.

    apart: whether a search from the others' draws found it, on a peak of its own.
    """

    frame: Frame
    elbo: float
    apart: bool = False


def find_start(
    target: Target,
    generator: torch.Generator,
    *,
    starts: int = 4,
    rows: Tensor | None = None,
    first: Tensor | None = None,
) -> list[Start]:
    """Return the Gaussian of the highest ELBO on each of `starts` paths, the best one first.

    The paths begin at uniform points on (−2, 2), the first one on (−0.1, 0.1); above 300 dimensions
    there is one path, and its Gaussian has no correlations. rows: a fixed
    mini-batch to stand for the data. first: points `[n, d]` where they begin instead, as many as
    `starts`, evenly among them. Paths without a finite ELBO are left out.
    Errors: `RunError` when no path has one; it says which parameter values (and which data row)
    were not finite.
    """
    require(starts >= 1, "starts", "at least 1", starts)
    if target.dim > limits.MAX_DENSE_DIMENSIONS:
        z = 0.2 * torch.rand(target.dim, generator=generator, dtype=torch.float64) - 0.1
        z = z if first is None else first[0]
        frame, elbo = find_large_start(target, z, generator, rows)
        return [Start(frame, elbo)] if frame is not None else _refuse(target, z[None])
    noise = fixed_normals(32, target.dim, generator)
    reach = torch.full((starts, 1), 2.0, dtype=torch.float64)
    reach[0] = 0.1
    uniform = torch.rand(starts, target.dim, generator=generator, dtype=torch.float64)
    begin = reach * (2 * uniform - 1)
    if first is not None:
        begin = first[torch.linspace(0, len(first) - 1, min(starts, len(first))).long()]
    paths = _Paths.begin(target, begin.clone(), noise, rows)
    for _ in range(limits.MAX_NEWTON_STEPS):
        if not paths.climb():
            break
    paths.evaluate_rest()
    found = [Start(f, e) for f, e in zip(paths.frames, paths.elbos.tolist(), strict=True) if f]
    if not found:
        frame, elbo = _plain(target, begin, noise, rows)
        if frame is None:
            _refuse(target, torch.cat([begin, paths.z]))
        found = [Start(Frame.dense(frame.shift, frame.factor), elbo)]
    found.sort(key=lambda start: -start.elbo)
    best = _narrowed(target, found[0], noise, rows)
    if best is found[0]:
        return found
    found = [best, *(_narrowed(target, start, noise, rows) for start in found[1:])]
    return sorted(found, key=lambda start: -start.elbo)


def _narrowed(target: Target, start: Start, noise: Tensor, rows: Tensor | None) -> Start:
    """Return a start as wide as p is along its axes, where curvature at a point does not say that.

    Inside a flat top there is no curvature, and the Gaussian is too wide by any factor. Where log p
    falls by more than 8 nats one sd off (a Gaussian's by 1/2), the sd is halved until it falls by
    1/2 at most. The better one is returned.
    """
    centre, factor = start.frame.shift, start.frame.factor
    vectors, sizes, _ = torch.linalg.svd(factor)
    axes = (vectors * sizes).mT  # [d, d], one sd each

    def drops(steps: Tensor, some: Tensor) -> Tensor:
        away = steps[:, None, None] * some
        points = torch.stack([centre + away, centre - away]).flatten(0, 2)
        with torch.no_grad():
            logs = target.log_density(torch.cat([points, centre[None]]), rows)
        heights = logs[:-1].view(2, len(steps), len(some))
        return (logs[-1] - heights.nan_to_num(-math.inf, math.inf, -math.inf)).amax(0)

    steep = drops(centre.new_ones(1), axes)[0] > limits.MAX_START_DROP
    if not bool(steep.any()):
        return start
    steps = 0.5 ** torch.arange(limits.START_HALVINGS, dtype=centre.dtype)
    fits = drops(steps, axes[steep]) <= limits.START_DROP
    width = torch.ones_like(sizes)
    width[steep] = torch.where(fits.any(0), steps[fits.int().argmax(0)], 1.0)
    root = vectors * (sizes * width)
    frame = Frame.dense(centre, torch.linalg.cholesky(root @ root.mT))
    elbo = _elbo(target, frame, noise, rows)
    return Start(frame, elbo) if elbo > start.elbo else start


def _refuse(target: Target, z: Tensor) -> NoReturn:
    target.raise_if_it_fails()
    simulation = target.simulation
    odd = "" if simulation is None else simulation.impossible(target.constrain(z))
    if odd:
        hint = "data within it, or another distribution"
        got = f"{odd}, whose density is 0 at all of {len(z)} points"
        raise RunError(message("data", "observations within their support", got, hint))
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
        """Evaluate where the paths are and take a Newton step; say whether any goes on."""
        (which,) = self.active.nonzero(as_tuple=True)
        if len(which) == 0:
            return False
        values, vectors = self._curvature(which)
        slope = self.slope[which]
        along = (vectors.mT @ slope[:, :, None])[..., 0] / values
        move = (vectors @ along[:, :, None])[..., 0]
        gain = (move * slope).sum(-1)  # twice the rise in log p that a quadratic promises
        near = gain < limits.NEAR_SDS**2  # the gain is also the squared length of the move, in sd
        self._keep_best(which[near], (vectors * values.rsqrt()[:, None, :])[near])
        self._line_search(which, move, gain)
        self.active[which] &= (gain > limits.MIN_NEWTON_GAIN) & (
            self.worse[which] <= limits.MAX_STEPS_WITHOUT_GAIN
        )
        return bool(self.active.any())

    def evaluate_rest(self) -> None:
        """Evaluate the ends of paths that were never near enough to a mode to be evaluated."""
        (which,) = torch.tensor([frame is None for frame in self.frames]).nonzero(as_tuple=True)
        which = which[self.slope[which].isfinite().all(-1)]
        if len(which) == 0:
            return
        values, vectors = self._curvature(which)
        self._keep_best(which, vectors * values.rsqrt()[:, None, :])

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

    def _keep_best(self, which: Tensor, whole: Tensor) -> None:
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
        elbos = elbos + size * NORMAL_ENTROPY
        elbos = torch.where(elbos.isfinite() & (bad == 0), elbos, -math.inf)
        best, at = elbos.max(0)
        rose = best > self.elbos[which] + limits.MIN_ELBO_GAIN
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


def judged(target: Target, frame: Frame, generator: torch.Generator) -> Start:
    """Return a frame as a start, with its ELBO by a few fixed draws."""
    return Start(frame, _elbo(target, frame, fixed_normals(32, target.dim, generator), None))


def near_zero(
    target: Target, generator: torch.Generator, *, first: Tensor | None = None
) -> Start | None:
    """Return the best of N(z, s²) near 0, or at the first point; None where no ELBO is finite."""
    noise = fixed_normals(32, target.dim, generator)
    near = 0.2 * torch.rand(1, target.dim, generator=generator, dtype=torch.float64) - 0.1
    frame, elbo = _plain(target, near if first is None else first[:1], noise, None)
    return None if frame is None else Start(frame, elbo)


def is_near(target: Target, start: Start, generator: torch.Generator) -> bool:
    """Say whether the scores at a start's draws ask for no other width and place.

    At a kink the curvature at a point says nothing of the width. In the frame the optimum has
    `E[∂ log p ∘ u] = −1` and `E[∂ log p] = 0`.
    """
    noise = fixed_normals(limits.RAY_DRAWS, target.dim, generator)
    slope = target.score(start.frame.outwards(noise))[1] @ start.frame.factor
    if not bool(slope.isfinite().all()):
        return True  # nothing can be said
    wanted = -(slope * noise).mean(0)
    most = limits.MAX_WIDTH_RATIO
    wide = bool(((wanted < most) & (wanted > 1 / most)).all())
    return wide and bool((slope.mean(0).abs() < limits.MAX_START_SLOPE).all())


def distinct(starts: Sequence[Start], *, within: float = limits.NEGLIGIBLE_PEAK) -> list[Start]:
    """Keep the starts that lie on peaks of their own, the best first.

    A start is another's double where it lies within 4 of its standard deviations, √d more in d
    dimensions unless one of them is known to be a peak of its own. One whose ELBO is more than
    `within` nats below the best carries no mass worth having.
    """
    kept: list[Start] = []
    for start in starts:
        if start.elbo < starts[0].elbo - within:
            continue
        further = len(start.frame.shift) ** 0.5
        reaches = [limits.SAME_PEAK_SDS + further * (not (start.apart or k.apart)) for k in kept]
        gaps = [float(k.frame.inwards(start.frame.shift).norm()) for k in kept]
        if all(gap > reach for gap, reach in zip(gaps, reaches, strict=True)):
            kept.append(start)
    return kept


def mixture_of(starts: Sequence[Start], *, components: int = 4, covariance: str = "auto") -> Family:
    """Make a mixture that begins on every distinct start, at least `components` in all.

    What is left over is placed about the best start, half a standard deviation out.
    """
    frames = [start.frame for start in distinct(starts)]
    best = frames[0]
    dim = len(best.shift)
    peaks = frames if len(frames) > 1 else []
    spare = max(0, components - len(peaks))
    grid = torch.arange(1, spare * dim + 1, dtype=torch.float64)
    around = best.outwards(0.5 * torch.sin(grid * grid).reshape(spare, dim))
    every = [*peaks, *(Frame(shift, best.scale) for shift in around)]
    return Mixture(best, covariance=covariance, starts=every)
