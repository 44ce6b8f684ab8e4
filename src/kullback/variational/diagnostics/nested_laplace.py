"""Where a funnel leads: p followed along one coordinate, all others at their conditional mode.

In a hierarchical posterior a scale parameter decides how wide the others are. Where they are
narrow, neither q nor a wider law of the same shape has any draws: the volume falls as the power of
their number. So importance weights look good and miss that end. `follow` goes there by
optimisation: at steps along the coordinate it finds the conditional mode and curvature of all
others. Their Gaussians together are a proposal law, a `Ridge`, that has draws in both ends.

Which to use: `funnels` to find the coordinates, `follow` for one of them; `diagnose_beyond` does
both. Reference: Tierney and Kadane (1986), "Accurate approximations for posterior moments and
marginal densities"; Rue, Martino and Chopin (2009), "Approximate Bayesian inference for latent
Gaussian models by using integrated nested Laplace approximations".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.variational.limits import (
    DIFFERENCE,
    FALL,
    FUNNEL,
    FUNNELS,
    KERNEL,
    LEFT,
    LIGHTER,
    NEWTON,
    NODES,
)

__all__ = ["Ridge", "Standard", "follow", "funnels"]

Score = Callable[[Tensor], tuple[Tensor, Tensor]]


class Standard(NamedTuple):
    """Coordinates in which q's draws are standardised: z = centre + factor u."""

    centre: Tensor
    factor: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Standard":
        """Take mean and covariance of draws `[n, d]`."""
        dims = draws.shape[1]
        covariance = torch.cov(draws.mT).reshape(dims, dims)
        scale = covariance.diagonal().sqrt()
        ridge = 1e-12 * torch.eye(dims, dtype=draws.dtype)
        correlation = covariance / torch.outer(scale, scale)
        root = scale[:, None] * torch.linalg.cholesky(correlation + ridge)
        return cls(draws.mean(0), root)

    def inwards(self, z: Tensor) -> Tensor:
        """Return u of z, `[n, d]`."""
        solved: Tensor = torch.linalg.solve_triangular(
            self.factor, (z - self.centre).mT, upper=False
        ).mT
        return solved

    @property
    def axes(self) -> Tensor:
        """Unit vectors `[d, d]`: coordinate j of z, standardised, is axis j times u."""
        lengths: Tensor = self.factor.square().sum(1, keepdim=True).sqrt()
        return self.factor / lengths


def funnels(frame: Standard, draws: Tensor, score: Tensor) -> list[int]:
    """Return the coordinates on which the size of the other scores depends, the strongest first.

    draws, score: `[n, d]`, draws of q and the gradient of log p there. For a Gaussian p the squared
    length of the whitened score of the others does not depend on a coordinate; where that
    coordinate is their scale, its log falls or rises along it. Costs no evaluation of p.

    >>> z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> funnels(Standard.of(z), z, -z)
    []
    >>> funnels(Standard.of(z), z, torch.cat([-z[:, :1], -z[:, 1:] * z[:, :1].exp()], 1))
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
    order = found.nan_to_num(0.0).argsort(descending=True)[:FUNNELS].tolist()
    return [j for j in order if float(found[j]) > FUNNEL]


@dataclass(frozen=True, slots=True)
class Ridge:
    """A mixture of laws along a path: K nodes, in w = basisᵀ u, whose first entry is the path's.

    at: `[K]`, places on the path; modes, tangents: `[K, d − 1]`, the others' conditional mode and
    its derivative; roots: `[K, d − 1, d − 1]`, with covariance root rootᵀ; heights: `[K]`, log of
    the Laplace approximation to p's marginal, nats, up to a constant.
    """

    frame: Standard
    basis: Tensor
    at: Tensor
    modes: Tensor
    tangents: Tensor
    roots: Tensor
    heights: Tensor

    @property
    def endless(self) -> bool:
        """Whether the marginal decays by less than log t in the last half of a path: improper."""
        for way in (1.0, -1.0):
            far = self.heights[way * self.at >= NODES - 0.5]
            near = self.heights[(way * self.at - NODES / 2).abs() < 0.5]
            if len(far) and len(near) and float(far[0] - near[0]) > -math.log(2):
                return True
        return False

    @property
    def shares(self) -> Tensor:
        """Weights of the nodes `[K]`: half uniform, half by the square root of the marginal."""
        return 0.5 * torch.softmax(0.5 * self.heights, 0) + 0.5 / len(self.at)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points `[n, d]` of z."""
        dtype, others = self.at.dtype, self.modes.shape[1]
        k = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        step = KERNEL * torch.randn(n, generator=generator, dtype=dtype)
        noise = torch.randn(n, others, generator=generator, dtype=dtype)
        size = torch.randn(n, LIGHTER, generator=generator, dtype=dtype).square().sum(1)
        noise = noise * (LIGHTER / size).sqrt()[:, None]
        rest = self.modes[k] + self.tangents[k] * step[:, None]
        rest = rest + (self.roots[k] @ noise[:, :, None])[..., 0]
        w = torch.cat([(self.at[k] + step)[:, None], rest], 1)
        return self.frame.centre + w @ (self.frame.factor @ self.basis).mT

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density `[n]` at z `[n, d]`."""
        w = self.frame.inwards(z) @ self.basis
        parts = [self._node(k, w) for k in range(len(self.at))]
        scale = self.frame.factor.diagonal().log().sum()
        mixed: Tensor = torch.logsumexp(torch.stack(parts) + self.shares.log()[:, None], 0)
        return mixed - scale

    def _node(self, k: int, w: Tensor) -> Tensor:
        others, v = self.modes.shape[1], float(LIGHTER)
        step = w[:, 0] - self.at[k]
        along = -0.5 * (step / KERNEL).square()
        along = along - math.log(KERNEL) - 0.5 * math.log(2 * math.pi)
        rest = w[:, 1:] - self.modes[k] - step[:, None] * self.tangents[k]
        white = torch.linalg.solve(self.roots[k], rest.mT)
        constant = math.lgamma((v + others) / 2) - math.lgamma(v / 2)
        constant -= 0.5 * others * math.log(v * math.pi)
        size = torch.linalg.slogdet(self.roots[k])[1]
        tail = 0.5 * (v + others) * torch.log1p(white.square().sum(0) / v)
        found: Tensor = along + constant - tail - size
        return found


class _Node(NamedTuple):
    """A conditional mode: w `[d]`, log marginal, tangent and root, and whether it is one."""

    w: Tensor
    height: float
    tangent: Tensor
    root: Tensor
    found: bool


def follow(score: Score, frame: Standard, axis: Tensor) -> Ridge | None:
    """Follow p along a direction from the centre of q's draws, to where its marginal is negligible.

    score: log p `[n]` and its gradient `[n, d]` at z `[n, d]`. axis: `[d]`, a unit vector in the
    frame. Steps of one standard deviation, at most 16 either way, until the marginal is 14 nats
    below its highest node or no conditional mode is found. None where there is none to begin with.
    Costs 2 d + 1 gradients for each step of Newton's method at each node.

    >>> def score(z):
    ...     return -0.5 * z.square().sum(1), -z
    >>> frame = Standard(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    >>> ridge = follow(score, frame, frame.axes[0])
    >>> ridge.at.tolist()[:3], [round(h, 6) for h in ridge.heights.tolist()[:3]]
    ([0.0, 1.0, 2.0], [0.0, -0.5, -2.0])
    """
    basis = _basis(axis)
    begin = torch.zeros_like(axis)
    first = _node(score, frame, basis, begin)
    if not first.found:
        return None
    nodes, top = [first], first.height
    for way in (1.0, -1.0):
        node = first
        for _ in range(NODES):
            ahead = torch.cat([torch.ones(1, dtype=axis.dtype), node.tangent])
            node = _node(score, frame, basis, node.w + way * ahead)
            if not node.found:
                break
            nodes.append(node)
            top = max(top, node.height)
            if node.height < top - FALL:
                break
    at = torch.stack([n.w[0] for n in nodes])
    heights = torch.tensor([n.height for n in nodes], dtype=axis.dtype)
    modes, tangents = (
        torch.stack(x) for x in zip(*((n.w[1:], n.tangent) for n in nodes), strict=True)
    )
    roots = torch.stack([n.root for n in nodes])
    return Ridge(frame, basis, at, modes, tangents, roots, heights - heights.max())


def _basis(axis: Tensor) -> Tensor:
    """Return an orthogonal matrix `[d, d]` whose first column is the axis."""
    whole = torch.cat([axis[:, None], torch.eye(len(axis), dtype=axis.dtype)], 1)
    q = torch.linalg.qr(whole)[0][:, : len(axis)]
    signed: Tensor = q * torch.sign(q[:, 0] @ axis)
    return signed


def _node(score: Score, frame: Standard, basis: Tensor, w: Tensor) -> _Node:
    """Find the mode of all entries of w but the first, which stays, by damped Newton steps."""
    outwards = frame.factor @ basis

    def local(points: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = score(frame.centre + points @ outwards.mT)
        return value, slope @ outwards

    lengths = torch.tensor([1.0, 0.5, 0.25, 0.06, 0.01], dtype=w.dtype)
    for _ in range(NEWTON):
        value, slope, curve = _curvature(local, w)
        size, vectors = torch.linalg.eigh(curve[1:, 1:])
        positive = size.abs().clamp_min(1e-6)
        push = vectors.mT @ slope[1:]
        left = float((push.square() / positive).sum())
        if left < LEFT or not math.isfinite(left):
            break
        tried = w.repeat(len(lengths), 1)
        tried[:, 1:] += lengths[:, None] * (vectors @ (push / positive))
        values = local(tried)[0].nan_to_num(-math.inf, -math.inf, -math.inf)
        if not float(values.max()) > float(value):
            break
        w = tried[int(values.argmax())]
    found = bool(size[0] > 0) and left < 1.0 and bool(value.isfinite())
    tangent = -(vectors / positive) @ (vectors.mT @ curve[1:, 0])
    height = float(value - 0.5 * positive.log().sum())
    return _Node(w, height, tangent, vectors * positive.rsqrt(), found)


def _curvature(local: Score, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p, its gradient and minus its Hessian at w, by differences of the gradient."""
    steps = DIFFERENCE * torch.eye(len(w), dtype=w.dtype)
    values, slopes = local(torch.cat([w[None], w + steps, w - steps]))
    d = len(w)
    curve = (slopes[1 + d :] - slopes[1 : 1 + d]) / (2 * DIFFERENCE)
    return values[0], slopes[0], (0.5 * (curve + curve.mT)).nan_to_num(0.0, 0.0, 0.0)
