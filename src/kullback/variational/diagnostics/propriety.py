"""Is the target improper? Its log density is followed far out along rays from q's draws.

A density whose integral over a line is infinite, on every line of a bundle that stays equally wide,
has no finite mass: a flat direction, separable data under a flat prior, a prior 1/τ at infinity.
Along such a ray log p falls by less than log t, where t is the distance; a density that has a mass
falls faster, also where its tails are heavy: a Cauchy's by 2 log t, a t's by (1 + degrees) log t.

Which to use: `improper`, through `fit`; `undecaying` for a bare log density. What is found is
improper; not everything is found: not mass that is infinite only along a bent path or over
a bundle of lines that widens, and what lies beyond the point at which log p overflows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.optimise import IMPROPER
from kullback.variational.target.batches import LogDensity
from kullback.variational.target.density import Target

__all__ = ["improper", "undecaying"]


def improper(target: Target, draws: Tensor) -> str:
    """Return the reason why a target is improper, by `undecaying`; None where none is found.

    draws: `[n, d]`, n ≥ 2, of a q near p. Not with mini-batches of rows, where every point of a ray
    would meet all rows, nor above 100 dimensions.
    """
    if target.rows is not None or len(draws) < 2 or target.dim > limits.MAX_SEARCHED_DIMENSIONS:
        return ""
    with target.refusals.unknown():
        way = _endless_way(target.log_density, draws)
    if way is None:
        return ""
    which = ", ".join(target.names[j] for j in _movers(way, draws))
    why = f"log p does not decay as {_named(way, draws, _labels(target, draws))}"
    return f"{IMPROPER}: q({which}) spreads without end: is the prior proper? {why}"


def _labels(target: Target, draws: Tensor) -> list[str]:
    """Return the names of z's entries, those of constrained parameters marked."""
    if target.layout.outside is not None:
        return [f"the unconstrained {name}" for name in target.names]
    values = target.constrain(draws[:1])
    labels, start = [], 0
    for name, part in target.layout.parts.items():
        here = draws[0, start : start + part.size]
        same = part.size == values[name].numel() and bool((values[name].flatten() == here).all())
        entries = target.names[start : start + part.size]
        labels += list(entries) if same else [f"the unconstrained {entry}" for entry in entries]
        start += part.size
    return labels


def undecaying(log_density: LogDensity, draws: Tensor, names: Sequence[str] = ()) -> str:
    """Return in which direction log p does not decay, in words; nothing where it does in all.

    log_density: `[n, d]` to `[n]`, nats. draws: `[n, d]` of q. Rays go from five draws along the
    coordinates, the principal axes of the draws and their mean, both ways, from 10 to 10¹⁰ of their
    standard deviations. log p does not decay where on most of five parallel lines its last two
    slopes against log t are above −1, and it is nowhere 600 nats below its first place. Beyond 10¹³
    nats a slope is lost in rounding: nothing is said.

    >>> z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> undecaying(lambda z: -z[:, 0].abs(), z, ("a", "b"))
    'log p does not decay as b goes to infinity'
    >>> undecaying(lambda z: -torch.log1p(z.square()).sum(1), z)
    ''
    """
    way = _endless_way(log_density, draws)
    return "" if way is None else f"log p does not decay as {_named(way, draws, names)}"


def _endless_way(log_density: LogDensity, draws: Tensor) -> Tensor | None:
    """Return a direction `[d]` in which log p does not decay, or None."""
    if not bool(draws.isfinite().all()):
        return None
    ways, logs, far = _followed(log_density, draws)
    flat = _mostly(logs, far, 1.0)
    return ways[int(flat.int().argmax())] if bool(flat.any()) else None


def _followed(log_density: LogDensity, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return directions `[k, d]`, log p along them `[lines, k, places]`, and the distances."""
    ways = _directions(draws)
    first = draws[torch.linspace(0, len(draws) - 1, limits.RAY_LINES).long()]
    far = 10.0 ** torch.linspace(
        1, limits.RAY_DECADES, 2 * limits.RAY_DECADES - 1, dtype=draws.dtype
    )
    points = first[:, None, None] + far[:, None] * ways[:, None]  # [lines, ways, places, d]
    with torch.no_grad():
        return ways, _evaluated(log_density, points), far


def _mostly(logs: Tensor, far: Tensor, power: float) -> Tensor:
    """Say along which directions `[k]` most parallel lines fall by at most t^-power."""
    return _flat(logs, far, power).sum(0) > limits.RAY_LINES // 2


def _evaluated(log_density: LogDensity, points: Tensor) -> Tensor:
    """Return log p of points `[..., d]`, NaN where the user's function refuses to be evaluated.

    A distribution that checks its arguments raises where a scale is rounded to 0. Points `[lines,
    ways, places, d]` are then taken one way at a time, and where that fails by halves of its
    places. Beyond a place that is refused on every line nothing is asked: rays are used up to it.
    """
    flat = points.reshape(-1, points.shape[-1])
    try:
        logs = torch.cat([log_density(part) for part in torch.split(flat, limits.MAX_PIECE)])
        return logs.view(points.shape[:-1])
    except (RuntimeError, ValueError):
        if points.shape[1] > 1:
            ways = points.chunk(points.shape[1], 1)
            return torch.cat([_evaluated(log_density, way) for way in ways], 1)
        if points.shape[2] == 1:
            return points.new_full(points.shape[:-1], math.nan)
        near, far = points.chunk(2, 2)
        first = _evaluated(log_density, near)
        if bool(first[..., -1].isnan().all()):
            return torch.cat([first, far.new_full(far.shape[:-1], math.nan)], 2)
        return torch.cat([first, _evaluated(log_density, far)], 2)


def _directions(draws: Tensor) -> Tensor:
    """Return directions `[k, d]` of a length of one standard deviation of the draws, both ways.

    Of a start in a steep wall it may be nothing beside p's width: it counts as a millionth of the
    distance from 0, or of 1, at least.
    """
    centre = draws.mean(0)
    sd = draws.std(0).maximum(limits.MIN_RAY_SD * (1 + centre.abs()))
    vectors = torch.linalg.eigh(torch.corrcoef(draws.mT).reshape(len(sd), len(sd)))[1]
    some = (
        torch.cat([torch.eye(len(sd), dtype=sd.dtype), vectors.mT.flip(0)])[: limits.MAX_RAYS] * sd
    )
    size = centre.abs().max().clamp_min(1e-300)
    out = centre * (sd.max() / size)
    one_way = torch.cat([some, out[None]])
    return torch.cat([one_way, -one_way])


def _flat(logs: Tensor, far: Tensor, power: float) -> Tensor:
    """Say where the last slopes of log p against log t, `[..., places]`, are above −power."""
    slopes = logs.diff(dim=-1) / far.log().diff()
    # up to the first that is not a number, or so large that rounding hides a slope
    known = (logs.isfinite() & (logs.abs() < limits.MAX_RESOLVED)).cummin(-1)[0]
    count = known.sum(-1)
    good = (slopes > -power - limits.SLOPE_MARGIN) & known[..., 1:]
    last = torch.stack(
        [
            good.gather(-1, (count - 2 - k).clamp_min(0)[..., None])[..., 0]
            for k in range(limits.RAY_SLOPES)
        ]
    )
    cut = logs.gather(-1, count.clamp_max(logs.shape[-1] - 1)[..., None])[..., 0]
    ended = (count < logs.shape[-1]) & (cut <= -limits.MAX_RESOLVED)  # p is 0 from there on
    fallen = torch.where(known, logs, math.inf).amin(-1) < logs[..., 0] - limits.UNDERFLOW_DEPTH
    return last.all(0) & (count > limits.RAY_SLOPES + 1) & ~ended & ~fallen


def _movers(way: Tensor, draws: Tensor) -> list[int]:
    """Return the coordinates that a direction moves, at most five that move most in their sd."""
    moved = (way / draws.std(0).clamp_min(1e-300)).abs()
    places = moved.argsort(descending=True)[: limits.SHOWN_COORDINATES].tolist()
    return sorted(j for j in places if float(moved[j]) > limits.MOVED_SHARE * float(moved.max()))


def _named(way: Tensor, draws: Tensor, names: Sequence[str]) -> str:
    """Say where those coordinates go."""
    said = []
    for j in _movers(way, draws):
        name = names[j] if names else f"z[{j + 1}]"
        said.append(f"{name} goes to {'infinity' if float(way[j]) > 0 else '-infinity'}")
    return " and ".join(said)
