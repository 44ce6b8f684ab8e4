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
from collections.abc import Callable

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families import StudentT
from kullback.variational.families.family import Frame
from kullback.variational.optimise.forward_kl import moments
from kullback.variational.target.batches import LogDensity, score_in_pieces

from .defensive_sampling import basis_of, conditional_mode

__all__ = ["tail_index"]


def tail_index(log_density: LogDensity, draws: Tensor) -> Tensor:
    """Return for each coordinate `[d]` of z an index ν with E|z|^s = ∞ for s ≥ ν; inf: none found.

    log_density: `[n, d]` to `[n]`, differentiable, nats. draws: `[n, d]` of q. An index is
    looked for up to 4, in steps of 0.1, rounded up, and holds for all coordinates that grow along
    the path. Costs some 100 evaluations a place for each of 4 d ways, most of which end at 30 sd,
    and some 16 d gradients for each way that falls no faster than a power; where these do not
    agree on one, up to 70,000 evaluations for each of three (kinks, where there is no curvature).

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
    frame, left = Frame.of_draws(draws), limits.MAX_TAIL_INTEGRALS
    for way, here, ahead in _far_modes(log_density, frame):
        index, grown = _index(log_density, frame, way, here, ahead)
        if math.isinf(index) and len(way) > 1 and left > 0:
            left -= 1
            index, grown = _integrated(log_density, frame, way, here, ahead)
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
    """Climb from u `[k, d]`, its place along the ways held; where that ends, and log p there.

    By BFGS, which finds its way along the kinks of a density too. Reference: Lewis and Overton
    (2013), "Nonsmooth optimization via quasi-Newton methods".
    """
    lengths = torch.tensor(limits.TAIL_STEPS, dtype=u.dtype)[:, None, None]

    def score(x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = score_in_pieces(log_density, frame.outwards(x), limits.MAX_PIECE)
        slope = (slope @ frame.factor).nan_to_num(0.0, 0.0, 0.0)
        slope = slope - (slope * ways).sum(-1, keepdim=True) * ways
        return value.nan_to_num(-math.inf, -math.inf, -math.inf), slope

    value, slope = score(u)
    inverse, quiet = _first_inverse(score, u, slope), 0
    for _ in range(limits.TAIL_CLIMB):
        push = (inverse @ slope[:, :, None])[..., 0]
        tried = u + lengths * push
        with torch.no_grad():
            heights = log_density(frame.outwards(tried.flatten(0, 1))).view(tried.shape[:2])
        height, best = heights.nan_to_num(-math.inf, -math.inf, -math.inf).max(0)
        gain = height > value
        there = torch.where(gain[:, None], tried[best, torch.arange(len(u))], u)
        quiet = 0 if bool((height > value + limits.NODE_TOLERANCE).any()) else quiet + 1
        before, (value, ahead) = (u, slope), score(there)
        u, slope = there, ahead
        if quiet == limits.TAIL_QUIET:
            break
        inverse = _updated(inverse, u - before[0], before[1] - slope)
        # nothing gained: straight uphill next, a tenth as far
        short = 0.1 * push.norm(dim=1) / slope.norm(dim=1).clamp_min(1e-300)
        straight = short[:, None, None] * torch.eye(u.shape[1], dtype=u.dtype)
        inverse = torch.where(gain[:, None, None], inverse, straight)
    return u, value


def _first_inverse(
    score: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor, slope: Tensor
) -> Tensor:
    """Return a multiple of I, `[k, d, d]`, that leads to the top of the parabola uphill."""
    size = slope.norm(dim=1, keepdim=True).clamp_min(1e-300)
    up = slope / size
    change = slope - score(u + limits.HESSIAN_STEP * up)[1]
    curve = (change * up).sum(1, keepdim=True) / limits.HESSIAN_STEP
    far = u.norm(dim=1, keepdim=True)
    length = torch.where(curve > 0, size / curve.clamp_min(1e-300), far).minimum(far)
    first: Tensor = (length / size)[..., None] * torch.eye(u.shape[1], dtype=u.dtype)
    return first


def _updated(inverse: Tensor, step: Tensor, turn: Tensor) -> Tensor:
    """Return the inverse Hessians `[k, d, d]` of BFGS after steps and changes of slope `[k, d]`."""
    along = (step * turn).sum(1)
    usable = along > limits.MIN_CURVATURE * step.norm(dim=1) * turn.norm(dim=1)
    rate = torch.where(usable, along, 1.0).reciprocal()[:, None, None]
    eye = torch.eye(step.shape[1], dtype=step.dtype)
    left = eye - rate * step[:, :, None] * turn[:, None, :]
    new = left @ inverse @ left.mT + rate * step[:, :, None] * step[:, None, :]
    return torch.where(usable[:, None, None], new, inverse)


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
    return _index_of(heights), ahead


def _index_of(heights: list[float]) -> float:
    """Return ν of log marginals at the far places, inf where they do not fall by one power."""
    logs = torch.tensor(heights, dtype=torch.float64)
    slopes = logs.diff() / torch.tensor(limits.FAR_PLACES, dtype=logs.dtype).log().diff()
    if not float(slopes.diff().abs().max()) < limits.TAIL_AGREES:
        return math.inf
    power = -float(slopes[-1]) - limits.SLOPE_MARGIN
    return max(1.0, math.ceil(10 * (power - 1)) / 10)


def _flattened(logs: Tensor) -> tuple[Tensor, float]:
    """Return weights `[n]` of enough effective draws, and the power of the real ones they are."""
    for share in limits.TAIL_POWERS:
        w = (share * logs).softmax(0)
        if float(w.square().sum()) * limits.MIN_TAIL_DRAWS <= 1.0:
            break
    return w, share


def _integrated(
    log_density: LogDensity, frame: Frame, way: Tensor, u: Tensor, ahead: Tensor
) -> tuple[float, Tensor]:
    """Return ν as `_index` does, with the other directions integrated by importance sampling.

    At a kink there is no curvature, and a mode that is a little off changes Laplace's width. Here a
    t is moved and scaled to p's weighted moments; its draws are the same at every place, so that
    their noise cancels in the slopes.
    """
    basis, heights, reached = basis_of(way), [], limits.TAIL_PLACES[-1]
    rest, shape = basis[:, 1:], StudentT(Frame.identity(len(way) - 1), degrees=limits.WIDE_DEGREES)
    noise = shape.sample(limits.TAIL_DRAWS, torch.Generator().manual_seed(0))
    log_q = shape.log_prob(noise).detach()

    def weighed(law: Frame, t: float) -> tuple[Tensor, Tensor]:
        points = law.outwards(noise)
        with torch.no_grad():
            log_p = log_density(frame.outwards(t * way + points @ rest.mT))
        logs = log_p.nan_to_num(-math.inf, -math.inf, -math.inf) - log_q + law.log_det
        return points, logs

    root = torch.eye(len(way) - 1, dtype=way.dtype)
    for t in limits.FAR_PLACES:
        far = t - reached
        begin = _better(log_density, frame, u[None], far * way[None], far * ahead[None])
        top = _climbed(log_density, frame, way[None], begin)[0][0] @ rest
        wider = t if t == reached else t / reached  # widths may stay, or grow with the distance
        laws = [Frame.dense(top, scale * root) for scale in (1.0, wider)]
        law = max(laws, key=lambda one: float(weighed(one, t)[1].logsumexp(0)))
        for _ in range(limits.TAIL_ROUNDS):
            points, logs = weighed(law, t)
            w, share = _flattened(logs)
            if not float(w.square().sum()) * 2 * len(way) < 1.0:  # NaN where p is 0 at all draws
                return math.inf, ahead
            law = moments(points, w)
        if share < 1.0:
            return math.inf, ahead
        there = t * way + rest @ law.shift
        ahead = (there - u) / (t - reached) if t > reached else ahead
        u, root, reached = there, law.factor, t
        heights.append(float(logs.logsumexp(0)))
    return _index_of(heights), ahead
