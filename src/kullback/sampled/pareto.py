"""How heavy is a tail? The Pareto shape k̂ of the largest importance weights.

`k̂ < 1/2`: the variance is finite. `1/2 ≤ k̂ < 0.7`: it is not, but smoothed weights still work.
`k̂ ≥ 1`: not even the mean exists. Which to use: `pareto_k` to judge weights, `pareto_smooth` to
replace the largest ones by what the fitted tail expects of them (smaller error, a little bias).

Reference: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling",
JMLR 25; Zhang and Stephens (2009) for the fit.
"""

import math

import torch
from torch import Tensor

from kullback.core import require

__all__ = ["fit_tail", "pareto_k", "pareto_smooth", "tail_length"]

_FEWEST = 25  # a fifth of them is five, the shortest tail that is fitted
_PRIOR_DRAWS, _PRIOR_K = 10, 0.5  # the fit leans on k = 1/2 as if it had seen it ten times


def tail_length(draws: int) -> int:
    """Return how many of the largest draws are the tail: a fifth, at most `3 √draws`.

    >>> tail_length(100), tail_length(10_000)
    (20, 300)
    """
    return draws // 5 if draws <= 225 else int(3 * math.sqrt(draws))


def fit_tail(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a generalised Pareto distribution: return its shape k̂ and its scale σ, each `[*batch]`.

    excess: `[*batch, M]`, how far each of the M ≥ 5 tail values lies above the cutoff, ascending,
    ≥ 0. The shape is the empirical-Bayes estimate of Zhang and Stephens, shrunk towards 1/2. A
    tail that does not rise above its cutoff (an atom) has shape −inf and scale 0; NaN stays NaN.

    >>> grid = torch.arange(0.5, 500.0, dtype=torch.float64) / 500
    >>> shape, scale = fit_tail(2.0 * torch.expm1(-0.8 * torch.log1p(-grid)) / 0.8)
    >>> round(shape.item(), 2), round(scale.item(), 1)
    (0.79, 2.0)
    """
    size = excess.shape[-1]
    largest = excess[..., -1]
    quarter = excess[..., int(size / 4 + 0.5) - 1]
    quarter = torch.where(quarter > 0, quarter, excess.mean(-1))
    points = 30 + int(math.sqrt(size))
    grid = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device) - 0.5
    slopes = (1 - (points / grid).sqrt()) / (3 * quarter[..., None]) + 1 / largest[..., None]
    shapes = torch.stack([_shape(excess, slope) for slope in slopes.unbind(-1)], -1)
    likelihood = size * ((-slopes / shapes).log() - shapes - 1)
    slope = (torch.softmax(likelihood, -1) * slopes).sum(-1)
    shape = _shape(excess, slope)
    shrunk = (size * shape + _PRIOR_DRAWS * _PRIOR_K) / (size + _PRIOR_DRAWS)
    atom = largest <= 0
    return torch.where(atom, -math.inf, shrunk), torch.where(atom, 0.0, -shape / slope)


def pareto_k(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return the Pareto shape k̂ of the largest weights over `dim`: how heavy their tail is.

    log_weights: unnormalised, any shape with K ≥ 25 along `dim`; the result lacks `dim`, float64.
    A diagnostic, not an `Estimate`: its own standard error is about `(1 + k̂) / √(3 √K)`, and for
    weights that are all but equal a large k̂ is harmless (look at the effective sample size).
    Equal weights have no tail: −inf. All weights zero, or NaN among them: NaN.

    Errors: `ValueError` for fewer than 25 draws.
    Reference: Vehtari et al. (2024), section 3.

    >>> draws = torch.arange(1, 4001, dtype=torch.float64) / 4001
    >>> round(pareto_k(-0.3 * draws.log()).item(), 2)
    0.28
    """
    return pareto_smooth(log_weights, dim=dim)[1]


def pareto_smooth(log_weights: Tensor, *, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Replace the largest weights by the quantiles of their fitted tail; return also its k̂.

    log_weights: unnormalised, any shape with K ≥ 25 along `dim`. Returns the smoothed log weights
    (same shape and order, float64, not normalised, none larger than the largest that came in) and
    k̂ (lacks `dim`). What is averaged with them has less variance and a small bias of unknown sign.
    Equal weights come back as they are; NaN weights give NaN. No gradient flows.

    Errors: `ValueError` for fewer than 25 draws.
    Reference: Vehtari et al. (2024), algorithm 1.

    >>> smooth, k_hat = pareto_smooth(torch.arange(100.0))
    >>> bool((smooth <= 99.0).all()), bool(k_hat > 0.7)
    (True, True)
    """
    draws = log_weights.shape[dim]
    require(draws >= _FEWEST, "log_weights", f"at least {_FEWEST} draws along dim", draws)
    logs = log_weights.detach().double().movedim(dim, -1)
    top = logs.amax(-1, keepdim=True)
    ordered, places = logs.sort(dim=-1)
    size = tail_length(draws)
    tail = ordered[..., -size:]
    cutoff = (ordered[..., -size - 1, None] - top).exp()
    shape, scale = fit_tail((tail - top).exp() - cutoff)
    levels = (torch.arange(size, dtype=logs.dtype, device=logs.device) + 0.5) / size
    above = cutoff + _quantile(levels, shape[..., None], scale[..., None])
    tail = torch.where(scale[..., None] > 0, above.log().clamp_max(0.0) + top, tail)
    smooth = torch.cat([ordered[..., :-size], tail], -1)
    smooth = torch.empty_like(smooth).scatter_(-1, places, smooth)
    return torch.where(shape.isnan()[..., None], math.nan, smooth).movedim(-1, dim), shape


def _shape(excess: Tensor, slope: Tensor) -> Tensor:
    return torch.log1p(-slope[..., None] * excess).mean(-1)


def _quantile(levels: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    exponent = -torch.log1p(-levels)
    safe = torch.where(shape == 0, 1.0, shape)
    return scale * torch.where(shape == 0, exponent, torch.expm1(safe * exponent) / safe)
