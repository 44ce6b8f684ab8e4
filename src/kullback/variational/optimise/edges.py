"""Hard edges: a log density of −inf outside a region, where no Gaussian has a finite ELBO.

Which to use: `interior` finds points inside; `edges` says which constraints would remove them,
with the bounds that it found by bisection along the coordinates. `proposals` are wide starts for
`forward_kl.adaptive`: KL(p‖q) is finite where q is wider than p.
"""

import math

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

from .forward_kl import moments
from .starts import Start

__all__ = ["edges", "interior", "proposals"]


def interior(target: Target, generator: torch.Generator) -> Tensor:
    """Return points `[n, d]` of finite log p among uniform ones on cubes of several widths."""
    number = limits.INTERIOR_POINTS // len(limits.INTERIOR_WIDTHS)
    size = torch.tensor(limits.INTERIOR_WIDTHS, dtype=torch.float64).repeat_interleave(number)
    unit = torch.rand(len(size), target.dim, generator=generator, dtype=torch.float64)
    points = (2 * unit - 1) * size[:, None]
    with torch.no_grad():
        inside = target.log_density(points).isfinite()
    return points[inside]


def proposals(points: Tensor, log_p: Tensor) -> list[Start]:
    """Return wide starts about points `[n, d]` of `interior`, with log p `[n]` there.

    By their moments, by those of the highest, and by moments weighted by p over the density of all
    cubes: where p has regions apart, most points lie in the one about 0.
    """
    best = points[log_p.argsort(descending=True)[: max(2, len(points) // 4)]]
    weighted = moments(points, (log_p - _log_cubes(points)).softmax(0))
    found = [Start(weighted, 0.0)]
    for some in (points, best):
        sd = (some.std(0) + 1e-3 * points.std(0)).clamp_min(1e-6)
        found += [Start(Frame.dense(some.mean(0), torch.diag(s * sd)), 0.0) for s in (0.3, 1.0)]
    return found


def _log_cubes(points: Tensor) -> Tensor:
    """Return the log density of `interior`'s uniform points on all cubes, `[n]`."""
    size = torch.tensor(limits.INTERIOR_WIDTHS, dtype=points.dtype)
    inside = points.abs().amax(1, keepdim=True) <= size
    volumes = torch.where(inside, -points.shape[1] * (2 * size).log(), -math.inf)
    return volumes.logsumexp(1) - math.log(len(size))


def edges(target: Target, points: Tensor) -> str:
    """Say which constraints would remove the edges about interior points `[n, d]`; "" if none."""
    some = points[:: max(1, len(points) // limits.EDGE_LINES)][: limits.EDGE_LINES]
    said, slanted = [], False
    for j, name in enumerate(target.names[: limits.SHOWN_COORDINATES]):
        low, high = (_bound(target, some, j, way) for way in (-1.0, 1.0))
        slanted = slanted or math.isnan(low) or math.isnan(high)
        below, above = math.isfinite(low), math.isfinite(high)
        if below and above:
            said.append(f"{name}: constraints.interval({low:g}, {high:g})")
        elif below:
            said.append(f"{name}: constraints.greater_than({low:g})")
        elif above:
            said.append(f"{name}: constraints.less_than({high:g})")
    words = [f"declare {', '.join(said)}"] if said else []
    words += ["an edge is not parallel to a coordinate: write it in other parameters"] * slanted
    return "; ".join(words)


def _bound(target: Target, points: Tensor, j: int, way: float) -> float:
    """Return where log p becomes −inf along a coordinate; ±inf without, NaN if lines differ."""
    axis = torch.zeros(target.dim, dtype=points.dtype)
    axis[j] = way
    far = limits.EDGE_REACH * (1.0 + float(points.abs().max()))
    with torch.no_grad():
        ends = target.log_density(points + far * axis) == -math.inf
        if not bool(ends.all()):
            return math.nan if bool(ends.any()) else way * math.inf
        inside, outside = (
            torch.zeros(len(points)).double(),
            torch.full((len(points),), far).double(),
        )
        for _ in range(limits.BISECTIONS):
            middle = 0.5 * (inside + outside)
            gone = target.log_density(points + middle[:, None] * axis) == -math.inf
            inside = torch.where(gone, inside, middle)
            outside = torch.where(gone, middle, outside)
    places = points[:, j] + way * inside
    spread = float(places.max() - places.min())
    if spread > limits.EDGE_AGREES * far:
        return math.nan
    middle_place = float(places.mean())
    return 0.0 if abs(middle_place) < limits.EDGE_AGREES else round(middle_place, 6)
