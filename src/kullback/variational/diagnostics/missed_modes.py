"""Looking for mass where q has no draws: the one thing that no weight and no score can show.

A q that sits on one of two peaks looks perfect from its own draws. `probe` starts far outside,
climbs log p, and weighs the peaks it ends on. Finding none proves nothing; finding one does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import log_mean_exp
from kullback.variational import limits
from kullback.variational.families.family import Frame, student_t_log_prob
from kullback.variational.optimise.stochastic import Adam
from kullback.variational.target.batches import LogDensity

__all__ = ["Probed", "probe"]


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found: the share of p's mass elsewhere, draws there `[n, d]`, how far, how sought.

    share: of all mass found, in [0, 1]; 0 when nothing was found. draws: of the
    heaviest peak `[k, d]` with their log weights `[k]`, None when there is none. distance: from
    the mean of q's draws to that peak, in their standard deviations (Mahalanobis).
    """

    share: float
    starts: int
    draws: Tensor | None = None
    log_weights: Tensor | None = None
    distance: float = 0.0


def probe(
    log_density: LogDensity,
    draws: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    starts: int = 32,
    generator: torch.Generator | None = None,
) -> Probed:
    """Climb log p from starts far outside the draws and weigh the peaks found there.

    log_density: `[n, d]` to `[n]`, differentiable. draws `[n, d]` from q, log_p, log_q `[n]`, in
    nats. Costs 120 gradients of `starts` points each. The mass of a peak comes from draws of a
    wide t around it, weighted; only those outside the body of q count. Approximate: peaks
    narrower than the steps, or hidden in many dimensions, are missed.
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
    body = math.sqrt(dims) + limits.OUTSIDE_SDS

    def whitened(u: Tensor) -> Tensor:
        return log_density(frame.outwards(u))

    noise = torch.randn(starts, dims, generator=generator, dtype=draws.dtype)
    scales = torch.tensor(limits.START_SCALES, dtype=draws.dtype).repeat(starts)[:starts]
    ends, heights = _climb(whitened, noise * scales[:, None])
    here = float(log_mean_exp(log_p - log_q)) - float(frame.log_det)
    found = Probed(0.0, starts)
    for end in _distinct(ends, heights, body):
        local, weights = _weighed(whitened, end, body, generator)
        share = float(torch.sigmoid(log_mean_exp(weights) - here))
        if share > found.share:
            there = frame.outwards(local)
            found = Probed(share, starts, there, weights, float(end.norm()))
    return found


def _climb(log_density: LogDensity, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Climb by Adam with a falling pace, each start on its own; where that ends, how high."""
    places, adam = starts, Adam()
    for step in range(limits.CLIMB_STEPS):
        leaf = places.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(-log_density(leaf).sum(), leaf)
        pace = limits.CLIMB_RATE * 0.5 * (1 + math.cos(math.pi * step / limits.CLIMB_STEPS))
        places = places + adam.step(slope.nan_to_num(0.0, 0.0, 0.0), pace)
    return places, log_density(places).detach()


def _distinct(ends: Tensor, heights: Tensor, body: float) -> list[Tensor]:
    """Return the highest few ends outside the body, no two within one sd of each other."""
    kept: list[Tensor] = []
    outside = (ends.norm(dim=1) > body) & heights.isfinite()
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
    body: float,
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
    covered = (local.norm(dim=1) <= body) | weights.isnan() | (not still)
    return local, torch.where(covered, -math.inf, weights)


def _width(log_density: LogDensity, peak: Tensor) -> tuple[Tensor, bool]:
    """Return the symmetric root of the inverse curvature, and whether this is a peak at all."""
    place = peak.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(log_density(place[None]).sum(), place)
    dims = len(peak)
    if dims > limits.MAX_CURVED_DIMENSIONS:
        return torch.eye(dims, dtype=peak.dtype), bool(slope.norm() < limits.MAX_PEAK_DISTANCE)
    curve = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        lambda u: log_density(u[None])[0], peak
    )
    values, vectors = torch.linalg.eigh(-curve.nan_to_num(0.0, 0.0, 0.0))
    if float(values.min()) <= 0:
        return vectors, False
    values = values.clamp(1e-4, 1e8)
    decrement = (vectors.mT @ slope).square() / values
    root = vectors @ torch.diag(values**-0.5) @ vectors.mT
    return root, bool(decrement.sum() < limits.MAX_PEAK_DISTANCE**2)
