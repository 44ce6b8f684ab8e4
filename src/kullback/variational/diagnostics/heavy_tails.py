"""Which moments of p exist? The power by which its marginals fall, far beyond all draws.

Where p's marginal along a line falls like t^-(ν + 1), E|z|^s is infinite from s = ν on: draws have
a sample variance at ν ≤ 2, and p has none. `tail_index` follows the mode of all other directions
given the place along a coordinate or a principal axis, out to 3·10⁴ sd, and takes the Laplace
approximation to the marginal there (Tierney and Kadane 1986; `follow` does the same near q). So the
heavy direction may lie anywhere between the axes, the others may stay as wide as they are (a heavy
ridge) or widen with the distance (a t distribution in several dimensions).

Which to use: `tail_index`, through `diagnose_beyond`. What it finds falls by a power; it does not
find every such tail: none along a path on which log p underflows or the conditional mode is lost.
"""

import math

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.target.batches import LogDensity, score_in_pieces

from .defensive_sampling import basis_of, conditional_mode

__all__ = ["tail_index"]


def tail_index(log_density: LogDensity, draws: Tensor) -> Tensor:
    """Return for each coordinate `[d]` of z an index ν with E|z|^s = ∞ for s ≥ ν; inf: none found.

    log_density: `[n, d]` to `[n]`, differentiable, nats. draws: `[n, d]` of q. An index is
    looked for up to 4, in steps of 0.1, rounded up, and holds for all coordinates that grow along
    the path. Costs up to 60 evaluations a place for each of 4 d ways, most of which end at 30 sd,
    and some 16 d gradients for each way that falls no faster than a power.

    >>> z = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> tail_index(lambda z: -torch.log1p(z[:, 0] ** 2) - z[:, 1] ** 2, z).tolist()
    [1.0, inf]
    >>> slanted = lambda z: -1.45 * torch.log1p(z[:, 0] ** 2 / 1.9) - (z[:, 1] - z[:, 0]) ** 2
    >>> tail_index(slanted, z).tolist()
    [1.9, 1.9]
    >>> tail_index(lambda z: -2.25 * torch.log1p(z.square().sum(1) / 2.5), z).tolist()
    [2.5, 2.5]
    """
    found = draws.new_full(draws.shape[1:], math.inf)
    if not bool(draws.isfinite().all()) or len(draws) <= 2 * draws.shape[1]:
        return found
    frame = Frame.of_draws(draws)
    for way, here, ahead in _far_modes(log_density, frame):
        index, grown = _index(log_density, frame, way, here, ahead)
        if index <= limits.MAX_TAIL_INDEX:
            moves = (frame.factor @ grown).abs() / frame.sd
            moved = moves > limits.TAIL_GROWTH * moves.max()
            found = torch.where(moved, found.clamp_max(index), found)
    return found


def _far_modes(log_density: LogDensity, frame: Frame) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return ways `[d]` of the frame on which p falls slowly, the places reached, and the steps.

    A power of d + 4 is slow: that of a marginal with index 4 whose other directions all widen. The
    slack is for a p that is much narrower in its middle than its sd.
    """
    dims, reached = len(frame.shift), 0.0
    ways = torch.cat([frame.axes, torch.linalg.svd(frame.factor)[2]])[: limits.MAX_RAYS]
    ways = torch.cat([ways, -ways])
    here, ahead, height = 0.0 * ways, ways, ways[:, 0]
    with torch.no_grad():
        middle = float(log_density(frame.shift[None]))
    for t in limits.TAIL_PLACES:
        begin = _better(log_density, frame, here, (t - reached) * ways, (t - reached) * ahead)
        there, height = _climbed(log_density, frame, ways, begin)
        ahead = (there - here) / (t - reached)
        most = (dims + limits.MAX_TAIL_INDEX) * (math.log(t) + limits.TAIL_SLACK)
        slow = middle - height < most
        ways, here, ahead, height, reached = ways[slow], there[slow], ahead[slow], height[slow], t
        if len(ways) == 0:
            break
    order = height.argsort(descending=True)[: limits.MAX_TAIL_WAYS].tolist()
    return [(ways[k], here[k], ahead[k]) for k in order]


def _better(log_density: LogDensity, frame: Frame, u: Tensor, *moves: Tensor) -> Tensor:
    """Return u `[k, d]` after the one of several moves, `[k, d]` each, that ends highest."""
    ends = u + torch.stack(moves)
    with torch.no_grad():
        heights = log_density(frame.outwards(ends.flatten(0, 1))).view(ends.shape[:2])
    best = heights.nan_to_num(-math.inf, -math.inf, -math.inf).argmax(0)
    return ends[best, torch.arange(len(u))]


def _climbed(
    log_density: LogDensity, frame: Frame, ways: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Climb from u `[k, d]`, its place along the ways held; where that ends, and log p there."""
    lengths = torch.tensor(limits.TAIL_STEPS, dtype=u.dtype)[:, None, None]

    def held(x: Tensor) -> Tensor:
        return x - (x * ways).sum(-1, keepdim=True) * ways

    def score(x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = score_in_pieces(log_density, frame.outwards(x), limits.MAX_PIECE)
        slope = held((slope @ frame.factor).nan_to_num(0.0, 0.0, 0.0))
        return value.nan_to_num(-math.inf, -math.inf, -math.inf), slope

    value, slope = score(u)
    for _ in range(limits.TAIL_CLIMB):
        size = slope.norm(dim=1, keepdim=True)
        up = slope / size.clamp_min(1e-300)
        curve = ((slope - score(u + limits.HESSIAN_STEP * up)[1]) * up).sum(1, keepdim=True)
        curve = curve / limits.HESSIAN_STEP
        far = u.norm(dim=1, keepdim=True)
        length = torch.where(curve > 0, size / curve.clamp_min(1e-300), far).minimum(far)
        tried = u + lengths * (length * up)
        with torch.no_grad():
            heights = log_density(frame.outwards(tried.flatten(0, 1))).view(tried.shape[:2])
        height, best = heights.nan_to_num(-math.inf, -math.inf, -math.inf).max(0)
        gain = height > value
        u = torch.where(gain[:, None], tried[best, torch.arange(len(u))], u)
        if not bool((height > value + limits.NODE_TOLERANCE).any()):
            value = torch.maximum(value, height)
            break
        value, slope = score(u)
    return u, value


def _index(
    log_density: LogDensity, frame: Frame, way: Tensor, u: Tensor, ahead: Tensor
) -> tuple[float, Tensor]:
    """Return ν of the marginal along a way, inf where it falls by no power, and the last step.

    The other directions are measured in units of the distance, in which those that widen with it
    stay as they are, and by differences over one sd of q, which see the width of a kink.
    """
    basis, heights, reached = basis_of(way), [], limits.TAIL_PLACES[-1]
    for t in limits.FAR_PLACES:
        wide = Frame(frame.shift, t * frame.factor)

        def score(z: Tensor) -> tuple[Tensor, Tensor]:
            return score_in_pieces(log_density, z, len(z))

        far = t - reached
        begin = _better(log_density, frame, u[None], far * way[None], far * ahead[None])
        w = (_climbed(log_density, frame, way[None], begin)[0][0] / t) @ basis
        w[0] = 1.0
        mode = conditional_mode(score, wide, basis, w, step=1.0 / t)
        if not mode.found:
            return math.inf, ahead
        there = t * (basis @ mode.w)
        ahead = (there - u) / (t - reached) if t > reached else ahead
        u, reached = there, t
        heights.append(mode.height + (len(way) - 1) * math.log(t))
    logs = torch.tensor(heights, dtype=way.dtype)
    slopes = logs.diff() / torch.tensor(limits.FAR_PLACES, dtype=way.dtype).log().diff()
    if not float(slopes.diff().abs().max()) < limits.TAIL_AGREES:
        return math.inf, ahead
    power = -float(slopes[-1]) - limits.SLOPE_MARGIN
    return max(1.0, math.ceil(10 * (power - 1)) / 10), ahead
