"""Is the mass of effects infinite where their scale goes to 0? For effects of any law.

θᵢ = c + τ eᵢ, with e of any law (normal, t, Laplace, skewed) and a prior 1/τ: where the likelihood
is not 0 at θ = c, the mass at τ = 0 is infinite. A t's log density in θ far from c has no negative
curvature, however small τ is, and a Laplace's has a kink: neither has a mode whose width could be
followed. Here rays go into the collapse: with θ = c + m u, m the width at each τ,

    log p(c + m u, τ) + k log m    (k effects; m^k is the Jacobian)

is followed at fixed u as τ goes to 0, as the mean over u and −u. Where it stays level, or rises in
a straight line, on most of several lines with their own u and their own values of all other
coordinates, the mass is infinite as far as the rays go: whatever c, m and the k effects are. A
mistake in them hides an improper target; it does not make a proper one seem improper.

The slope of log p along log τ says where c is and what m is: of a unimodal law it is least at
θ = c, in every effect alone, and the likelihood of centred effects does not enter. Not found:
effects that are correlated given τ, and effects whose likelihood depends on τ.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.variational import limits

from .joint_searches import Score, Search, crossing, first_true

__all__ = ["collapsing_scale"]


def collapsing_scale(score: Score, draws: Tensor) -> Tensor | None:
    """Return a direction `[d]` in which effects collapse with infinite mass, or None.

    score: log p `[n]` and its gradient `[n, d]` at z `[n, d]`. draws: `[n, d]` of a q near p. Costs
    30 d gradients, and for each scale 15 to 80 calls of some 50 points.

    >>> from kullback.variational.target.batches import score_in_pieces
    >>> z = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> def effects(z, prior):  # three x, Laplace with scale exp(z[:, 0])
    ...     inner = -(z[:, 1:] * (-z[:, :1]).exp()).abs().sum(1) - 3 * z[:, 0]
    ...     return inner - 0.5 * (z[:, 1:] - 1).square().sum(1) + prior(z[:, 0])
    >>> def scored(prior):
    ...     return lambda z: score_in_pieces(lambda z: effects(z, prior), z, 4096)
    >>> collapsing_scale(scored(lambda v: 0 * v), z).sign().tolist()  # 1/τ
    [-1.0, 0.0, 0.0, 0.0]
    >>> collapsing_scale(scored(lambda v: v - torch.log1p((2 * v).exp())), z)  # half-Cauchy
    """
    if not bool(draws.isfinite().all()):
        return None
    centre = draws.mean(0)
    sd = draws.std(0).maximum(limits.MIN_RAY_SD * (1 + centre.abs()))
    scales = _scales(score, centre, sd)
    lines = draws[torch.linspace(0, len(draws) - 1, limits.RAY_LINES).long()]
    first = first_true(score, [scale.endless(lines, centre) for scale in scales])
    if first is None:
        return None
    found = torch.zeros_like(centre)
    found[scales[first].j] = scales[first].way * sd[scales[first].j]
    return found


def _scales(score: Score, centre: Tensor, sd: Tensor) -> list["_Scale"]:
    """Return coordinates that are the scale of others, those with most others first."""
    ways, reach = _turning(score, centre, sd)
    some = []
    for j in range(len(sd)):
        way = -1.0 if float(ways[j].sum()) <= 0 else 1.0
        turning = (ways[j] == way).nonzero().flatten()
        if len(turning):
            scale = _Scale(j, sd, reach[j], turning, way)
            some.append(scale.of_independent(score, centre))
    return sorted(some, key=lambda scale: -len(scale.effects))[: limits.MAX_SCALES]


def _turning(score: Score, centre: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Say how the slope along coordinate j turns as coordinate i moves, `[j, i]`, and where.

    It falls and then rises (−1: i shrinks as j falls), rises and then falls (1), or neither (0),
    between two places on either side, the farthest at which this is clear, in units of i.
    """
    d = len(sd)
    reach = limits.COLLAPSE_REACH * 0.5 ** torch.arange(limits.COLLAPSE_REACHES, dtype=sd.dtype)
    steps = reach[:, None, None] * torch.stack([torch.diag(sd), -torch.diag(sd)]).flatten(0, 1)
    slopes = [score(centre + part)[1] for part in steps]  # a reach at a time: `[2 d, d]`
    at = torch.stack(slopes).view(len(reach), 2, d, d)
    rises, noise = at[:-1] - at[1:], limits.COLLAPSE_NOISE * (at[:-1].abs() + at[1:].abs())
    way = torch.where(rises.abs() > noise, rises.sign(), 0.0)
    way = torch.where(way[:, 0] == way[:, 1], -way[:, 0], 0.0)  # [reaches, i, j]
    first = (way != 0).int().argmax(0)
    turns = way.gather(0, first[None])[0].mT.clone()
    turns.fill_diagonal_(0.0)
    return turns, reach[first].mT * sd


def _independent(some: Tensor, depends: Tensor) -> Tensor:
    """Return coordinates none of which depends on another, those on which fewest depend first."""
    degrees = depends.sum(1)
    chosen: list[int] = []
    for i in degrees.argsort(stable=True).tolist():
        if not bool(depends[i, chosen].any()):
            chosen.append(i)
    return some[sorted(chosen)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Coordinate j, the scale of the coordinates `effects` `[k]`: they shrink as it goes `way`.

    sd, reach: `[d]` of all coordinates; how far to look for the effects' centres.
    """

    j: int
    sd: Tensor
    reach: Tensor
    effects: Tensor
    way: float

    def of_independent(self, score: Score, centre: Tensor) -> "_Scale":
        """Return this scale of those of its effects that do not depend on each other."""
        far = torch.diag(self.reach)[self.effects]
        points = torch.cat([centre[None], centre + far, centre - far])
        mixed, noise = self.mixed(score(self.both_ways(points))[1])
        changed = ((mixed[1:] - mixed[0]).abs() > noise[1:] + noise[0])[:, self.effects]
        depends = changed.view(2, len(far), len(far)).any(0)
        return replace(self, effects=_independent(self.effects, depends | depends.mT))

    def both_ways(self, points: Tensor) -> Tensor:
        """Return points `[n, d]` moved both ways along the scale, `[2 n, d]`."""
        step = torch.zeros_like(self.sd)
        step[self.j] = limits.COLLAPSE_STEP * self.sd[self.j]
        return torch.cat([points + step, points - step])

    def mixed(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of log p's change over such a move, `[n, d]`, and its rounding."""
        ahead, behind = slopes.nan_to_num(0.0, 0.0, 0.0).chunk(2)
        return ahead - behind, limits.COLLAPSE_NOISE * (ahead.abs() + behind.abs())

    def at(self, lines: Tensor, effects: Tensor, scale: Tensor) -> Tensor:
        """Return the lines `[…, d]` with these effects `[…, k]` and this scale `[…]`."""
        z = (
            lines + torch.zeros_like(effects[..., :1]) + torch.zeros_like(scale[..., None])
        ).clone()
        z[..., self.effects], z[..., self.j] = effects, scale
        return z

    def meeting(
        self, lines: Tensor, scale: Tensor, middle: Tensor, reach: Tensor
    ) -> Search[Tensor]:
        """Bisect for the effects `[lines, k]` at which the slope along the scale turns: θ = c."""

        def asked(places: Tensor) -> Tensor:
            return self.both_ways(self.at(lines, places, scale).flatten(0, 1))

        def rise(places: Tensor, slopes: Tensor) -> Tensor:
            mixed, noise = (part[:, self.effects].view(places.shape) for part in self.mixed(slopes))
            lost = mixed.abs() <= limits.COLLAPSE_LOST * noise  # as where exp(θ) is 1e30: go back
            return torch.where(lost, (places - middle).sign(), mixed * -self.way)

        ends = middle - reach, middle + reach
        return (yield from crossing(asked, rise, ends, limits.COLLAPSE_CENTRE))

    def widths(self, lines: Tensor, centre: Tensor, u: Tensor, scale: Tensor) -> Search[Tensor]:
        """Bisect for log m `[lines, places]`, at which the slope is k/4 above that at c."""
        lines, centre, u = lines[:, None], centre[:, None], u[:, None]
        d, enough = lines.shape[-1], limits.COLLAPSE_EXCESS * len(self.effects)
        _, slopes = yield self.at(lines, centre, scale).reshape(-1, d)
        least = slopes[:, self.j].view(scale.shape)

        def asked(logs: Tensor) -> Tensor:
            return self.at(lines, centre + logs.exp()[..., None] * u, scale).reshape(-1, d)

        def rise(logs: Tensor, slopes: Tensor) -> Tensor:
            excess = (slopes[:, self.j].view(logs.shape) - least) * -self.way
            return (excess / enough).clamp_min(1e-300).log()  # nearly linear in log m

        low = torch.full_like(scale, limits.COLLAPSE_WIDTHS[0])
        ends = low, torch.full_like(scale, limits.COLLAPSE_WIDTHS[1])
        return (yield from crossing(asked, rise, ends, limits.COLLAPSE_WIDTH))

    def endless(self, lines: Tensor, centre: Tensor) -> Search[bool]:
        """Say whether p's mass in the collapse is infinite, on most lines."""
        k, sd = len(self.effects), self.sd[self.effects]
        begin = centre[self.j].expand(len(lines))
        reach = self.reach[self.effects].maximum(limits.COLLAPSE_NEAREST * sd)
        reach = reach.expand(len(lines), k)
        meeting = yield from self.meeting(
            lines, begin, centre[self.effects].expand_as(reach), reach
        )
        u = torch.randn(len(lines), k, generator=torch.Generator().manual_seed(0), dtype=sd.dtype)
        u = u / u.square().mean(1, keepdim=True).sqrt() * sd
        step = torch.arange(2.0, dtype=sd.dtype) * self.way * self.sd[self.j]
        near = yield from self.widths(lines, meeting, u, begin[:, None] + step)
        rate = ((near[:, 0] - near[:, 1]) / step[1].abs()).median()
        spacing = torch.finfo(sd.dtype).eps * (meeting.abs() / u.abs()).amax(1)
        deepest = (spacing.clamp_min(limits.COLLAPSE_LEAST) * limits.COLLAPSE_ROUNDING).log()
        depth = float((near[:, 0] - deepest).median())
        if not float(rate) > 0:
            return False
        last = begin + self.way * depth / rate
        length = max(depth / 2, limits.COLLAPSE_DEPTH)  # of the ray's last half, in nats of width
        half = last - self.way * length / rate
        heights, _ = yield torch.cat([self.at(lines, meeting, t) for t in (begin, half)])
        first, then = heights.chunk(2)
        fallen = (first - then - k * (depth - length)) < limits.COLLAPSE_FALL
        if int(fallen.sum()) <= limits.RAY_LINES // 2:
            return False
        shrunk = (near[:, :1] - depth + length).exp() * sd
        meeting = yield from self.meeting(lines, half, meeting, shrunk)
        for number in (2, limits.COLLAPSE_PLACES):  # at both ends most that are proper have fallen
            places = torch.linspace(0, 1, number, dtype=sd.dtype)
            scale = torch.lerp(half[:, None], last[:, None], places)
            logs = yield from self.widths(lines, meeting, u, scale)
            away = logs.exp()[..., None] * u[:, None]
            sides = torch.stack([meeting[:, None] + away, meeting[:, None] - away])
            heights, _ = yield self.at(lines[:, None], sides, scale).reshape(-1, lines.shape[1])
            heights = heights.view(sides.shape[:-1]).mean(0)  # the likelihood's slope cancels
            if not _level(places, heights + k * logs, logs):
                return False
        return True


def _level(places: Tensor, heights: Tensor, logs: Tensor) -> bool:
    """Say whether on most lines heights `[lines, places]` do not fall, and are straight."""
    fall = heights[:, 0] - heights[:, -1]
    line = torch.lerp(heights[:, :1], heights[:, -1:], places)
    straight = (heights - line).abs().amax(1) < limits.SCALE_FALL
    shrinks = logs[:, 0] - logs[:, -1] > limits.SCALE_CHANGE
    good = (fall < limits.SCALE_FALL) & straight & shrinks & (heights.abs() < math.inf).all(1)
    return int(good.sum()) > limits.RAY_LINES // 2
