"""Both directions of KL without any chance: q fitted to p on a grid, in one or two dimensions.

Which to use: `project`, which minimises KL(p‖q) or KL(q‖p) over a family and keeps every step;
`find_box` for the box that holds p. On a grid every expectation is a sum that is really done
(MATH 1.4), so the two directions can be compared exactly (MATH 4), and at every step
ELBO + KL(q‖p) = log evidence (MATH 2.1).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kullback.core import require
from kullback.exact import quadrature
from kullback.variational import limits
from kullback.variational.families import Family, FullRank, Mixture
from kullback.variational.families.family import Frame
from kullback.variational.target.batches import LogDensity

from .deterministic import minimise, objective_of

__all__ = ["Projection", "Step", "find_box", "project", "search_box"]

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a fit, in nats: the ELBO, KL(q‖p) and KL(p‖q) of the q it arrived at."""

    elbo: float
    reverse: float
    forward: float


@dataclass(frozen=True, slots=True)
class Projection:
    """The q of a family that is nearest to p in one direction, and how it was reached.

    Attributes:
        direction: "forward", KL(p‖q), covers every peak; "reverse", KL(q‖p), picks one.
        family: q.
        steps: from the start to the optimum; the last one is q's.
        log_evidence: of p on the grid, in nats.
    """

    direction: Direction
    family: Family
    steps: tuple[Step, ...]
    log_evidence: float

    @property
    def forward(self) -> float:
        """KL(p‖q) of the q that was found, in nats."""
        return self.steps[-1].forward

    @property
    def reverse(self) -> float:
        """KL(q‖p) of the q that was found, in nats."""
        return self.steps[-1].reverse


def find_box(log_density: LogDensity, dim: int) -> tuple[list[float], list[float]]:
    """Return lower and upper ends of a box with room for p and for a q that covers it.

    The search begins on (−16, 16), doubles while the density at the edge is within 45 nats of the
    peak, closes in on what is, and adds half the width at each end. Approximate: what a grid of 301
    points an axis does not meet is not found.

    Args:
        log_density: `[n, dim]` → `[n]`, in nats.
        dim: 1 or 2.

    Returns:
        The lower and the upper ends, `dim` numbers each.

    Raises:
        ArgumentValueError: for other dimensions, or when the density does not fall off within 10⁶
            (p is improper, or its tails are too heavy for a box).

    Example:
        >>> low, high = find_box(lambda z: -0.5 * (z[:, 0] - 3.0) ** 2, 1)
        >>> round(low[0]), round(high[0])
        (-16, 22)
    """
    require(dim in (1, 2), "dim", "1 or 2 for quadrature", dim)
    box = search_box(log_density, dim)
    expected = "a density that falls off, with some mass within 16 of the origin"
    require(box is not None, "log_density", expected, "none")
    return box or ([], [])


def search_box(log_density: LogDensity, dim: int) -> tuple[list[float], list[float]] | None:
    """Return the box of `find_box`, or None where there is no mass or it does not fall off.

    Args:
        log_density: `[n, dim]` → `[n]`, in nats.
        dim: 1 or 2.

    Returns:
        The lower and the upper ends, `dim` numbers each; or None.

    Example:
        >>> search_box(lambda z: -torch.log1p(z[:, 0].abs()), 1) is None
        True
    """
    low, high = [-16.0] * dim, [16.0] * dim
    for _ in range(60):
        before = (*low, *high)
        extents = _extents(log_density, low, high)
        if not extents:
            return None
        for axis, (first, last, step) in enumerate(extents):
            wide = high[axis] - low[axis]
            left, right = first <= low[axis], last >= high[axis]
            low[axis] = low[axis] - wide / 2 if left else first - step
            high[axis] = high[axis] + wide / 2 if right else last + step
        if not max(high) - min(low) < limits.MAX_BOX:
            return None
        wide = max(b - a for a, b in zip(low, high, strict=True))
        if all(abs(a - b) <= 0.02 * wide for a, b in zip((*low, *high), before, strict=True)):
            break
    half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    ends = list(zip(low, high, half, strict=True))
    return [a - h for a, _, h in ends], [b + h for _, b, h in ends]


def _extents(
    log_density: LogDensity, low: list[float], high: list[float]
) -> list[tuple[float, float, float]]:
    """Return for each axis the first and last place where the density counts, and the grid's step.

    Places where it is NaN do not count; where it is +inf they are the peak. Empty without mass.
    """
    axes = [torch.linspace(a, b, 301, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).reshape(-1, len(low))
    with torch.no_grad():
        logs = log_density(points).nan_to_num(-math.inf, math.inf, -math.inf)
    if not bool((logs > -math.inf).any()):
        return []
    counts = points[logs >= logs.max() - limits.NEGLIGIBLE_DENSITY]
    return [
        (float(column.min()), float(column.max()), float(axis[1] - axis[0]))
        for column, axis in zip(counts.unbind(1), axes, strict=True)
    ]


def project(
    posterior: quadrature.Posterior, direction: Direction, *, components: int = 1
) -> Projection:
    """Minimise KL(p‖q) ("forward") or KL(q‖p) ("reverse") over Gaussians, or mixtures of them.

    Exact up to the quadrature: sums over the grid, minimised by L-BFGS from p's moments and from
    p's peaks; the best optimum is kept. The reverse KL of a mixture of far peaks has several
    optima, one a peak. No gradient flows.
    Reference: MATH 4.1 and 4.2.

    Args:
        posterior: p on its grid, of `exact.quadrature.posterior`, d ≤ 2.
        direction: "forward" or "reverse".
        components: Gaussians in q.

    Returns:
        The nearest q, and every step to it.

    Raises:
        ArgumentValueError: for another direction or fewer than one component.

    Example:
        >>> def two_peaks(z):
        ...     return torch.logaddexp(-2 * (z[:, 0] + 2) ** 2, -2 * (z[:, 0] - 2) ** 2)
        >>> p = quadrature.posterior(two_peaks, lower=-9, upper=9)
        >>> both = [project(p, way).family.frame for way in ("forward", "reverse")]
        >>> [round(float(q.scale.abs()), 1) for q in both]
        [2.1, 0.5]
    """
    known = direction in ("forward", "reverse")
    require(known, "direction", "forward or reverse", repr(direction))
    require(components >= 1, "components", "at least 1", components)
    found = [_descend(posterior, direction, q) for q in _starts(posterior, components)]
    return min(found, key=lambda one: getattr(one, direction))


def _descend(p: quadrature.Posterior, direction: Direction, family: Family) -> Projection:
    """Follow L-BFGS from where the family is to its optimum."""
    kl = p.kl_to if direction == "forward" else p.kl_from
    objective = objective_of(family, lambda q: kl(q.log_prob))
    start = parameters_to_vector(family.parameters()).detach()
    x, steps, before = start, [_step(p, family)], math.inf
    for step in minimise(objective, start):
        x = step.x
        vector_to_parameters(x, family.parameters())
        steps.append(_step(p, family))
        flat = (
            before - step.loss <= limits.GRID_ROUNDING
            or float(step.gradient.abs().max()) < limits.GRID_ROUNDING
        )
        if flat or step.stuck or len(steps) > limits.MAX_GRID_STEPS:
            break
        before = step.loss
    vector_to_parameters(x, family.parameters())
    family.requires_grad_(requires_grad=False)
    frame = family.absorb()
    family = family if frame is None else type(family)(frame).requires_grad_(requires_grad=False)
    return Projection(direction, family, tuple(steps), float(p.log_evidence))


def _step(p: quadrature.Posterior, family: Family) -> Step:
    with torch.no_grad():
        log_q = family.log_prob(p.nodes)
        mass = (log_q + p.log_weights).exp()
        log_joint = p.log_density + p.log_evidence
        terms = torch.where(mass > 0, mass * (log_joint - log_q), 0.0)
        return Step(
            float(terms.sum()), float(p.kl_from(family.log_prob)), float(p.kl_to(family.log_prob))
        )


def _starts(p: quadrature.Posterior, components: int) -> list[Family]:
    """Begin with p's own moments, and at its peaks."""
    root = torch.linalg.cholesky(p.covariance.detach())
    whole = Frame.dense(p.mean.detach(), root)
    peaks = _peaks(p, whole, max(3, components))
    if components == 1:
        narrow = [Frame.dense(peak, 0.4 * root) for peak in peaks]
        return [FullRank(frame) for frame in (whole, *narrow)]
    picked = peaks[torch.arange(components) % len(peaks)]
    return [Mixture(whole, starts=[Frame.dense(peak, 0.4 * root) for peak in picked])]


def _peaks(p: quadrature.Posterior, whole: Frame, most: int) -> Tensor:
    """Pick the highest nodes, none within half a standard deviation of another."""
    kept: list[int] = []
    inwards = whole.inwards(p.nodes)
    logs = p.log_density.detach().clone()
    while len(kept) < most and float(logs.max()) > float(p.log_density.max()) - limits.PEAK_DEPTH:
        kept.append(int(logs.argmax()))
        near = (inwards - inwards[kept[-1]]).norm(dim=1) < limits.PEAKS_APART
        logs = torch.where(near, -math.inf, logs)
    return p.nodes[kept]
