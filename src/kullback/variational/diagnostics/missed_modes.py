"""Looking for mass where q has no draws: the one thing that no weight and no score can show.

A q that sits on one of two peaks looks perfect from its own draws. `probe` starts far outside,
climbs log p, and weighs the peaks it ends on. Finding one proves that it is there. Finding none
proves little in many dimensions: outside the basin of a narrow peak nothing that is computed from
log p shows it, and that basin fills a share of all directions that falls like a power d − 1 (which
is why tempering is slow there too: Woodard, Schmidler and Huber 2009, "Sufficient conditions for
torpid mixing of parallel and simulated tempering"). `narrowest` says what would have been found.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import log_mean_exp
from kullback.variational import limits
from kullback.variational.families.family import Frame, student_t_log_prob
from kullback.variational.target.batches import LogDensity, score_in_pieces

__all__ = ["Probed", "narrowest", "probe"]


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found: the share of p's mass elsewhere, draws there `[n, d]`, how far, how sought.

    share: of all mass found, in [0, 1]; 0 when nothing was found. draws: of the
    heaviest peak `[k, d]` with their log weights `[k]`, None when there is none. distance: from
    the mean of q's draws to that peak, in their standard deviations (Mahalanobis). starts: climbs.
    scanned: points in directions of every kind from which a first step was taken. rays: lines along
    axes and diagonals at which log p was looked at. dims: of q. edged: whether log p is −inf at
    draws of q: beyond an edge nothing leads to another region.
    """

    share: float
    starts: int
    draws: Tensor | None = None
    log_weights: Tensor | None = None
    distance: float = 0.0
    scanned: int = 0
    rays: int = 0
    dims: int = 1
    edged: bool = False

    @property
    def narrowest(self) -> float:
        """The sd, in q's, of the narrowest peak that is found in nearly every direction."""
        return narrowest(self.dims, self.scanned + self.starts)

    @property
    def words(self) -> str:
        """How far was searched, and what would have been found."""
        looked = f"{self.scanned:,} points and {self.rays} rays to {limits.SCAN_REACH:,.0f} sd, "
        cost = f"{looked if self.scanned else ''}{self.starts} climbs"
        return f"searched for other peaks to {self.reach:g} sd from q's mean ({cost}): {self.seen}"

    @property
    def reach(self) -> float:
        """How far from q's mean, in its sd, `narrowest` holds."""
        return max(limits.WIDTH_DISTANCES)

    @property
    def seen(self) -> str:
        """Which peaks would have been found, and which would not."""
        if self.edged:
            return f"one beyond log p = -inf that none of {self.scanned:,} points met may be missed"
        digits = 10 ** max(2, -math.floor(math.log10(self.narrowest)))
        width = math.ceil(digits * self.narrowest) / digits  # up: what is said to be found is
        kind = f"narrower than {width:g} of q's sd" if width < 1 else "no wider than q"
        said = f"one {kind} may have been missed"
        if not self.rays or width <= limits.RAY_SEES:
            return said
        return f"{said}, along coordinates and diagonals one narrower than {limits.RAY_SEES:g}"


@functools.lru_cache(maxsize=64)
def narrowest(dims: int, points: int) -> float:
    """Return the sd of the narrowest peak whose basin holds 3 of so many random points on average.

    In units of q's sd, 1 at most. With s < 1 a peak N(m, s² I) at a distance D has the higher
    density of two in a ball about m / (1 − s²) of squared radius
    s² (D² + 2 (1 − s²)(d log 1/s + log odds)) / (1 − s²)². Points have uniform directions and
    log-uniform radii; where 3 meet it on average, none does in 5 %. Of D = 5, 9, 20 and 40 the
    worst; the peak holds 2 % of p. Approximate: both parts of p are round in q's frame.

    >>> [round(narrowest(d, 4096), 2) for d in (2, 10, 30)]
    [0.07, 0.66, 0.89]
    """
    low, high = math.log(1e-3), math.log(0.999)
    for _ in range(limits.WIDTH_BISECTIONS):
        middle = 0.5 * (low + high)
        shares = (_basin(dims, math.exp(middle), apart) for apart in limits.WIDTH_DISTANCES)
        low, high = (low, middle) if min(shares) * points > 3 else (middle, high)
    return math.exp(high)


def _basin(dims: int, sd: float, apart: float) -> float:
    """Return the share of scanned points in the basin of a narrow peak; see `narrowest`."""
    odds = math.log(limits.NAMED_ELSEWHERE / (1 - limits.NAMED_ELSEWHERE))
    rest = 1 - sd**2
    centre = apart / rest
    square = sd**2 * (apart**2 + 2 * rest * (odds - dims * math.log(sd))) / rest**2
    if dims == 1:
        angle, weight = torch.zeros(1).double(), torch.full((1,), 0.5).double()
    else:
        angle = torch.linspace(0, math.pi / 2, 2001, dtype=torch.float64)[1:]
        log_norm = math.lgamma(dims / 2) - math.lgamma((dims - 1) / 2) - 0.5 * math.log(math.pi)
        weight = (log_norm + (dims - 2) * angle.sin().log()).exp() * (math.pi / 4000)
    half = (square - (centre * angle.sin()).square()).clamp_min(0).sqrt()
    ends = (centre * angle.cos() + torch.stack([-half, half])).clamp(
        limits.OUTSIDE_SDS, limits.SCAN_REACH
    )
    length = math.log(limits.SCAN_REACH / limits.OUTSIDE_SDS)
    return float((weight * (ends[1] / ends[0]).log()).sum()) / length


def probe(
    log_density: LogDensity,
    draws: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    starts: int = 32,
    scanned: int = limits.SCANNED_POINTS,
    generator: torch.Generator | None = None,
) -> Probed:
    """Climb log p from starts far outside the draws and weigh the peaks found there.

    log_density: `[n, d]` to `[n]`, differentiable. draws `[n, d]` from q, log_p, log_q `[n]`, in
    nats. scanned: points of random direction out to 100 sd; with them go points on rays (axes of
    coordinates and of q, and diagonals) at which log p lies above what is inside on the ray says.
    From all of these one step is taken; the highest of every shell climb on, with `starts` others,
    and the peaks are settled by Newton's method. Costs `2 scanned + 60 starts` gradients, and
    28 log densities for each of `6 d + 8` rays. The mass of a peak comes from draws of a
    wide t around it, weighted; only those outside the body of q count: beyond a radius that q's
    draws hardly reach, or towards the peak by more than they go in any one direction; or those in
    its body, where p is lower between it and the top at q's mean. A peak on which q has its share
    of draws is not elsewhere. Approximate: narrow peaks are missed; see `narrowest`.
    Errors: `ArgumentValueError` for no starts.

    >>> def two_peaks(z):
    ...     return torch.logaddexp(-0.5 * z[:, 0] ** 2, 1.0 - 0.5 * (z[:, 0] - 9) ** 2)
    >>> seed = torch.Generator().manual_seed(0)
    >>> z = torch.randn(500, 1, generator=seed, dtype=torch.float64)
    >>> log_q = -0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
    >>> round(probe(two_peaks, z, two_peaks(z), log_q, generator=seed).share, 2)
    0.73
    """
    require(starts >= 1, "starts", "at least 1", starts)
    frame, dims = Frame.of_draws(draws), draws.shape[1]
    own_places = frame.inwards(draws)

    def whitened(u: Tensor) -> Tensor:
        return log_density(frame.outwards(u))

    noise = torch.randn(starts, dims, generator=generator, dtype=draws.dtype)
    scales = torch.tensor(limits.START_SCALES, dtype=draws.dtype).repeat(starts)[:starts]
    begin, own, rays = noise * scales[:, None], torch.Generator().manual_seed(0), 0
    climbs = starts
    if scanned:
        ways = _ways(frame).to(draws)
        rays = len(ways)
        pool = torch.cat([_around(dims, scanned, own).to(draws), _kinks(whitened, ways)])
        for number in limits.CLIMBERS:
            pool, heights = _stepped(whitened, pool)
            pool = pool[_best_of_shells(pool, heights, number)]
        begin, climbs = torch.cat([begin, pool]), starts + limits.CLIMBERS[-1]
    here = float(log_mean_exp(log_p - log_q)) - float(frame.log_det)
    edged = bool((log_p == -math.inf).any())
    found = Probed(0.0, climbs, scanned=scanned, rays=rays, dims=dims, edged=edged)
    if edged and scanned:
        found = _beyond_edges(whitened, frame, own_places, here, found)
    home = _newton(whitened, torch.zeros(1, dims, dtype=draws.dtype))
    ends, heights = _climb(whitened, begin)
    tops = torch.stack([*home, *_settled(whitened, ends, heights)])
    middle, *peaks = _peaks_at(whitened, tops)
    for end, peak in zip(tops[1:], peaks, strict=True):
        apart = _is_apart(whitened, (end, peak), (tops[0], middle))
        missing = _missing(whitened, end, peak, own_places, here, own, apart=apart)
        if missing is not None and missing[0] > found.share:
            share, local, weights = missing
            found = replace(
                found,
                share=share,
                draws=frame.outwards(local),
                log_weights=weights,
                distance=float(end.norm()),
            )
    return found


def _beyond_edges(
    log_density: LogDensity, frame: Frame, own: Tensor, here: float, none: Probed
) -> Probed:
    """Weigh what p has beyond the radius of q's draws, by points of a known density; or `none`.

    log_density, own: in u. Regions between which log p is −inf have no slope that leads from one to
    another, and a region of a flat p has no curvature by which `_missing` could weigh it.
    """
    dims = own.shape[1]
    points = _around(dims, none.scanned, torch.Generator().manual_seed(1)).to(own)
    radius, far = points.norm(dim=1), math.sqrt(dims) + limits.OUTSIDE_SDS
    log_sphere = math.log(2) + 0.5 * dims * math.log(math.pi) - math.lgamma(dims / 2)
    log_length = math.log(math.log(limits.SCAN_REACH / limits.OUTSIDE_SDS))
    with torch.no_grad():
        values = log_density(points).nan_to_num(-math.inf, math.inf, -math.inf)
    weights = values + log_sphere + log_length + dims * radius.log()
    weights = torch.where(radius > far, weights, -math.inf)
    share = float(torch.sigmoid(log_mean_exp(weights) - here))
    missed = share - float((own.norm(dim=1) > far).double().mean())
    if not missed > limits.NAMED_ELSEWHERE:
        return none
    middle = weights.softmax(0) @ points
    draws = frame.outwards(points)
    return replace(
        none, share=missed, draws=draws, log_weights=weights, distance=float(middle.norm())
    )


def _around(dims: int, number: int, generator: torch.Generator) -> Tensor:
    """Return points of uniform direction and log-uniform radius, `[number, d]`."""
    way = torch.randn(number, dims, generator=generator, dtype=torch.float64)
    low, high = math.log(limits.OUTSIDE_SDS), math.log(limits.SCAN_REACH)
    log_r = torch.linspace(low, high, number, dtype=torch.float64)
    points: Tensor = way / way.norm(dim=1, keepdim=True) * log_r.exp()[:, None]
    return points


def _ways(frame: Frame) -> Tensor:
    """Return unit vectors `[6 d + 8, d]` of u, both ways: axes and diagonals.

    A coordinate alone; with the others as it draws them along; principal axes; all coordinates
    together, in their units, in their sd and in u; from q's mean to 0.
    """
    factor, identity = frame.factor, torch.eye(len(frame.shift), dtype=frame.shift.dtype)
    moves = torch.stack([frame.sd, torch.ones_like(frame.sd), -frame.shift])
    alone = torch.linalg.solve_triangular(factor, torch.cat([identity, moves]).mT, upper=False).mT
    principal = torch.linalg.svd(factor)[2]
    together = torch.ones_like(frame.shift)[None]
    ways = torch.cat([alone, frame.axes, principal, together])
    ways = ways / ways.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return torch.cat([ways, -ways])


def _kinks(log_density: LogDensity, ways: Tensor) -> Tensor:
    """Return the points on each ray that lie highest above what is inside of them says.

    Along a ray log p falls ever faster with the log of the radius, for tails of any power or
    exponential: a point above the line through the two before it is on another peak, or just
    beyond one, or on a bend.
    """
    low, high = math.log(limits.RAY_FIRST), math.log(limits.SCAN_REACH)
    radii = torch.linspace(low, high, limits.RAY_POINTS, dtype=ways.dtype).exp()
    points = radii[:, None, None] * ways
    with torch.no_grad():
        parts = torch.split(points.flatten(0, 1), limits.MAX_PIECE)
        values = torch.cat([log_density(part) for part in parts]).view(points.shape[:2])
    rise = values[2:] - 2 * values[1:-1] + values[:-2]
    rise, place = rise.nan_to_num(-math.inf, -math.inf, -math.inf).topk(limits.RAY_KINKS, dim=0)
    kept: Tensor = points[place + 2, torch.arange(len(ways))][rise > 0]
    return kept


def _best_of_shells(u: Tensor, heights: Tensor, number: int) -> Tensor:
    """Return the indices of the highest points of every shell, in turns, as many as `number`.

    Those within 2 sd of q's mean, where q has its draws, are left out.
    """
    radius = u.norm(dim=1)
    shell = (radius / limits.HOME_SDS).clamp_min(1e-9).log()
    shell = (shell * limits.SCANNED_SHELLS / math.log(limits.SCAN_REACH)).floor()
    order = heights.argsort(descending=True)
    order = order[(radius > limits.HOME_SDS)[order] & heights[order].isfinite()]
    rank = torch.zeros(len(order), dtype=torch.long)
    for one in shell[order].unique().tolist():
        inside = shell[order] == one
        rank[inside] = torch.arange(int(inside.sum()))
    chosen: Tensor = order[rank.argsort(stable=True)[:number]]
    return chosen


def _score(log_density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    if len(u) == 0:
        return u[:, :1].sum(1), u
    value, slope = score_in_pieces(log_density, u, limits.MAX_PIECE)
    return value.nan_to_num(-math.inf, -math.inf, -math.inf), slope.nan_to_num(0.0, 0.0, 0.0)


def _stepped(log_density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    """Go up the gradient to where its own curvature puts the top; where that is, how high.

    One step reaches the top of a round peak of any width. Where log p is not concave it goes as
    far as q's mean is; a step that leads down is shortened.
    """
    value, slope = _score(log_density, u)
    size = slope.norm(dim=1, keepdim=True)
    way = slope / size.clamp_min(1e-300)
    ahead = _score(log_density, u + limits.HESSIAN_STEP * way)[1]
    curve = ((slope - ahead) * way).sum(1, keepdim=True) / limits.HESSIAN_STEP
    far = u.norm(dim=1, keepdim=True)
    length = torch.where(curve > 0, size / curve.clamp_min(1e-300), far).minimum(2 * far)
    best, height = u, value
    left = torch.arange(len(u))
    for shorter in limits.SHORTER_STEPS:
        if len(left) == 0:
            break
        with torch.no_grad():
            there = u[left] + shorter * (length * way)[left]
            parts = torch.split(there, limits.MAX_PIECE)
            tried = torch.cat([log_density(part) for part in parts])
        up = tried > height[left]
        rows = left[up]
        best, height = best.index_copy(0, rows, there[up]), height.index_copy(0, rows, tried[up])
        left = left[~up]
    return best, height


def _outside(u: Tensor, peak: Tensor) -> Tensor:
    """Say which points `[n, d]` of the frame are outside the body of q, seen towards a peak.

    In many dimensions the radius of q's draws, about sqrt(d), hides a peak that is many sd off in
    one direction. Along that direction a Gaussian q has less than 1e-4 of its draws beyond.
    """
    along = u @ (peak / peak.norm())
    far = u.norm(dim=1) > math.sqrt(len(peak)) + limits.OUTSIDE_SDS
    outside: Tensor = far | (along > 1 + limits.OUTSIDE_SDS)
    return outside


def _climb(log_density: LogDensity, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Climb from each start on its own; where that ends, how high."""
    ends = starts
    heights = torch.full_like(starts[:, 0], -math.inf)
    going = torch.arange(len(starts))
    for _ in range(limits.CLIMB_STEPS):
        there, height = _stepped(log_density, ends[going])
        moved = (there - ends[going]).norm(dim=1) > limits.CLIMB_TOLERANCE
        ends, heights = ends.index_copy(0, going, there), heights.index_copy(0, going, height)
        going = going[moved & (there.norm(dim=1) > limits.HOME_SDS)]
        if len(going) == 0:
            break
    return ends, heights


def _settled(log_density: LogDensity, ends: Tensor, heights: Tensor) -> list[Tensor]:
    """Take the highest few ends of all shells to their tops; no two within one sd of each other."""
    kept: list[Tensor] = []
    places = _distinct(ends, _best_of_shells(ends, heights, len(ends)))
    for top in _newton(log_density, torch.stack(places)) if places else ():
        if all(float((top - other).norm()) > limits.SAME_ENDS for other in kept):
            kept.append(top)
    return kept


def _distinct(ends: Tensor, order: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    for end in ends[order]:
        if len(kept) < limits.MAX_PEAKS and all(
            float((end - other).norm()) > limits.SAME_ENDS for other in kept
        ):
            kept.append(end)
    return kept


def _newton(log_density: LogDensity, u: Tensor) -> Tensor:
    """Take Newton steps from each point `[k, d]` to its top, as long as they lead up."""
    u, going = u.clone(), list(range(len(u)))
    shorter = torch.tensor(limits.SHORTER_STEPS, dtype=u.dtype)[:, None]
    for _ in range(limits.PEAK_STEPS):
        found = zip(going, _peaks_at(log_density, u[going]), strict=True)
        moving = [(i, peak) for i, peak in found if not peak.decrement < limits.PEAK_TOLERANCE]
        if not moving:
            break
        tried = torch.stack([u[i] + shorter * peak.move for i, peak in moving])
        with torch.no_grad():
            heights = log_density(tried.flatten(0, 1)).nan_to_num(-math.inf, -math.inf, -math.inf)
        going = []
        for (i, peak), high, there in zip(
            moving, heights.view(tried.shape[:2]), tried, strict=True
        ):
            best = int(high.argmax())
            if float(high[best]) > peak.height:
                u[i] = there[best]
                going.append(i)
        if not going:
            break
    return u


@dataclass(frozen=True, slots=True)
class _Peak:
    """log p at a point, a root of the inverse of −∂² log p `[d, d]`, and Newton's step.

    decrement: squared length of the step, in sd of the peak. top: whether this is a maximum.
    """

    height: float
    root: Tensor
    move: Tensor
    decrement: float
    top: bool

    @classmethod
    def of(cls, values: Tensor, slopes: Tensor) -> "_Peak":
        """Differentiate the gradient, and take absolute values of its eigenvalues.

        values `[1 + 2 d]`, slopes `[1 + 2 d, d]`: at a point, and a small step away on each axis.
        """
        high, low = slopes[1:].chunk(2)
        curve = (high - low) / (2 * limits.HESSIAN_STEP)  # autograd's own fails where p underflows
        curve = 0.5 * (curve + curve.mT)
        values_of, vectors = torch.linalg.eigh(-curve.nan_to_num(0.0, 0.0, 0.0))
        top = float(values_of.min()) > 0
        size = values_of.abs().clamp(1e-4, 1e8)
        along = vectors.mT @ slopes[0]
        root = vectors @ torch.diag(size**-0.5) @ vectors.mT
        decrement = float((along.square() / size).sum())
        return cls(float(values[0]), root, vectors @ (along / size), decrement, top)


def _peaks_at(log_density: LogDensity, u: Tensor) -> list[_Peak]:
    """Return what is known at each point `[k, d]`, from one call of the density."""
    steps = limits.HESSIAN_STEP * torch.eye(u.shape[1], dtype=u.dtype)
    points = torch.cat([u[:, None], u[:, None] + steps, u[:, None] - steps], 1)
    values, slopes = _score(log_density, points.flatten(0, 1))
    each = zip(values.view(points.shape[:2]), slopes.view(points.shape), strict=True)
    return [_Peak.of(value, slope) for value, slope in each]


def _is_apart(
    log_density: LogDensity, there: tuple[Tensor, _Peak], here: tuple[Tensor, _Peak]
) -> bool:
    """Say whether p is lower between two tops than on both: one is not a bend of the other.

    Both have to be settled; on a bent ridge a climb may end anywhere.
    """
    end, home = there[0], here[0]
    for peak in (there[1], here[1]):
        if not peak.top or peak.decrement > limits.APART_TOLERANCE:
            return False
    shares = torch.linspace(0, 1, limits.APART_POINTS, dtype=end.dtype)[:, None]
    with torch.no_grad():
        heights = log_density(end + shares * (home - end))
    return bool(heights.min() < heights[[0, -1]].min() - limits.APART_DEPTH)


def _missing(
    log_density: LogDensity,
    end: Tensor,
    peak: _Peak,
    own: Tensor,
    here: float,
    generator: torch.Generator,
    *,
    apart: bool,
) -> tuple[float, Tensor, Tensor] | None:
    """Weigh a peak by draws of a t with 5 degrees of freedom shaped by its curvature.

    apart: whether it is known to be no part of the peak on which q's mean is. Returns the share of
    p there that q's draws `own` have not, draws of the t and the log weights that count; None where
    q has its share of draws, or the end is no peak.
    """
    dims = len(end)
    noise = torch.randn(limits.PEAK_DRAWS, dims, generator=generator, dtype=end.dtype)
    degrees = limits.WIDE_DEGREES
    size = torch.randn(limits.PEAK_DRAWS, degrees, generator=generator, dtype=end.dtype)
    noise = noise * (degrees / size.square().sum(1)).sqrt()[:, None]
    local = end + noise @ peak.root.mT
    if not peak.top or peak.decrement > limits.MAX_PEAK_DISTANCE**2:
        return None
    log_det = torch.linalg.slogdet(peak.root)[1]
    log_t = student_t_log_prob(noise.square().sum(1), dims, degrees, log_det)
    with torch.no_grad():
        weights = (log_density(local) - log_t).nan_to_num(-math.inf, math.inf, -math.inf)
    best: tuple[float, Tensor, Tensor] | None = None
    white = torch.linalg.solve(peak.root, (own - end).mT).mT  # q's draws, in sd of the peak
    body = white.norm(dim=1) < math.sqrt(dims) + limits.OUTSIDE_SDS
    away = apart and float(white.mean(0).norm()) > 1 + limits.OUTSIDE_SDS
    inside = noise.norm(dim=1) < math.sqrt(dims) + limits.OUTSIDE_SDS
    regions = [(_outside(local, end), _outside(own, end)), *([(inside, body)] if away else [])]
    for there, theirs in regions:
        counted = torch.where(there, weights, -math.inf)
        share = float(torch.sigmoid(log_mean_exp(counted) - here))
        has = float(theirs.double().mean())
        if has < limits.OWN_SHARE * share and (best is None or share - has > best[0]):
            best = share - has, local, counted
    return best
