"""Importance sampling where samples of q do not reach: wider distributions, and along funnels.

A weight p/q is unbounded where p's tail is the heavier one, and then no number of draws of q tells
what reweighing misses. Draws of q and of a wide distribution together have the weights p/(mixture
of both), which are bounded wherever one of the two is wide enough (defensive importance sampling).
A Student's t about q is wide in every direction; a `Ridge` goes into the narrow end of a funnel,
which no wider distribution of q's shape reaches. Which to use: `draw_wider`, through `assess`.

In a hierarchical posterior a scale parameter decides how wide the others are. Where they are
narrow, neither q nor a wider distribution of the same shape has any draws: the volume falls as the
power of their number. So importance weights look good and miss that end. `follow` goes there by
optimisation: at steps along the coordinate it finds the conditional mode and curvature of all
others (nested Laplace approximations). Their Gaussians together are a proposal, a `Ridge`, that has
draws in both ends. Which to use: `funnels` to find the coordinates, `follow` for one of them;
`diagnose_beyond` does both.

Reference: Hesterberg (1995), "Weighted average importance sampling and defensive mixture
distributions"; Owen and Zhou (2000), "Safe and effective importance sampling"; Tierney and Kadane
(1986), "Accurate approximations for posterior moments and marginal densities"; Rue, Martino and
Chopin (2009), "Approximate Bayesian inference for latent Gaussian models by using integrated nested
Laplace approximations".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import require
from kullback.exact import HALF_LOG_2PI
from kullback.variational import limits
from kullback.variational.families.family import Frame, normal_log_prob, student_t_log_prob
from kullback.variational.target.batches import LogDensity

from .evidence import Pool
from .joint_searches import Score, Search, alone, together

__all__ = [
    "ConditionalMode",
    "Ridge",
    "WiderDraws",
    "basis_of",
    "bends",
    "conditional_mode",
    "draw_wider",
    "follow",
    "follow_all",
    "funnels",
    "mixture_log_weights",
    "mode_search",
    "pooled",
    "stencil",
    "unreached",
]


def funnels(frame: Frame, draws: Tensor, score: Tensor) -> list[int]:
    """Return the coordinates on which the size of the other scores depends, the strongest first.

    draws, score: `[n, d]`, draws of q and the gradient of log p there. For a Gaussian p the squared
    length of the whitened score of the others does not depend on a coordinate; where that
    coordinate is their scale, its log falls or rises along it. Costs no evaluation of p.

    >>> z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> funnels(Frame.of_draws(z), z, -z)
    []
    >>> funnels(Frame.of_draws(z), z, torch.cat([-z[:, :1], -z[:, 1:] * z[:, :1].exp()], 1))
    [0]
    """
    if draws.shape[1] == 1:
        return []
    axes, pushed = frame.axes, score @ frame.factor
    along = frame.inwards(draws) @ axes.mT
    others = pushed.square().sum(1, keepdim=True) - (pushed @ axes.mT).square()
    size = others.clamp_min(1e-300).log()
    size, along = size - size.mean(0), along - along.mean(0)
    found = ((size * along).mean(0) / (size.std(0) * along.std(0)).clamp_min(1e-300)).abs()
    order = found.nan_to_num(0.0).argsort(descending=True)[: limits.MAX_FUNNELS].tolist()
    return [j for j in order if float(found[j]) > limits.MIN_FUNNEL_CORRELATION]


def bends(frame: Frame, draws: Tensor, score: Tensor) -> Tensor:
    """Return directions `[k, d]` of the frame along which p bends or changes its width most.

    draws, score: `[n, d]`, draws of q and the gradient of log p there. What is not linear in the
    whitened score s(u) has the coefficients T[k, i, j] = E[s_k (u_i u_j − δ_ij)], which are third
    derivatives of log p, averaged over q (Stein). The coordinate with the largest `‖T a‖` and the
    direction that has the largest of all are returned, where these pass 0.1; for a Gaussian p they
    are 0. Costs no evaluation of p.

    >>> z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> len(bends(Frame.of_draws(z), z, -z))
    0
    >>> bent = torch.stack([-z[:, 0], z[:, 0] ** 2 - z[:, 1], -z[:, 2]], 1)  # x[1] about x[0]²
    >>> (bends(Frame.of_draws(z), z, bent).abs() > 0.9).tolist()
    [[True, False, False], [True, False, False]]
    """
    u, pushed = frame.inwards(draws), score @ frame.factor
    if len(u) <= 2 * u.shape[1]:
        return u[:0]
    pushed = pushed - pushed.mean(0)
    pushed = pushed - u @ torch.linalg.lstsq(u, pushed, driver="gelsd").solution
    squared = torch.zeros(u.shape[1], u.shape[1], dtype=u.dtype)
    for k in range(u.shape[1]):
        third = (pushed[:, k, None] * u).mT @ u / len(u)
        squared += third @ third
    sizes = ((frame.axes @ squared) * frame.axes).sum(1)
    values, vectors = torch.linalg.eigh(squared)
    found = torch.stack([frame.axes[int(sizes.argmax())], vectors[:, -1]])
    kept: Tensor = found[torch.stack([sizes.max(), values[-1]]).sqrt() > limits.MIN_BEND]
    return kept


@dataclass(frozen=True, slots=True)
class Ridge:
    """A mixture along a path: K nodes, in w = basisᵀ u, whose first entry is the path's.

    at: `[K]`, places on the path; modes, tangents: `[K, d − 1]`, the others' conditional mode and
    its derivative; roots: `[K, d − 1, d − 1]`, with covariance root rootᵀ; heights: `[K]`, log of
    the Laplace approximation to p's marginal, nats, up to a constant. scale: whether the path is
    that of a scale of others, whose marginal has to decay.
    """

    frame: Frame
    basis: Tensor
    at: Tensor
    modes: Tensor
    tangents: Tensor
    roots: Tensor
    heights: Tensor
    scale: bool = True

    @property
    def endless(self) -> bool:
        """Whether the marginal decays by less than log t in the last half of a path: improper."""
        for way in (1.0, -1.0):
            far = self.heights[way * self.at >= limits.MAX_PATH_NODES - 0.5]
            near = self.heights[(way * self.at - limits.MAX_PATH_NODES / 2).abs() < 0.5]
            rise = float(far[0] - near[0]) if len(far) and len(near) else -math.inf
            if rise > -math.log(2) and (self.scale or rise < math.log(2)):
                return True  # a marginal that rises along a bend says only that q is elsewhere
        return False

    @property
    def shares(self) -> Tensor:
        """Weights of the nodes `[K]`: half uniform, half by the square root of the marginal."""
        return 0.5 * torch.softmax(0.5 * self.heights, 0) + 0.5 / len(self.at)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points `[n, d]` of z."""
        dtype, others = self.at.dtype, self.modes.shape[1]
        k = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        step = limits.PATH_KERNEL * torch.randn(n, generator=generator, dtype=dtype)
        noise = torch.randn(n, others, generator=generator, dtype=dtype)
        size = (
            torch.randn(n, limits.RIDGE_DEGREES, generator=generator, dtype=dtype).square().sum(1)
        )
        noise = noise * (limits.RIDGE_DEGREES / size).sqrt()[:, None]
        rest = self.modes[k] + self.tangents[k] * step[:, None]
        rest = rest + (self.roots[k] @ noise[:, :, None])[..., 0]
        w = torch.cat([(self.at[k] + step)[:, None], rest], 1)
        return self.frame.shift + w @ (self.frame.factor @ self.basis).mT

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density `[n]` at z `[n, d]`."""
        w = self.frame.inwards(z) @ self.basis
        inverses, sizes = torch.linalg.inv(self.roots), torch.linalg.slogdet(self.roots)[1]
        parts = [self._node(k, w, inverses[k]) - sizes[k] for k in range(len(self.at))]
        mixed: Tensor = torch.logsumexp(torch.stack(parts) + self.shares.log()[:, None], 0)
        return mixed - self.frame.log_det

    def _node(self, k: int, w: Tensor, inverse: Tensor) -> Tensor:
        """Return the log density about a node, up to that of its root."""
        step = w[:, 0] - self.at[k]
        along = -0.5 * (step / limits.PATH_KERNEL).square()
        along = along - math.log(limits.PATH_KERNEL) - HALF_LOG_2PI
        rest = w[:, 1:] - self.modes[k] - step[:, None] * self.tangents[k]
        squares = (rest @ inverse.mT).square().sum(1)
        others = self.modes.shape[1]
        return along + student_t_log_prob(squares, others, limits.RIDGE_DEGREES)


class ConditionalMode(NamedTuple):
    """A conditional mode: w `[d]`, log marginal, tangent and root, and whether it is one."""

    w: Tensor
    height: float
    tangent: Tensor
    root: Tensor
    found: bool


def follow(score: Score, frame: Frame, axis: Tensor, *, scale: bool = True) -> Ridge | None:
    """Follow p along a direction from the centre of q's draws, to where its marginal is negligible.

    score: log p `[n]` and its gradient `[n, d]` at z `[n, d]`. axis: `[d]`, a unit vector in the
    frame; scale: see `Ridge`. Steps of one standard deviation, at most 16 either way, until the
    marginal is 14 nats below its highest node or no conditional mode is found. None where there is
    none to begin with. Costs 2 d + 6 gradients for each step of Newton's method at each node.

    >>> def score(z):
    ...     return -0.5 * z.square().sum(1), -z
    >>> frame = Frame(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    >>> ridge = follow(score, frame, frame.axes[0])
    >>> ridge.at.tolist()[:3], [round(h, 6) for h in ridge.heights.tolist()[:3]]
    ([0.0, 1.0, 2.0], [0.0, -0.5, -2.0])
    """
    return follow_all(score, frame, [axis], [scale])[0]


def follow_all(
    score: Score, frame: Frame, axes: Sequence[Tensor], scales: Sequence[bool]
) -> list[Ridge | None]:
    """Return what `follow` does for each of several directions, by calls that serve them all."""
    bases = [basis_of(axis) for axis in axes]
    begun = together(score, [mode_search(frame, b, torch.zeros_like(b[0])) for b in bases])
    found = [k for k, first in enumerate(begun) if first.found]
    ways = [(k, way) for k in found for way in (1.0, -1.0)]
    walked = together(score, [_walk(frame, bases[k], begun[k], way) for k, way in ways])
    walks = dict(zip(ways, walked, strict=True))
    ridges: list[Ridge | None] = [None] * len(begun)
    for k in found:
        nodes = _until_negligible(begun[k], walks[k, 1.0], walks[k, -1.0])
        ridges[k] = _ridge(frame, bases[k], nodes, scale=scales[k])
    return ridges


def _walk(
    frame: Frame, basis: Tensor, first: "ConditionalMode", way: float
) -> Search[list["ConditionalMode"]]:
    """Go one way from the first node: to where the marginal is negligible beside this way's."""
    nodes, node, top = [], first, first.height
    for _ in range(limits.MAX_PATH_NODES):
        ahead = torch.cat([node.w.new_ones(1), node.tangent])
        node = yield from mode_search(frame, basis, node.w + way * ahead)
        if not node.found:
            break
        nodes.append(node)
        top = max(top, node.height)
        if node.height < top - limits.PATH_DEPTH:
            break
    return nodes


def _until_negligible(
    first: "ConditionalMode", *walks: list["ConditionalMode"]
) -> list["ConditionalMode"]:
    """Return all nodes, without those beyond one that is negligible beside those before it."""
    nodes, top = [first], first.height
    for walk in walks:
        for node in walk:
            nodes.append(node)
            top = max(top, node.height)
            if node.height < top - limits.PATH_DEPTH:
                break
    return nodes


def _ridge(frame: Frame, basis: Tensor, nodes: list["ConditionalMode"], *, scale: bool) -> Ridge:
    at = torch.stack([n.w[0] for n in nodes])
    heights = torch.tensor([n.height for n in nodes], dtype=at.dtype)
    modes, tangents = (
        torch.stack(x) for x in zip(*((n.w[1:], n.tangent) for n in nodes), strict=True)
    )
    roots = torch.stack([n.root for n in nodes])
    return Ridge(frame, basis, at, modes, tangents, roots, heights - heights.max(), scale)


def basis_of(axis: Tensor) -> Tensor:
    """Return an orthogonal matrix `[d, d]` whose first column is the axis."""
    whole = torch.cat([axis[:, None], torch.eye(len(axis), dtype=axis.dtype)], 1)
    q = torch.linalg.qr(whole)[0][:, : len(axis)]
    signed: Tensor = q * torch.sign(q[:, 0] @ axis)
    return signed


def conditional_mode(
    score: Score,
    frame: Frame,
    basis: Tensor,
    w: Tensor,
    *,
    step: float = limits.HESSIAN_STEP,
    tolerance: float = limits.NODE_TOLERANCE,
) -> ConditionalMode:
    """Find the mode of all entries of w but the first, which stays, by damped Newton steps.

    score, frame: as for `follow`; the rest: as for `mode_search`.
    """
    return alone(score, mode_search(frame, basis, w, step=step, tolerance=tolerance))


def mode_search(
    frame: Frame,
    basis: Tensor,
    w: Tensor,
    *,
    step: float = limits.HESSIAN_STEP,
    tolerance: float = limits.NODE_TOLERANCE,
    known: tuple[Tensor, Tensor] | None = None,
) -> Search[ConditionalMode]:
    """Find the mode of all entries of w but the first, which stays, by damped Newton steps.

    basis: of `basis_of`; w: `[d]`, u in that basis. step: of
    differences of the gradient, in units of the frame. tolerance: twice the nats still
    to be gained. known: log p and its gradient in w at `stencil(w, step)`, where they are.
    The whole step, which most often is the best, is evaluated with all that the next one needs.
    """
    outwards = frame.factor @ basis

    def local(points: Tensor) -> Search[tuple[Tensor, Tensor]]:
        value, slope = yield frame.shift + points @ outwards.mT
        return value, slope @ outwards

    lengths = torch.tensor([1.0, 0.5, 0.25, 0.06, 0.01], dtype=w.dtype)
    for _ in range(limits.MAX_NODE_STEPS):
        values, slopes = (yield from local(stencil(w, step))) if known is None else known
        value, slope, curve = _curvature(values, slopes, step)
        size, vectors = torch.linalg.eigh(curve[1:, 1:])
        positive = size.abs().clamp_min(1e-6)
        push = vectors.mT @ slope[1:]
        left = float((push.square() / positive).sum())
        if left < tolerance or not math.isfinite(left):
            break
        tried = w.repeat(len(lengths), 1)
        tried[:, 1:] += lengths[:, None] * (vectors @ (push / positive))
        values, slopes = yield from local(torch.cat([tried, stencil(tried[0], step)]))
        heights = values[: len(lengths)].nan_to_num(-math.inf, -math.inf, -math.inf)
        best = int(heights.argmax())
        if not float(heights[best]) > float(value):
            break
        w = tried[best]
        known = (values[len(lengths) :], slopes[len(lengths) :]) if best == 0 else None
    found = bool((size > 0).all()) and left < 1.0 and bool(value.isfinite())
    tangent = -(vectors / positive) @ (vectors.mT @ curve[1:, 0])
    height = float(value - 0.5 * positive.log().sum())
    return ConditionalMode(w, height, tangent, vectors * positive.rsqrt(), found)


def stencil(w: Tensor, step: float) -> Tensor:
    """Return w and its neighbours a step away in each entry, both ways, `[1 + 2 d, d]`."""
    steps = step * torch.eye(len(w), dtype=w.dtype)
    return torch.cat([w[None], w + steps, w - steps])


def _curvature(values: Tensor, slopes: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p, its gradient and minus its Hessian, by differences of the gradient.

    values, slopes: at a `stencil`. All three are averages over a step either way in each entry but
    the first, so that a long step sees the width of a p with a kink.
    """
    d = slopes.shape[1]
    beside = 0.5 * (values[1 : 1 + d] + values[1 + d :])
    value = values[0] + (beside - values[0])[1:].sum()
    slope = 0.5 * (slopes[1 : 1 + d] + slopes[1 + d :]).diagonal()
    curve = (slopes[1 + d :] - slopes[1 : 1 + d]) / (2 * step)
    return value, slope, (0.5 * (curve + curve.mT)).nan_to_num(0.0, 0.0, 0.0)


class WiderDraws(NamedTuple):
    """Draws of the wide proposal `[m, d]`, with log p and log q there, `[m]` each, nats.

    here, there: the wide proposal's own log density at q's draws `[n]` and at its own `[m]`.
    """

    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    here: Tensor
    there: Tensor


def draw_wider(
    log_density: LogDensity,
    log_prob: LogDensity,
    draws: Tensor,
    *,
    number: int = 8000,
    ridges: Sequence[Ridge] = (),
    generator: torch.Generator | None = None,
) -> WiderDraws:
    """Draw from a t with the mean and covariance of q's draws, and from ridges.

    log_density, log_prob: log p (unnormalised) and log q, `[n, d]` to `[n]`. draws: `[n, d]` of q.
    number: draws of a proposal that is half a multivariate t with 5 degrees of freedom, wide in all
    directions at once, and half normal but for one coordinate each time, which is t: in many
    dimensions a single heavy tail is out of the reach of the first. Each ridge adds half as many as
    q has. All are pooled, and the wide proposal's density is that of the mixture.
    Errors: `ArgumentValueError` for no more draws than twice the dimensions.

    >>> z = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> log_q = lambda z: -0.5 * z.square().sum(-1) - 0.919
    >>> far = draw_wider(log_q, log_q, z, number=100, generator=torch.Generator().manual_seed(1))
    >>> far.draws.shape, bool(far.there.exp().min() < far.here.exp().min())
    (torch.Size([100, 1]), True)
    """
    count, dims = draws.shape
    require(count > 2 * dims, "draws", f"more than {2 * dims}", count)
    student = _Student(Frame.of_draws(draws))
    numbers = [number] + len(ridges) * [count // 2]
    proposals: list[_Student | Ridge] = [student, *ridges]
    far = torch.cat(
        [proposal.sample(n, generator) for proposal, n in zip(proposals, numbers, strict=True)]
    )
    logs = (torch.tensor(numbers, dtype=draws.dtype) / sum(numbers)).log()

    def density(z: Tensor) -> Tensor:
        parts = [proposal.log_prob(z) + log for proposal, log in zip(proposals, logs, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0)

    with torch.no_grad():
        return WiderDraws(far, log_density(far), log_prob(far), density(draws), density(far))


class _Student(NamedTuple):
    """A t in all directions at once, or in one coordinate at a time, half each."""

    frame: Frame

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw n points `[n, d]`."""
        factor, axes = self.frame.factor, self.frame.axes
        dims = len(factor)
        u = torch.randn(n, dims, generator=generator, dtype=factor.dtype)
        size = torch.randn(n, limits.WIDE_DEGREES, generator=generator, dtype=factor.dtype)
        stretch = (limits.WIDE_DEGREES / size.square().sum(1)).sqrt()
        which = torch.randint(dims, (n,), generator=generator)
        along = (u * axes[which]).sum(1)
        single = u + ((stretch - 1) * along)[:, None] * axes[which]
        u = torch.where(torch.arange(n)[:, None] % 2 == 0, stretch[:, None] * u, single)
        return self.frame.outwards(u)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density `[n]` at z `[n, d]`."""
        u, axes, degrees = self.frame.inwards(z), self.frame.axes, limits.WIDE_DEGREES
        dims = u.shape[1]
        all_at_once = student_t_log_prob(u.square().sum(1), dims, degrees)
        squares = (u @ axes.mT).square()
        gain = student_t_log_prob(squares, 1, degrees) + 0.5 * squares + HALF_LOG_2PI
        one_at_a_time = normal_log_prob(u)[:, None] + gain - math.log(dims)
        both = torch.logaddexp(all_at_once, one_at_a_time.logsumexp(1)) - math.log(2)
        return both - self.frame.log_det


def pooled(draws: Tensor, log_p: Tensor, log_q: Tensor, wide: WiderDraws) -> Pool:
    """Return all draws that have any weight, q's first, and their log weights p/(mixture of both).

    >>> z = torch.zeros(2, 1)
    >>> far = WiderDraws(z + 9, torch.full((2,), -math.inf), z[:, 0], z[:, 0], z[:, 0])
    >>> tuple(pooled(z, z[:, 0], z[:, 0], far))
    (tensor([[0.],
            [0.]]), tensor([0., 0.]))
    """
    logs = mixture_log_weights(log_p, log_q, wide)
    kept = torch.softmax(logs, 0) > 0
    return Pool(torch.cat([draws, wide.draws])[kept], logs[kept])


def unreached(log_p: Tensor, log_q: Tensor, wide: WiderDraws, *, times: float) -> float:
    """Return p's mass where p/q exceeds `times`, `P_p(p/q > times)`, from the pooled draws.

    log_p, log_q: `[n]` at q's own draws, log p without its constant. Under q that region has less
    than that mass divided by `times`.

    >>> z = torch.zeros(2)
    >>> round(unreached(z, z, WiderDraws(z[:, None], z, z - 9.0, z, z), times=100.0), 2)
    0.67
    """
    logs = mixture_log_weights(log_p, log_q, wide)
    constant = torch.logsumexp(logs, 0) - math.log(len(logs))
    ratio = torch.cat([log_p - log_q, wide.log_p - wide.log_q]) - constant
    return float(torch.softmax(logs, 0)[ratio > math.log(times)].sum())


def mixture_log_weights(log_p: Tensor, log_q: Tensor, wide: WiderDraws) -> Tensor:
    """Return log p/(mixture of q and the wide proposal) at q's draws and then at the others, nats.

    >>> z = torch.zeros(2)
    >>> mixture_log_weights(z + 1, z, WiderDraws(z[:, None], z + 1, z, z, z)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    n, m = len(log_p), len(wide.draws)
    both = (torch.cat([log_q, wide.log_q]), torch.cat([wide.here, wide.there]))
    shares = (math.log(n / (n + m)), math.log(m / (n + m)))
    mixed = torch.logaddexp(*(a + b for a, b in zip(both, shares, strict=True)))
    return torch.cat([log_p, wide.log_p]) - mixed
