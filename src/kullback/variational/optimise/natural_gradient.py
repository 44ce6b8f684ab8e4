"""Natural gradients: a full-rank Gaussian whose precision is the expected curvature of p.

At the optimum of the ELBO over Gaussians the precision is `E_q[−∂² log p]` and `E_q[∂ log p] = 0`.
The iteration sets precision and mean to that, with the expectations over fixed draws of q: Newton's
method for the ELBO, and for a Gaussian p one step. The curvature is a difference of gradients at
the draws over a tenth of a standard deviation, so that kinks, at which p has no Hessian, count by
how often q's draws lie near them. Where the Hessian is sparse (hierarchies, time series), one
difference gives many columns (Curtis, Powell and Reid 1974), so that the cost does not grow with
the dimensions: 302 or 1,002 alike take a few hundred gradients for each draw of a few.

Which to use: `natural_gradient`, the default above 300 dimensions, and where p's curvature at a
point says nothing of its width; through `fit`.

Reference: Opper and Archambeau (2009), "The variational Gaussian approximation revisited"; Khan and
Lin (2017), "Conjugate-computation variational inference"; Curtis, Powell and Reid (1974), "On the
estimation of sparse Jacobian matrices".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.exact import NORMAL_ENTROPY
from kullback.variational import limits
from kullback.variational.families import FullRank
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

from . import Progress
from .deterministic import fixed_normals, improper

__all__ = ["Columns", "columns_of", "natural_gradient"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Groups of coordinates whose columns of the Hessian one difference of gradients gives.

    groups: `[k, d]`, 0 or 1: which coordinates move together. dense: `[d]`, bool: coordinates on
    which many others depend; each is a group of its own, and their rows are read from their
    columns. pattern: `[d, d]`, bool: where the Hessian is not 0.
    """

    groups: Tensor
    dense: Tensor
    pattern: Tensor

    def hessian(self, differences: Tensor, width: Tensor) -> Tensor:
        """Return the Hessian `[d, d]`, symmetric.

        differences: `[k, d]`, a group's gradient after its step less that before, halved. width:
        `[d]`, the steps.
        """
        column = torch.where(self.pattern, differences[self.groups.argmax(0)].mT, 0.0) / width
        known = torch.where(self.dense[:, None] & ~self.dense, column.mT, column)
        return 0.5 * (known + known.mT)


def columns_of(pattern: Tensor) -> Columns:
    """Group the columns of a symmetric pattern `[d, d]` so that no two in one share a row.

    Coordinates on which more than √d + 8 others depend are dense: their rows do not count, since
    their columns give them. Greedy, in the coordinates' order.

    >>> columns_of(torch.eye(3, dtype=torch.bool)).groups
    tensor([[1., 1., 1.]], dtype=torch.float64)
    """
    dim = len(pattern)
    dense = pattern.sum(0) > math.sqrt(dim) + limits.MAX_SPARSE_ENTRIES
    taken: list[Tensor] = []
    members: list[list[int]] = []
    for j in (~dense).nonzero().flatten().tolist():
        rows = pattern[:, j] & ~dense
        free = (k for k, some in enumerate(taken) if not bool((some & rows).any()))
        k = next(free, len(taken))
        if k == len(taken):
            taken.append(torch.zeros_like(rows))
            members.append([])
        taken[k] = taken[k] | rows
        members[k].append(j)
    members += [[j] for j in dense.nonzero().flatten().tolist()]
    groups = torch.zeros(len(members), dim, dtype=torch.float64)
    for k, some in enumerate(members):
        groups[k, some] = 1.0
    return Columns(groups, dense, pattern)


def _columns(target: Target, frame: Frame, generator: torch.Generator) -> Columns:
    """Find where the Hessian is not 0, from differences at a draw for every coordinate."""
    dim, sd = target.dim, frame.sd
    step = torch.diag(limits.PATTERN_STEP * sd)
    noise = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    at = frame.shift + limits.PATTERN_SPREAD * sd * noise
    low, high = target.score(torch.cat([at - step, at + step]))[1].chunk(2)
    size = torch.maximum(low.abs(), high.abs())
    pattern = ((high - low).abs() > limits.PATTERN_ROUNDING * size) | ~(high - low).isfinite()
    return columns_of(pattern | pattern.mT | torch.eye(dim, dtype=torch.bool))


@dataclass(frozen=True, slots=True)
class _Gaussian:
    """A mean `[d]` and a precision `[d, d]`, with its frame and the precision's factor."""

    frame: Frame
    precision: Tensor
    root: Tensor

    @classmethod
    def of(cls, mean: Tensor, precision: Tensor) -> "_Gaussian | None":
        """Make it; None where the precision is not positive definite."""
        root, bad = torch.linalg.cholesky_ex(precision.flip(0, 1))
        if int(bad) or not bool(root.isfinite().all() & mean.isfinite().all()):
            return None
        upper = root.flip(0, 1)  # precision = U Uᵀ, so that U⁻ᵀ is a lower factor of its inverse
        eye = torch.eye(len(mean), dtype=mean.dtype)
        factor = torch.linalg.solve_triangular(upper.mT, eye, upper=False)
        return cls(Frame.dense(mean, factor), precision, upper)

    def solve(self, slope: Tensor) -> Tensor:
        """Return the covariance times a vector."""
        return self.frame.factor @ (slope @ self.frame.factor)


@dataclass(frozen=True, slots=True)
class _Look:
    """What draws of a Gaussian say: ELBO and its error, E[∂ log p] `[d]`, E[−∂² log p] `[d, d]`."""

    elbo: float
    error: float
    slope: Tensor
    curvature: Tensor


def _look(target: Target, q: _Gaussian, noise: Tensor, columns: Columns) -> _Look:
    """Average log p, its gradient and its curvature over draws of q."""
    frame, count = q.frame, len(noise)
    z = frame.outwards(noise)
    width = limits.SMOOTHING_STEP * q.precision.diagonal().rsqrt()
    steps = columns.groups * width
    moved = [(z + way * step) for step in steps for way in (1.0, -1.0)]
    values, slopes = target.score(torch.cat([z, *moved]))
    around = slopes[count:].view(len(steps), 2, count, -1)
    turned = ((around[:, 1] - around[:, 0]) / 2).mean(1)
    terms = values[:count]
    elbo = float(terms.mean() + frame.log_det) + target.dim * NORMAL_ENTROPY
    error = float(terms.std()) / math.sqrt(count)
    return _Look(elbo, error, slopes[:count].mean(0), columns.hessian(turned, width))


def _next(q: _Gaussian, look: _Look, share: float) -> _Gaussian | None:
    """Move a share of the way to the expected curvature and to where the slope is 0."""
    precision = q.precision.lerp(look.curvature, share)
    new = _Gaussian.of(q.frame.shift, precision)
    if new is None:
        return None
    move = share * new.solve(look.slope)
    far = float((move / torch.minimum(q.frame.sd, new.frame.sd)).abs().max())
    move = move * min(1.0, limits.MAX_NATURAL_MOVE / max(far, 1e-300))
    return _Gaussian.of(q.frame.shift + move, precision)


def _move(old: Frame, new: Frame) -> Tensor:
    """Return how means, in sd, and log sds have changed, `[2 d]`."""
    shift = (new.shift - old.shift) / torch.minimum(old.sd, new.sd)
    return torch.cat([shift, (new.sd / old.sd).log()])


def natural_gradient(
    frame: Frame,
    target: Target,
    generator: torch.Generator,
    *,
    points: int = limits.NATURAL_POINTS,
    iterations: int = limits.MAX_NATURAL_STEPS,
) -> Iterator[Progress]:
    """Yield `Progress` each iteration until mean and precision, averaged, stand still.

    frame: where to begin; a diagonal one will do. points: gradients an iteration, about: draws of q
    times groups of columns. Fresh draws every time; from where their noise alone moves q, iterates
    of precision and mean are averaged (steps 1, 1/2, 1/3, …). A step after which the ELBO is lower
    by more than its noise, or the precision is not positive definite, is halved.
    """
    columns = _columns(target, frame, generator)
    draws = max(4, min(limits.MAX_NATURAL_DRAWS, points // (2 * len(columns.groups) + 1)))
    factor = frame.factor
    inverse = torch.linalg.solve_triangular(factor, torch.eye(target.dim).double(), upper=False)
    first = q = _Gaussian.of(frame.shift, inverse.mT @ inverse)
    if first is None or q is None:
        yield _ended(FullRank(frame), math.inf, math.inf, "stopped: the first q has no precision")
        return
    few = min(draws, limits.FIRST_NATURAL_DRAWS)
    look = _look(target, q, fixed_normals(few, target.dim, generator), columns)
    averaged, moved, pace = 0, math.inf, 1.0
    last = torch.zeros(2 * target.dim, dtype=torch.float64)
    for _ in range(iterations):
        share = pace / max(1, averaged)
        number = draws if moved < limits.NATURAL_AVERAGED else few
        noise, tried = fixed_normals(number, target.dim, generator), None
        while share > limits.MIN_NATURAL_SHARE:
            new = _next(q, look, share)
            tried = None if new is None else _look(target, new, noise, columns)
            slack = limits.NATURAL_SLACK * look.error + limits.NATURAL_ROUNDING * abs(look.elbo)
            if tried is not None and tried.elbo > look.elbo - slack:
                break
            share, tried = share / 2, None
        if new is None or tried is None:
            words = "stopped: no step of the natural gradient raises the ELBO"
            yield _ended(FullRank(q.frame), -look.elbo, moved, words)
            return
        move = _move(q.frame, new.frame) / share
        moved = float(move.abs().max())
        turned = bool(move @ last < 0)  # noise, or too long a step
        pace = max(limits.MIN_NATURAL_PACE, pace / 2) if turned else min(1.0, 1.5 * pace)
        q, look = new, tried
        still = moved < limits.NATURAL_AVERAGED and (turned or averaged > 0)
        averaged = averaged + 1 if still or moved < limits.NATURAL_TOLERANCE else 0
        pace = 1.0 if averaged else pace
        largest = max(moved, float(last.abs().max()))  # one small move may be chance
        left = largest / math.sqrt(max(1, averaged))
        last = move
        lost = improper(first.frame, q.frame, target.names)
        if lost:
            yield replace(_ended(FullRank(q.frame), -look.elbo, moved, lost), improper=True)
            return
        if averaged and number == draws and left < limits.NATURAL_TOLERANCE:
            yield _converged(FullRank(q.frame), look, left, draws)
            return
        yield Progress(FullRank(q.frame), -look.elbo, moved)
    words = f"stopped after {iterations} iterations: fresh draws still move q by {left:.3f} sd"
    yield _ended(FullRank(q.frame), -look.elbo, left, words)


def _ended(family: FullRank, loss: float, moved: float, reason: str) -> Progress:
    return Progress(family, loss, moved, done=True, reason=reason)


def _converged(family: FullRank, look: _Look, left: float, draws: int) -> Progress:
    words = f"converged: natural gradient steps; {draws} fresh draws move q by {left:.3f} sd"
    return Progress(family, -look.elbo, left, True, True, words, left)  # noqa: FBT003
