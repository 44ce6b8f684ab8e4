"""Is the target improper? Its log density is followed far out, along rays and along scales.

A density whose integral over a line is infinite, on every line of a bundle that stays equally wide,
has no finite mass: a flat direction, separable data under a flat prior, a prior 1/τ at infinity.
Along such a ray log p falls by less than log t, where t is the distance; a density that has a mass
falls faster, also where its tails are heavy: a Cauchy's by 2 log t, a t's by (1 + degrees) log t.

Where a coordinate is the log scale of others, the bundle narrows or widens with it: θ ~ N(μ, τ)
with a prior 1/τ has infinite mass at τ = 0, where θ is as narrow as τ and a ray leaves it at once.
There the mode of all coordinates that change their width is followed, in units of that width, and
the integral over them is Laplace's (Tierney and Kadane 1986), whose error tends to a constant.

Which to use: `improper`, through `fit`; `undecaying` and `endless_scale` for a bare log density.
Not everything is found: not mass that is infinite only along a bent path, nor what lies beyond the
point at which log p overflows. What is found along a ray is improper; along a scale it is so as far
as float64 tells the narrow coordinates apart, 1e-10 of their size.

An angle without bounds is improper too: log p has period 2π, and every turn has the same mass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.optimise import IMPROPER
from kullback.variational.target.batches import LogDensity
from kullback.variational.target.density import Target

from .collapsing_scales import collapsing_scale
from .defensive_sampling import mode_search, stencil
from .joint_searches import Score, Search, first_true, within

__all__ = ["endless_scale", "improper", "undecaying"]


def improper(target: Target, draws: Tensor, *, scales: bool = False) -> str:
    """Return the reason why a target is improper, or nothing; by `undecaying`.

    draws: `[n, d]`, n ≥ 2, of a q near p. scales: whether `endless_scale` is asked too, which costs
    more. Not with mini-batches of rows, where every point of a ray would meet all rows, nor above
    128 dimensions.
    """
    if target.rows is not None or len(draws) < 2 or target.dim > limits.MAX_FOLLOWED_FAR:
        return ""
    with target.refusals.unknown():
        turning = _turning(target.log_density, draws)
        if turning is not None:
            name = target.names[turning]
            hint = "bounds -pi and pi, or the angle of a unit vector"
            return f"{IMPROPER}: log p has period 2 pi in {name}, which has no bounds. Try: {hint}"
        way, what = _endless_way(target.log_density, draws), "log p"
        if way is None and target.layout.outside is None:
            way = _endless_to_the_end(target, draws)
        if way is None and scales and not target.looped:
            way, what = endless_scale(target.score, draws), "the marginal of p"
            way = collapsing_scale(target.score, draws) if way is None else way
    if way is None:
        return ""
    which = ", ".join(target.names[j] for j in _movers(way, draws))
    why = f"{what} does not decay as {_named(way, draws, _labels(target, draws))}"
    return f"{IMPROPER}: q({which}) spreads without end: is the prior proper? {why}"


def _turning(log_density: LogDensity, draws: Tensor) -> int | None:
    """Return a coordinate in which log p has period 2π, or None: an angle that has no bounds.

    Log p is the same two turns ahead and one behind, at three draws, and differs between.
    """
    if not bool(draws.isfinite().all()):
        return None
    some = draws[torch.linspace(0, len(draws) - 1, limits.TURN_DRAWS).long()]
    turns = 2 * math.pi * torch.eye(draws.shape[1], dtype=draws.dtype)
    steps = torch.tensor([2.0, -1.0, 1.0, 0.4, -0.3], dtype=draws.dtype)
    with torch.no_grad():
        here = log_density(some)
        ahead = log_density(some[:1] + turns)  # one draw says no to nearly all
        which = _same(ahead, here[:1]).nonzero().flatten()
        for j in which.tolist():
            logs = _evaluated(log_density, some[:, None] + steps[:, None] * turns[j])
            same = _same(logs, here[:, None])
            if bool(same[:, :3].all()) and not bool(same[:, 3:].any()):
                return int(j)
    return None


def _same(logs: Tensor, here: Tensor) -> Tensor:
    return (logs - here).abs() <= limits.SAME_TURN * (1 + here.abs())


def _endless_to_the_end(target: Target, draws: Tensor) -> Tensor | None:
    """Return a direction in which log p stays level as far as float64 has constrained values.

    A logit of 37 is a probability of 1, and log p beyond says nothing; places of a ray are then too
    few. Over the last half of the way there it must fall by less than 0.01 nats or rise in a
    straight line, on most of five lines: Beta(0.001, 0.001) falls by more.
    """
    labels = zip(_labels(target, draws), target.names, strict=True)
    which = torch.tensor([label != name for label, name in labels]).nonzero().flatten()
    if len(which) == 0 or not bool(draws.isfinite().all()):
        return None
    first = draws[torch.linspace(0, len(draws) - 1, limits.RAY_LINES).long()]
    steps = torch.eye(draws.shape[1], dtype=draws.dtype)[which]
    ways = torch.cat([steps, -steps])[:, None, None]  # [ways, 1, 1, d]
    ends = torch.linspace(0, limits.END_REACH, limits.END_PLACES, dtype=draws.dtype)
    values = _constrained(target, first[:1, None] + ends[:, None] * ways)
    spacing = torch.finfo(values.dtype).eps * values[:, :, 1:].abs()
    moved = (values.diff(dim=2).abs() > limits.END_RESOLVED * spacing).any(3)  # [ways, 1, places]
    last = ends[(moved * torch.arange(1, len(ends))).amax(2)]
    shares = torch.linspace(0.5, 0.95, limits.END_LOOKS, dtype=draws.dtype)
    points = first[:, None] + (last[..., None] * shares)[..., None] * ways
    with torch.no_grad():  # [ways, lines, looks]
        logs = _evaluated(target.log_density, points.transpose(0, 1)).transpose(0, 1)
    level = logs[..., 0] - logs[..., -1] < limits.SCALE_FALL
    straight = _off_line(shares, logs) < limits.SCALE_FALL
    endless = (level & straight & (last < limits.END_REACH)).sum(1) > limits.RAY_LINES // 2
    return ways[int(endless.int().argmax()), 0, 0] if bool(endless.any()) else None


def _off_line(at: Tensor, heights: Tensor) -> Tensor:
    """Return by how much heights `[…, n]` at places `[n]` leave the line through their ends."""
    line = torch.lerp(heights[..., :1], heights[..., -1:], (at - at[0]) / (at[-1] - at[0]))
    return (heights - line).abs().amax(-1)


def _constrained(target: Target, z: Tensor) -> Tensor:
    """Return all parameters as they were declared, side by side, `[..., m]` of z `[..., d]`."""
    values = target.constrain(z.reshape(-1, z.shape[-1])).values()
    flat = torch.cat([v.reshape(z.shape[:-1].numel(), -1) for v in values], 1)
    return flat.view(*z.shape[:-1], -1)


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


def endless_scale(score: Score, draws: Tensor) -> Tensor | None:
    """Return a coordinate's direction `[d]` along which p's marginal does not decay, or None.

    score: log p `[n]` and its gradient `[n, d]` at z `[n, d]`. draws: `[n, d]` of a q near p. A
    coordinate is followed on which the width of others depends, by a factor of 1000 or more
    within 100 sd, and of those ways the four on which most others depend; all else stays at the
    draws' mean, since an integral that is infinite there is so at every such place. It does not
    decay where the last half of the path, over which widths change by e³ at least, falls by less
    than 0.01 nats or rises in a straight line. Costs 4 d² gradients, and for each way some 100 to
    200 calls of 2 k + 3 points, k coordinates that change their width.

    >>> from kullback.variational.target.batches import score_in_pieces
    >>> z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> def funnel(z, prior):  # two x of scale exp(z[:, 0])
    ...     inner = -0.5 * (z[:, 1:] * (-z[:, :1]).exp()).square().sum(1) - 2 * z[:, 0]
    ...     return inner - 0.5 * (z[:, 1:] - 1).square().sum(1) + prior(z[:, 0])
    >>> def scored(prior):
    ...     return lambda z: score_in_pieces(lambda z: funnel(z, prior), z, 4096)
    >>> endless_scale(scored(lambda v: 0 * v), z).sign().tolist()  # 1/τ
    [-1.0, 0.0, 0.0]
    >>> endless_scale(scored(lambda v: v - torch.log1p((2 * v).exp())), z)  # half-Cauchy
    """
    if not bool(draws.isfinite().all()):
        return None
    centre = draws.mean(0)
    sd = draws.std(0).maximum(limits.MIN_RAY_SD * (1 + centre.abs()))
    scales = _scales(score, centre, sd)
    searches = [_is_endless(centre, sd, j, way, others) for j, way, others in scales]
    first = first_true(score, searches)
    if first is None:
        return None
    j, way, _ = scales[first]
    found = torch.zeros_like(centre)
    found[j] = way * sd[j]
    return found


def _is_endless(centre: Tensor, sd: Tensor, j: int, way: float, others: Tensor) -> Search[bool]:
    """Say whether the marginal of coordinate j does not decay on one way."""
    moving = torch.cat([others.new_tensor([j]), others])

    def search() -> Search[bool]:
        path = yield from _Path.begin(centre, sd, j, way, others)
        return False if path is None else (yield from path.endless(way))

    return (yield from within(search(), centre, moving))


def _scales(score: Score, centre: Tensor, sd: Tensor) -> list[tuple[int, float, Tensor]]:
    """Return coordinates, ways (±1), and who changes the width far out on that way, `[k]` indices.

    A width that changes by a power of the distance is that of a scale pulled by a location; by the
    exponential of it, that of others of which the coordinate is the log scale.
    """
    d = len(sd)
    ways = torch.cat([torch.diag(sd), -torch.diag(sd)])
    near = _curvatures(score, centre[None], sd)[0]

    def changes(distance: Tensor, rows: Tensor) -> Tensor:
        there = _curvatures(score, centre + distance[rows, None] * ways[rows], sd)
        return (there / near).abs().log().abs()

    rows, far = torch.arange(2 * d), torch.zeros(2 * d, dtype=sd.dtype)
    change = torch.full((2 * d, d), math.nan, dtype=sd.dtype)
    for distance in limits.SCALE_PLACES:
        left = rows[~change.isfinite().all(1)]
        if len(left):
            far[left] = distance
            change[left] = changes(far, left)
    wide = change > 2 * math.log(limits.SCALE_WIDTHS)
    wide[rows, rows % d] = False
    some = rows[wide.any(1)]
    if len(some):
        wide[some] &= change[some] > limits.SCALE_GROWTH * changes(far / 2, some)
    found = [
        (row % d, 1.0 if row < d else -1.0, wide[row].nonzero().flatten()) for row in some.tolist()
    ]
    found = sorted((one for one in found if len(one[2])), key=lambda one: -len(one[2]))
    return found[: limits.MAX_SCALES]


def _curvatures(score: Score, points: Tensor, sd: Tensor) -> Tensor:
    """Return the diagonal of ∂² log p at points `[n, d]`, in units of sd, `[n, d]`."""
    steps = limits.HESSIAN_STEP * torch.diag(sd)
    moved = torch.cat([points[:, None] + steps, points[:, None] - steps], 1)
    slopes = torch.cat(
        [score(part)[1] for part in torch.split(moved.flatten(0, 1), limits.MAX_PIECE)]
    )
    high, low = slopes.view(len(points), 2, len(sd), len(sd)).diagonal(dim1=2, dim2=3).unbind(1)
    return (high - low) * sd / (2 * limits.HESSIAN_STEP)


@dataclass(slots=True)
class _Path:
    """The mode of some coordinates given another, and their Laplace integral, where that one is.

    z: `[1 + k]`, the followed coordinate first; unit: its sd; root: `[k, k]`, so that the others'
    covariance is root rootᵀ; tangent: `[k]`, of the mode in units of root; height: nats.
    """

    unit: Tensor
    z: Tensor
    root: Tensor
    tangent: Tensor
    height: float = math.nan

    @classmethod
    def begin(
        cls, centre: Tensor, sd: Tensor, j: int, way: float, others: Tensor
    ) -> Search["_Path | None"]:
        """Find the mode of the others where coordinate j is at the centre, or on the other way."""
        moving = torch.cat([others.new_tensor([j]), others])
        root, still = torch.diag(sd[others]), torch.zeros_like(sd[others])
        for back in limits.SCALE_STARTS:  # so narrow that rounding hides it, it may begin elsewhere
            first = centre[moving].clone()
            first[0] -= way * back * sd[j]
            found = yield from cls(sd[j], first, root, still).moved(0.0)
            if found is not None and found.changed(root) > limits.SCALE_CHANGE:
                # its widths were looked for with far other ones
                found = yield from found.moved(0.0)
            if found is not None:
                return found
        return None

    def moved(self, step: float) -> Search["_Path | None"]:
        """Find the mode a step (sd) on; None where there is none, or z's rounding hides it."""
        ahead = torch.stack([step * self.tangent, torch.zeros_like(self.tangent)])
        tried = torch.cat([torch.full_like(ahead[:, :1], step), ahead], 1)
        asked = torch.cat([tried, stencil(tried[0], limits.SCALE_STEP)])
        values, slopes = yield self.z + asked @ self._factor.mT
        heights, slopes = values[:2].nan_to_num(-math.inf, -math.inf, -math.inf), slopes[2:]
        follows = bool(heights[0] > heights[1])
        known = (values[2:], slopes @ self._factor) if follows else None
        now, w = self, tried[0 if follows else 1]
        basis = torch.eye(len(now.z), dtype=now.z.dtype)
        for tolerance in limits.SCALE_TOLERANCES:  # in the old widths, and then in its own
            mode = yield from mode_search(
                Frame(now.z, now._factor),
                basis,
                w,
                step=limits.SCALE_STEP,
                tolerance=tolerance,
                known=known,
            )
            if not mode.found:
                return None
            z, size = now.z + now._factor @ mode.w, torch.linalg.slogdet(now.root)[1]
            now = replace(now, z=z, root=now.root @ mode.root, height=mode.height + float(size))
            w, known = torch.zeros_like(w), None
        now.tangent = torch.linalg.solve(mode.root, mode.tangent)
        alone = torch.linalg.inv(now.root).norm(dim=0).reciprocal()  # sd, all others given
        spacing = torch.finfo(z.dtype).eps * z[1:].abs()
        hidden = spacing > limits.SCALE_ROUNDING * limits.SCALE_STEP * alone
        return None if bool(hidden.any()) else now

    def changed(self, root: Tensor) -> float:
        """Return the log of the factor by which the others' widths differ most from a root's."""
        return float(torch.linalg.svdvals(torch.linalg.solve(root, self.root)).log().abs().max())

    @property
    def _factor(self) -> Tensor:
        whole = torch.zeros(2 * self.z.shape, dtype=self.z.dtype)
        whole[0, 0], whole[1:, 1:] = self.unit, self.root
        return whole

    def walked(self, way: float, *, most: float = math.inf) -> Search["_Heights"]:
        """Go one way until no mode follows, the marginal has clearly decayed, or widths changed."""
        found, node, step = _Heights([0.0], [self.height], [0.0]), self, 1.0
        for _ in range(limits.SCALE_NODES):
            there = yield from node.moved(way * step)
            if there is None:
                step /= 4
                if step < limits.SCALE_SHORTEST:
                    break
                continue
            change = there.changed(node.root)
            found.at.append(found.at[-1] + step)
            found.heights.append(there.height)
            found.widths.append(found.widths[-1] + change)
            node = there
            step *= 2.0 if change < 1.0 else 0.5 if change > 3.0 else 1.0
            if found.decays or found.widths[-1] > most:
                break
        return found

    def endless(self, way: float) -> Search[bool]:
        """Say whether the marginal does not decay on one way."""
        path = yield from self.walked(way)
        if path.widths[-1] < 2 * limits.SCALE_CHANGE and not path.decays:
            back = yield from self.walked(-way, most=2 * limits.SCALE_CHANGE)
            path = back.then(path)
        return not path.decays and path.straight and path.fall < limits.SCALE_FALL


@dataclass(frozen=True, slots=True)
class _Heights:
    """Log marginals (nats) at places (sd) of a path, and the log of how far widths changed."""

    at: list[float]
    heights: list[float]
    widths: list[float]

    def then(self, other: "_Heights") -> "_Heights":
        """Return this path backwards, and another from the same place."""
        ends = [
            [mine[-1] - x for x in mine[::-1]] + [mine[-1] + x for x in theirs[1:]]
            for mine, theirs in ((self.at, other.at), (self.widths, other.widths))
        ]
        return _Heights(ends[0], self.heights[::-1] + other.heights[1:], ends[1])

    @property
    def _half(self) -> tuple[Tensor, Tensor] | None:
        half = [k for k, t in enumerate(self.at) if t >= self.at[-1] / 2]
        if len(half) < 4 or self.widths[-1] - self.widths[half[0]] < limits.SCALE_CHANGE:
            return None
        t, h = (torch.tensor(x, dtype=torch.float64)[half] for x in (self.at, self.heights))
        return t, h

    @property
    def fall(self) -> float:
        """By how much the last half falls."""
        half = self._half
        return math.inf if half is None else float(half[1][0] - half[1][-1])

    @property
    def straight(self) -> bool:
        """Whether the last half is a straight line."""
        half = self._half
        if half is None:
            return False
        t, h = half
        return float(_off_line(t, h)) < limits.SCALE_FALL

    @property
    def decays(self) -> bool:
        """Whether it is as low as float64 has densities, or falls in a straight line."""
        low = self.heights[-1] < max(self.heights) - limits.UNDERFLOW_DEPTH
        return low or (math.inf > self.fall > limits.SCALE_DECAY and self.straight)
