"""How heavy is a tail? The Pareto shape k̂ of the largest importance weights.

`k̂ < 1/2`: the variance is finite. `1/2 ≤ k̂ < 0.7`: it is not, but smoothed weights still work.
`k̂ ≥ 1`: not even the mean exists. Which to use: `pareto_k` to judge weights, `pareto_smooth` to
replace the largest ones by what the fitted tail expects of them (smaller error, a little bias).

Reference: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling",
JMLR 25; Zhang and Stephens (2009) for the fit.

The draws at the ends: a bounded, mergeable memory of the tails, and what they tell.

Each end has a key; the draws with the largest keys are kept with all their features, up to
`limits.MAX_TAIL_DRAWS`. The largest of two pieces are among the largest of each, so pieces merge
without loss.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import require

from . import limits

__all__ = ["Tails", "fit_tail", "pareto_k", "pareto_smooth", "tail_length"]

_PRIOR_DRAWS, _PRIOR_K = 10, 0.5  # prior: ten tail values of k = 1/2


def tail_length(draws: int) -> int:
    """Return how many of the largest draws are the tail: a fifth, at most `3 √draws`.

    >>> tail_length(100), tail_length(10_000)
    (20, 300)
    """
    return min(draws // 5, int(3 * math.sqrt(draws)))


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
    if excess.numel() * points <= limits.MAX_NUMBERS_TOGETHER:
        shapes = torch.log1p(-slopes[..., None] * excess[..., None, :]).mean(-1)
    else:
        shapes = torch.stack([_shape(excess, slope) for slope in slopes.unbind(-1)], -1)
    likelihood = size * ((-slopes / shapes).log() - shapes - 1)
    slope = (torch.softmax(likelihood, -1) * slopes).sum(-1)
    shape = _shape(excess, slope)
    shrunk = (size * shape + _PRIOR_DRAWS * _PRIOR_K) / (size + _PRIOR_DRAWS)
    atom = largest <= 0
    return torch.where(atom, -math.inf, shrunk), torch.where(atom, 0.0, -shape / slope)


def pareto_k(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return the Pareto shape k̂ of the largest weights over `dim`: how heavy their tail is.

    A diagnostic, not an `Estimate`: its own standard error is about `(1 + k̂) / √(3 √K)`, and for
    weights that are all but equal a large k̂ is harmless (look at the effective sample size).
    Reference: Vehtari et al. (2024), section 3.

    Args:
        log_weights: Unnormalised log weights in nats, any shape with K ≥ 25 along `dim`.
        dim: The axis of the draws.

    Returns:
        The shape without `dim`, float64, a pure number. Equal weights have no tail: −inf. All
        weights zero, or NaN among them: NaN.

    Raises:
        ArgumentValueError: For fewer than 25 draws.

    Example:
        >>> draws = torch.arange(1, 4001, dtype=torch.float64) / 4001
        >>> round(pareto_k(-0.3 * draws.log()).item(), 2)
        0.28
    """
    return pareto_smooth(log_weights, dim=dim)[1]


def pareto_smooth(log_weights: Tensor, *, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Replace the largest weights by the quantiles of their fitted tail; return also its k̂.

    What is averaged with them has less variance and a small bias of unknown sign.
    Reference: Vehtari et al. (2024), algorithm 1.

    Args:
        log_weights: Unnormalised log weights in nats, any shape with K ≥ 25 along `dim`.
        dim: The axis of the draws.

    Returns:
        The smoothed log weights (same shape and order, float64, not normalised, none larger than
        the largest that came in) and k̂ (the shape without `dim`). Equal weights come back as they
        are; NaN weights give NaN. No gradient flows.

    Raises:
        ArgumentValueError: For fewer than 25 draws.

    Example:
        >>> smooth, k_hat = pareto_smooth(torch.arange(100.0))
        >>> bool((smooth <= 99.0).all()), bool(k_hat > 0.7)
        (True, True)
    """
    draws = log_weights.shape[dim]
    fewest = limits.MIN_DRAWS_FOR_TAIL
    require(draws >= fewest, "log_weights", f"at least {fewest} draws along dim", draws)
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


@dataclass(frozen=True, slots=True)
class Tails:
    """Keys and places `[*batch, ends, kept]` and features `[*batch, ends, F, kept]` at the ends.

    draws: how many were looked at; places number them, so that one kept at two ends counts once.
    """

    keys: Tensor
    places: Tensor
    rows: Tensor
    draws: int

    @classmethod
    def none(cls) -> "Tails":
        """Return the tails of no draws at all, what a sum starts from."""
        empty = torch.empty(0)
        return cls(empty, empty, empty, 0)

    @classmethod
    def of(cls, keys: Tensor, places: Tensor, features: Tensor, draws: int) -> "Tails":
        """Keep the extremes of features `[*batch, F, some]` by keys `[*batch, ends, some]`.

        places: `[some]`, where they stand among the `draws` of their piece.
        """
        rows = features[..., None, :, :].expand((*keys.shape[:-1], *features.shape[-2:]))
        return cls(keys, places.expand(keys.shape), rows, draws)._cut()

    @property
    def full(self) -> bool:
        """Whether something has to leave for every draw that enters."""
        return self.draws > 0 and self.keys.shape[-1] == limits.MAX_TAIL_DRAWS

    @property
    def least(self) -> list[float]:
        """The least key kept at each end, of tails without a batch."""
        least: list[float] = self.keys[:, -1].tolist()
        return least

    def __add__(self, other: "Tails") -> "Tails":
        if not (self.draws and other.draws):
            return other if other.draws else self
        return Tails(
            torch.cat([self.keys, other.keys], -1),
            torch.cat([self.places, other.places + self.draws], -1),
            torch.cat([self.rows, other.rows], -1),
            self.draws + other.draws,
        )._cut()

    def scaled(self, factor: Tensor) -> "Tails":
        """Return the tails of `factor · features`, factor `[*batch]`."""
        return replace(self, rows=self.rows * factor[..., None, None, None])

    def terms(self, form: Tensor) -> Tensor:
        """Return the kept values of a linear form `[*batch, F]`, each draw once, others NaN."""
        weights = form[..., None, :, None]
        terms = torch.where(weights == 0, 0.0, self.rows * weights).sum(-2).flatten(-2)
        places, order = self.places.flatten(-2).sort(-1)
        terms = terms.gather(-1, order)
        terms[..., 1:].masked_fill_(places[..., 1:] == places[..., :-1], math.nan)
        return terms

    def skewness(self, form: Tensor, mean: Tensor, squares: Tensor) -> Tensor:
        """Return the skewness of the mean of a form, `Σ δ³ / (Σ δ²)^{3/2}`, `[*batch]`.

        mean, squares: of the form over all draws. The sum runs over the draws kept, all of them
        up to 513 and 513 at each end of more, which leaves out at most (the deviation at the last
        draw kept) / √(Σ δ²), 0.02 in practice.
        """
        cubes = ((self.terms(form) - mean[..., None]) ** 3).nansum(-1)
        return torch.where(squares > 0, cubes / squares**1.5, 0.0)

    def shape(self, end: int, *, power: float = 1.0, log: bool = False) -> Tensor:
        """Return k̂ `[*batch]` at one end of exp(key), or of the key itself (`log`).

        Of that to a power, of a key where it is above 0; NaN below 25 draws.
        """
        size = min(tail_length(self.draws), limits.MAX_TAIL_DRAWS - 1)
        if size < limits.MIN_TAIL_LENGTH:
            nan = torch.nan
            return torch.full(self.keys.shape[:-2], nan, dtype=torch.float64).to(self.keys.device)
        top = self.keys[..., end, : size + 1].flip(-1)
        if log and power == 1:  # no cut at 0: with few above it the zeros would pass for a tail
            cutoff = torch.where(top[..., :1] > -math.inf, top[..., :1], 0.0)
            return fit_tail((top[..., 1:] - cutoff).clamp_min(0.0))[0]
        top = power * (top.clamp_min(0.0).log() if log else top)
        cutoff, above, largest = top[..., :1], top[..., 1:], top[..., -1:]
        excess = -torch.expm1(cutoff - above) * torch.exp(above - largest)
        level = (above == cutoff) | (largest == -math.inf)
        return fit_tail(torch.where(level, 0.0, excess))[0]

    def _cut(self) -> "Tails":
        keys, order = self.keys.topk(min(limits.MAX_TAIL_DRAWS, self.keys.shape[-1]), -1)
        rows = self.rows.gather(-1, order[..., None, :].expand((*self.rows.shape[:-1], -1)))
        return Tails(keys, self.places.gather(-1, order), rows, self.draws)
