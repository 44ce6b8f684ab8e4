"""Looking for mass where q has no draws: the one thing that no weight and no score can show.

A q that sits on one of two peaks looks perfect from its own draws. `probe` starts far outside,
climbs log p, and weighs the peaks it ends on. Finding none proves nothing; finding one does.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import log_mean_exp
from kullback.variational import limits
from kullback.variational.families.family import Frame, student_t_log_prob
from kullback.variational.optimise.stochastic import Adam
from kullback.variational.target.batches import LogDensity, score_in_pieces

__all__ = ["Probed", "probe"]


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found: the share of p's mass elsewhere, draws there `[n, d]`, how far, how sought.

    share: of all mass found, in [0, 1]; 0 when nothing was found. draws: of the
    heaviest peak `[k, d]` with their log weights `[k]`, None when there is none. distance: from
    the mean of q's draws to that peak, in their standard deviations (Mahalanobis). starts: climbs.
    scanned, reach: points at which log p was looked at, and how far out the furthest are, in sd.
    """

    share: float
    starts: int
    draws: Tensor | None = None
    log_weights: Tensor | None = None
    distance: float = 0.0
    scanned: int = 0
    reach: float = 0.0

    @property
    def words(self) -> str:
        """How far was searched."""
        looked = f"{self.scanned:,} points to {self.reach:,.0f} sd from q's mean and "
        return f"searched for other peaks at {looked if self.scanned else ''}{self.starts} climbs"


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

    scanned: points out to 100 sd at which log p alone is evaluated; climbs also begin at those of
    the highest p in each of 16 shells.

    log_density: `[n, d]` to `[n]`, differentiable. draws `[n, d]` from q, log_p, log_q `[n]`, in
    nats. Costs 120 gradients of `starts` points each. The mass of a peak comes from draws of a
    wide t around it, weighted; only those outside the body of q count: beyond a radius that q's
    draws hardly reach, or towards the peak by more than they go in any one direction. A peak on
    which q has its share of draws is not elsewhere. Approximate: peaks narrower than the steps,
    or hidden in many dimensions, are missed.
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
    sets = [(noise * scales[:, None], generator)]
    reach = max(limits.START_SCALES) * math.sqrt(dims)
    if scanned:
        own = torch.Generator().manual_seed(0)
        sets.append((_scan(whitened, dims, scanned, own).to(draws), own))
        reach = limits.SCAN_REACH
    here = float(log_mean_exp(log_p - log_q)) - float(frame.log_det)
    counts = [len(first) for first, _ in sets]
    found = Probed(0.0, sum(counts), scanned=scanned, reach=reach)
    ends, heights = _climb(whitened, torch.cat([first for first, _ in sets]))
    parts = zip(torch.split(ends, counts), torch.split(heights, counts), sets, strict=True)
    for some, theirs, (_, source) in parts:
        for end in _distinct(some, theirs):
            local, weights = _weighed(whitened, end, source)
            share = float(torch.sigmoid(log_mean_exp(weights) - here))
            has = float(_outside(own_places, end).double().mean())
            if share > found.share and has < limits.OWN_SHARE * share:
                there = frame.outwards(local)
                found = replace(
                    found,
                    share=share,
                    draws=there,
                    log_weights=weights,
                    distance=float(end.norm()),
                )
    return found


def _scan(log_density: LogDensity, dims: int, number: int, generator: torch.Generator) -> Tensor:
    """Return the two highest points of every shell, of points of log-uniform radius."""
    way = torch.randn(number, dims, generator=generator, dtype=torch.float64)
    way = way / way.norm(dim=1, keepdim=True)
    low, high = math.log(limits.OUTSIDE_SDS), math.log(limits.SCAN_REACH)
    log_r = torch.linspace(low, high, number, dtype=torch.float64)
    points = way * log_r.exp()[:, None]
    with torch.no_grad():
        logs = log_density(points).nan_to_num(-math.inf, -math.inf, -math.inf)
    shells = torch.split(logs, -(-number // limits.SCANNED_SHELLS))
    starts = torch.tensor([0, *(len(shell) for shell in shells[:-1])]).cumsum(0)
    best = [
        k + shell.topk(min(2, len(shell))).indices for k, shell in zip(starts, shells, strict=True)
    ]
    kept: Tensor = points[torch.cat(best)]
    return kept


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
    """Climb by Adam with a falling pace, each start on its own; where that ends, how high.

    A climb that two looks in a row find near q's mean ends there.
    """
    ends, going, adam = starts.clone(), torch.arange(len(starts)), Adam()
    places, inside = starts, torch.zeros(len(starts), dtype=torch.bool)
    for step in range(limits.CLIMB_STEPS):
        leaf = places.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(-log_density(leaf).sum(), leaf)
        pace = limits.CLIMB_RATE * 0.5 * (1 + math.cos(math.pi * step / limits.CLIMB_STEPS))
        places = places + adam.step(slope.nan_to_num(0.0, 0.0, 0.0), pace)
        ends[going] = places
        if (step + 1) % limits.CLIMB_LOOK == 0:
            before, inside = inside, places.norm(dim=1) <= 1 + limits.OUTSIDE_SDS
            far = ~(before & inside)
            going, places, inside = going[far], places[far], inside[far]
            adam.keep(far)
            if len(going) == 0:
                break
    return ends, log_density(ends).detach()


def _distinct(ends: Tensor, heights: Tensor) -> list[Tensor]:
    """Return the highest few ends away from q's mean, no two within one sd of each other."""
    kept: list[Tensor] = []
    outside = (ends.norm(dim=1) > 1 + limits.OUTSIDE_SDS) & heights.isfinite()
    for place in heights[outside].argsort(descending=True).tolist():
        end = ends[outside][place]
        if len(kept) < limits.MAX_PEAKS and all(
            float((end - other).norm()) > limits.SAME_ENDS for other in kept
        ):
            kept.append(end)
    return kept


def _weighed(
    log_density: LogDensity,
    peak: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw from a t with 5 degrees of freedom shaped by the peak's curvature; log weights."""
    dims = len(peak)
    scale, still = _width(log_density, peak)
    noise = torch.randn(limits.PEAK_DRAWS, dims, generator=generator, dtype=peak.dtype)
    degrees = limits.WIDE_DEGREES
    size = torch.randn(limits.PEAK_DRAWS, degrees, generator=generator, dtype=peak.dtype)
    noise = noise * (degrees / size.square().sum(1)).sqrt()[:, None]
    local = peak + noise @ scale.mT
    log_det = torch.linalg.slogdet(scale)[1]
    log_t = student_t_log_prob(noise.square().sum(1), dims, degrees, log_det)
    weights = log_density(local).detach() - log_t
    covered = ~_outside(local, peak) | weights.isnan() | (not still)
    return local, torch.where(covered, -math.inf, weights)


def _width(log_density: LogDensity, peak: Tensor) -> tuple[Tensor, bool]:
    """Return the symmetric root of the inverse curvature, and whether this is a peak at all."""
    dims = len(peak)
    few = dims <= limits.MAX_CURVED_DIMENSIONS
    steps = limits.HESSIAN_STEP * torch.eye(dims, dtype=peak.dtype)[: dims if few else 0]
    slopes = score_in_pieces(
        log_density, torch.cat([peak[None], peak + steps, peak - steps]), limits.MAX_PIECE
    )
    slope = slopes[1][0]
    if not few:
        return torch.eye(dims, dtype=peak.dtype), bool(slope.norm() < limits.MAX_PEAK_DISTANCE)
    high, low = slopes[1][1:].chunk(2)
    curve = (high - low) / (2 * limits.HESSIAN_STEP)  # autograd's own fails where p underflows
    curve = 0.5 * (curve + curve.mT)
    values, vectors = torch.linalg.eigh(-curve.nan_to_num(0.0, 0.0, 0.0))
    if float(values.min()) <= 0:
        return vectors, False
    values = values.clamp(1e-4, 1e8)
    decrement = (vectors.mT @ slope).square() / values
    root = vectors @ torch.diag(values**-0.5) @ vectors.mT
    return root, bool(decrement.sum() < limits.MAX_PEAK_DISTANCE**2)
