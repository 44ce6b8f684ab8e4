"""What the moments of p are, seen from draws of q: two corrections that fail in different ways.

`by_weights` reweighs the draws by p/q. It is consistent for any function and knows its own error,
but only as far as the weights' tail lets it. `by_scores` compares the gradients of log p and log q:
to first order p is q tilted by a quadratic, and that tilt moves the draws by an affine map. It is
exact between Gaussians, however far apart, and its residual says how far from Gaussian the ratio
p/q is. Which to use: `diagnose` (beside this file), which uses both.

Neither sees mass of p where q has no draws; `probe` goes there to look.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Moved", "Shift", "by_scores", "by_weights", "shift_between", "tail_ratio"]


class Shift(NamedTuple):
    """How far p's moments lie from those of the draws, each `[m]`, for m functions of z.

    mean: (mean under p − mean of the draws) / sd of the draws. log_sd: log(sd under p / sd of the
    draws). mean_error, log_sd_error: their standard errors, the draws' own scatter included.
    """

    mean: Tensor
    mean_error: Tensor
    log_sd: Tensor
    log_sd_error: Tensor


class Moved(NamedTuple):
    """Draws `[n, d]` moved to where a quadratic tilt of q would put them, and what it misses.

    residual: root mean square, in the worst direction and whitened, of the score difference that
    is not linear in z: 0 when p/q is Gaussian. bounded: False when the tilt has no finite mass; the
    draws are then where they were.
    """

    draws: Tensor
    residual: float
    bounded: bool


def by_weights(values: Tensor, log_weights: Tensor, *, against: Tensor | None = None) -> Shift:
    """Return the shift of self-normalised importance sampling with its error (delta method).

    values: `[n, m]`, functions of the draws; log_weights: `[n]`, unnormalised, some above −inf.
    against: `[k, m]`, the draws from whose moments the shift is counted; by default values.
    Functions that do not vary have shift 0 ± 0. Reference: Owen (2013), "Monte Carlo theory,
    methods and examples", eq. 9.9.

    >>> z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> by_weights(z, z[:, 0] * 0).mean
    tensor([0.], dtype=torch.float64)
    """
    share = torch.softmax(log_weights, 0)[:, None]
    against = values if against is None else against
    standard = _standardised(values, against)
    mean = (share * standard).sum(0)
    about = standard - mean
    variance = (share * about**2).sum(0)
    mean_error = (share * about).square().sum(0).sqrt()
    tilt = about**2 / variance.clamp_min(1e-300) - 1.0
    spread_error = 0.5 * (share * tilt).square().sum(0).sqrt()
    flat = against.std(0) == 0
    log_sd = torch.where(flat, 0.0, 0.5 * variance.log())
    return Shift(mean, mean_error, log_sd, torch.where(flat, 0.0, spread_error))


def by_scores(draws: Tensor, difference: Tensor, shares: Tensor) -> Moved:
    """Move the draws by the quadratic tilt that best explains `∇log p − ∇log q` at them.

    draws, difference: `[n, d]`, n > 2 d; shares: `[n]`, weights of sum 1. With u the whitened draws
    (u = L⁻¹(z − mean), covariance LLᵀ) and g = Lᵀ difference, least squares g ≈ b + B u gives
    p ∝ q·exp(b·u + ½ uᵀBu), hence mean (I − B)⁻¹b and covariance (I − B)⁻¹ in units of u when q is
    Gaussian, and to first order when it is not; the map between is the optimal transport
    of one Gaussian to the other. The residual is the smaller of its means under q and, reweighed,
    under p: where p has no mass its slope does not matter.

    >>> z = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    >>> moved = by_scores(z, torch.full_like(z, 0.5) / z.var(), torch.full((101,), 1 / 101))
    >>> round(float(moved.draws.mean()), 6), moved.residual < 1e-9
    (0.5, True)
    """
    dims = draws.shape[1]
    centre = draws.mean(0)
    covariance = (draws - centre).mT @ (draws - centre) / (len(draws) - 1)
    scale = covariance.diagonal().sqrt()
    factor = scale[:, None] * torch.linalg.cholesky(_correlation(covariance, scale))
    white = torch.linalg.solve_triangular(factor, (draws - centre).mT, upper=False).mT
    push = difference @ factor
    shift = push.mean(0)
    linear = (push - shift).mT @ white / (len(draws) - 1)
    left = push - shift - white @ linear.mT
    both = (left.mT @ left / len(left), (shares[:, None] * left).mT @ left)
    residual = math.sqrt(min(float(torch.linalg.eigvalsh(each)[-1].clamp_min(0)) for each in both))
    identity = torch.eye(dims, dtype=draws.dtype)
    values, vectors = torch.linalg.eigh(identity - 0.5 * (linear + linear.mT))
    if float(values.min()) <= 0:
        return Moved(draws, residual, bounded=False)
    stretch = vectors @ torch.diag(values**-0.5) @ vectors.mT
    target = vectors @ ((vectors.mT @ shift) / values)
    return Moved(centre + (white @ stretch + target) @ factor.mT, residual, bounded=True)


def shift_between(values: Tensor, moved: Tensor) -> Shift:
    """Return the shift from values `[n, m]` to the same functions of moved draws, `[n, m]`.

    The errors are those of means and standard deviations of n independent draws.

    >>> z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> shift_between(z, 2 * z + 1).mean
    tensor([1.], dtype=torch.float64)
    """
    scale = values.std(0)
    flat = scale == 0
    safe = torch.where(flat, 1.0, scale)
    ratio = torch.where(flat, 1.0, moved.std(0) / safe)
    standard = _standardised(values, values)
    heavy = (standard**4).mean(0).sub(1.0).clamp_min(0.0).sqrt()
    root = math.sqrt(len(values))
    mean = torch.where(flat, 0.0, (moved.mean(0) - values.mean(0)) / safe)
    return Shift(mean, ratio / root, ratio.log(), torch.where(flat, 0.0, 0.5 * heavy / root))


def tail_ratio(values: Tensor, log_weights: Tensor, against: Tensor, *, share: float) -> Tensor:
    """Return how many times the mass p has in a tail of q, the worse of the two tails, `[m]`.

    values: `[k, m]`, functions of draws with log weights `[k]` towards p; against: `[n, m]`, the
    same of q's draws. A tail is beyond q's quantile of that share, at either end; 1 is what it
    should be, and below 1 p has less there than q.

    >>> z = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    >>> tail_ratio(z, z[:, 0] * 0, z, share=0.1)
    tensor([1.], dtype=torch.float64)
    """
    weight = torch.softmax(log_weights, 0)[:, None]
    ends = torch.quantile(against, torch.tensor([share, 1 - share], dtype=against.dtype), dim=0)
    low = (weight * (values < ends[0])).sum(0) / (against < ends[0]).double().mean(0)
    high = (weight * (values > ends[1])).sum(0) / (against > ends[1]).double().mean(0)
    both = torch.stack([low, high]).nan_to_num(1.0)
    worse: Tensor = both.gather(0, both.log().abs().argmax(0, keepdim=True))[0]
    return worse


def _standardised(values: Tensor, against: Tensor) -> Tensor:
    scale = against.std(0, correction=0)
    return (values - against.mean(0)) / torch.where(scale == 0, 1.0, scale)


def _correlation(covariance: Tensor, scale: Tensor) -> Tensor:
    found = covariance / (scale[:, None] * scale)
    return found + 1e-12 * torch.eye(len(scale), dtype=found.dtype)
