"""Joint means and covariances of any number of features, that merge without loss.

`Moments.of(features)` looks at one piece of draws; `a + b` is the state of both pieces together
(Chan, Golub and LeVeque 1979), as if they had been one. Everything is kept about the
mean, in float64, so a billion draws lose no more digits than a thousand.

The table of log-ratio estimators: each is a per-draw term in `log r`, r = q(x)/p(x), x ~ p.

Every estimator is a linear form in three features of a draw, so that a mean, a variance and a
best coefficient all come from the joint moments of the same three numbers:

| name | term | coefficients on (log r, r - 1 - log r, ½ log² r) |
|---|---|---|
| k1 | −log r | (−1, 0, 0) |
| k2 | ½ log² r | (0, 0, 1) |
| k3 | r − 1 − log r | (0, 1, 0) |
| λ | −log r + λ (r − 1) | (λ − 1, λ, 0) |

The control variate `r − 1` is the sum of the first two. Which to use: `log_ratio_terms` for the
terms themselves, one a draw; `log_ratio` (beside this file) for their mean with its error.

Reference: MATH 5.1 to 5.5; Schulman (2020), "Approximating KL divergence".

Linear forms on the features of a draw: an estimator's coefficients, and the best λ.

Columns of the features: `log r`, `r − 1 − log r`, `½ log² r`, then the weight where draws are
weighted, then the user's own control variates; where draws are weighted all are times the weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import require
from kullback.exact import log_excess

from . import limits

__all__ = [
    "CONTROL",
    "ESTIMATORS",
    "RATIO",
    "WEIGHT",
    "Estimator",
    "Form",
    "Moments",
    "best_form",
    "coefficients",
    "control_columns",
    "control_form",
    "fixed_form",
    "influence",
    "level",
    "log_ratio_terms",
    "widened",
]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean `[*batch, F]` and central sums `Σ δ δᵀ` `[*batch, F, F]` of F features of draws.

    >>> piece = torch.arange(6.0, dtype=torch.float64).reshape(1, 6)
    >>> whole, parts = Moments.of(piece), Moments.of(piece[:, :2]) + Moments.of(piece[:, 2:])
    >>> whole.second.item(), parts.second.item()
    (17.5, 17.5)
    """

    count: int
    mean: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Take the moments of features `[*batch, F, draws]`, float64, in two passes over them."""
        return cls.using_up(features.clone())

    @classmethod
    def using_up(cls, features: Tensor) -> "Moments":
        """Do as `of` in the features' own memory: several times faster, and overwrites them."""
        mean = features.mean(-1) if features.shape[-1] else features.sum(-1)
        features.sub_(mean[..., None])
        return cls(features.shape[-1], mean, features @ features.mT)

    @classmethod
    def merged(cls, pieces: Sequence["Moments"]) -> "Moments":
        """Merge pieces: their sums, and what the distances between their means add to them."""
        pieces = [piece for piece in pieces if piece.count] or list(pieces[:1])
        means = torch.stack([piece.mean for piece in pieces])
        total = sum(piece.count for piece in pieces)
        count = torch.tensor([piece.count for piece in pieces]).to(means)
        count = count.reshape(-1, *[1] * (means.dim() - 1))
        mean = (count / max(total, 1) * means).sum(0)
        gap = means - mean
        between = (count * gap)[..., :, None] * gap[..., None, :]
        within = torch.stack([piece.second for piece in pieces])
        return cls(total, mean, (within + between).sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments.merged([self, other])

    def scaled(self, factor: Tensor) -> "Moments":
        """Return the moments of `factor · features`, factor `[*batch]`."""
        second = self.second * (factor**2)[..., None, None]
        return Moments(self.count, self.mean * factor[..., None], second)

    def at(self, form: Tensor) -> Tensor:
        """Return the mean `[*batch]` of the linear form `[*batch, F]`.

        A feature with coefficient 0 plays no part, even where it is infinite.
        """
        return torch.where(form == 0, 0.0, self.mean * form).sum(-1)

    def squares(self, form: Tensor) -> Tensor:
        """Return `Σ δ²` of the linear form, `[*batch]`; zeros as in `at`."""
        pair = form[..., :, None] * form[..., None, :]
        return torch.where(pair == 0, 0.0, self.second * pair).sum((-2, -1))


Estimator = str | float

ESTIMATORS: dict[str, tuple[float, float, float]] = {
    "k1": (-1.0, 0.0, 0.0),
    "k2": (0.0, 0.0, 1.0),
    "k3": (0.0, 1.0, 0.0),
}
CONTROL = (1.0, 1.0, 0.0)  # r − 1


def coefficients(estimator: Estimator) -> tuple[float, float, float]:
    """Return an estimator's coefficients on `(log r, r − 1 − log r, ½ log² r)`, r = q/p.

    Args:
        estimator: A name in the table `ESTIMATORS`, or a number λ for `−log r + λ (r − 1)`.

    Returns:
        Three numbers.

    Raises:
        ArgumentValueError: For a name outside the table, or a number that is not finite.

    Example:
        >>> coefficients("k3")
        (0.0, 1.0, 0.0)
        >>> coefficients(0.75)
        (-0.25, 0.75, 0.0)
    """
    if isinstance(estimator, str) and estimator in ESTIMATORS:
        return ESTIMATORS[estimator]
    real = isinstance(estimator, int | float) and not isinstance(estimator, bool)
    number = real and math.isfinite(float(estimator))
    expected = f"a number λ or one of {', '.join(ESTIMATORS)}"
    require(number, "estimator", expected, repr(estimator))
    return (float(estimator) - 1.0, float(estimator), 0.0)


def log_ratio_terms(log_p: Tensor, log_q: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """Return one term a draw, e.g. `r − 1 − log r` for k3, whose mean under p estimates KL(p‖q).

    Exact per draw up to rounding; k3 and k2 are never negative. Differentiable in both arguments;
    what the gradient of a mean of these terms is the gradient *of* differs from one estimator to
    the next (MATH 5.8).

    Args:
        log_p: Log densities of p at draws x ~ p, in nats.
        log_q: Log densities of q at the same draws; shapes broadcast.
        estimator: "k1", "k2", "k3" or a number λ (MATH 5.3).

    Returns:
        Terms of the shape that both broadcast to, in nats; +inf at a draw where q has no mass (log
        q = −inf).

    Raises:
        ArgumentValueError: For a name outside the table.

    Example:
        >>> log_p = torch.tensor([0.5, 0.5]).log()
        >>> log_ratio_terms(log_p, torch.tensor([0.25, 0.75]).log(), estimator="k3")
        tensor([0.1931, 0.0945])
    """
    log_r, features = log_q - log_p, []
    on_log_r, on_bregman, on_square = coefficients(estimator)
    if on_log_r:
        features.append(on_log_r * log_r)
    if on_bregman:
        features.append(on_bregman * log_excess(log_r))
    if on_square:
        features.append(on_square * 0.5 * log_r**2)
    return torch.stack(features).sum(0)


RATIO, WEIGHT = 1, 3  # the columns in which r stands, and the weight, where there is one


class Form(NamedTuple):
    """`terms = coefficients · features − offset`, with coefficients `[*batch, F]`."""

    coefficients: Tensor
    offset: Tensor


def widened(head: tuple[float, ...], like: Tensor) -> Tensor:
    """Return coefficients on the leading columns as `[*batch, F]`, zero on the others."""
    form = torch.zeros_like(like)
    form[..., : len(head)] = torch.tensor(head, dtype=like.dtype, device=like.device)
    return form


def level(moments: Moments, form: Form, *, ratio: bool) -> Tensor:
    """Return the estimate `[*batch]`: the form's mean, over the mean weight when a ratio."""
    mean = moments.at(form.coefficients)
    return (mean / moments.mean[..., WEIGHT] if ratio else mean) - form.offset


def influence(moments: Moments, form: Form, *, ratio: bool) -> Tensor:
    """Return the form `[*batch, F]` whose deviations are each draw's influence on the level.

    A mean's is the form itself; a ratio's is `(form − level · weight) / mean weight` (the delta
    method).
    """
    if not ratio:
        return form.coefficients
    shifted = form.coefficients.clone()
    shifted[..., WEIGHT] -= moments.at(form.coefficients) / moments.mean[..., WEIGHT]
    return shifted / moments.mean[..., WEIGHT, None]


def control_columns(features: int, *, weighted: bool, ratio: bool) -> list[int]:
    """Return the columns whose mean under p is known: r's, the weight's, the user's own."""
    own = list(range(WEIGHT + weighted, features))
    return [RATIO, WEIGHT, *own] if weighted and not ratio else [RATIO, *own]


def fixed_form(head: tuple[float, ...], like: Tensor, gap: Tensor) -> Form:
    """Return an estimator's form: its λ (r − 1) has the mean `λ gap`, which is taken off.

    gap: `[*batch]`, the known mean of r − 1, 0 for full supports.
    """
    return Form(widened(head, like), head[RATIO] * gap)


def control_form(column: int, like: Tensor, *, weighted: bool, gap: Tensor) -> Form:
    """Return the form of mean 0 under p: `r − 1 − gap`, the weight − 1, or the user's own."""
    zero = torch.zeros_like(like[..., 0])
    if column == RATIO:
        return Form(widened(CONTROL, like), zero + gap)
    known = 1.0 if weighted and column == WEIGHT else 0.0
    return Form(widened((0.0,) * column + (1.0,), like), zero + known)


def best_form(
    moments: Moments,
    *,
    weighted: bool,
    ratio: bool,
    dropped: Tensor | None = None,
    gap: Tensor | None = None,
) -> Form:
    """Return the form of least variance among k1 plus multiples of the controls (MATH 5.5).

    The multiples are `λ* = Cov(controls)⁻¹ Cov(controls, log r)` from these moments. Worked from
    k3 where that has the smaller variance, so that no digits are lost as q tends to p.
    dropped: `[*batch, controls]`, those that get 0, as does one that is constant; all of them do
    where the moments are not finite. gap: `[*batch]`, the known mean of r − 1, 0 if None.
    """
    like = moments.mean
    gap = torch.zeros_like(like[..., 0]) if gap is None else gap
    columns = control_columns(like.shape[-1], weighted=weighted, ratio=ratio)
    controls = [control_form(column, like, weighted=weighted, gap=gap) for column in columns]
    if dropped is None:
        dropped = torch.zeros(*like.shape[:-1], len(columns), dtype=torch.bool, device=like.device)
    start = _nearest(moments, dropped[..., 0], gap, ratio=ratio)
    forms = [start, *controls]
    stacked = torch.stack([influence(moments, f, ratio=ratio) for f in forms], -2)
    covariance = stacked @ moments.second @ stacked.mT
    means = torch.stack([moments.at(control.coefficients) for control in controls], -1)
    least = limits.MIN_RELATIVE_VARIANCE * moments.count
    flat = covariance[..., 1:, 1:].diagonal(dim1=-2, dim2=-1) <= least * means**2
    multiples = _regress(covariance[..., 1:, 1:], covariance[..., 1:, 0], flat | dropped)
    usable = multiples.isfinite().all(-1, keepdim=True)
    k1 = widened(ESTIMATORS["k1"], like)
    coefficients = torch.where(usable, start.coefficients, k1)
    offset = torch.where(usable[..., 0], start.offset, 0.0)
    multiples = torch.where(usable, multiples, 0.0)
    for control, multiple in zip(controls, multiples.unbind(-1), strict=True):
        coefficients = coefficients - multiple[..., None] * control.coefficients
        offset = offset - multiple * control.offset
    return Form(coefficients, offset)


def _nearest(moments: Moments, without_r: Tensor, gap: Tensor, *, ratio: bool) -> Form:
    k1, k3 = (fixed_form(ESTIMATORS[name], moments.mean, gap) for name in ("k1", "k3"))
    spread = [moments.squares(influence(moments, form, ratio=ratio)) for form in (k1, k3)]
    least = limits.MIN_RELATIVE_VARIANCE * moments.count
    varies = spread[0] > least * moments.at(k1.coefficients) ** 2
    closer = (spread[1] < spread[0]) & varies & ~without_r
    coefficients = torch.where(closer[..., None], k3.coefficients, k1.coefficients)
    return Form(coefficients, torch.where(closer, k3.offset, k1.offset))


def _regress(covariance: Tensor, target: Tensor, flat: Tensor) -> Tensor:
    """Solve for the multiples, each control on its own scale; a flat control gets none."""
    inverse = torch.where(flat, 0.0, covariance.diagonal(dim1=-2, dim2=-1).rsqrt())
    unit = covariance * inverse[..., :, None] * inverse[..., None, :]
    finite = unit.isfinite().all(-1).all(-1)[..., None, None]
    unit = torch.where(finite, unit, 0.0)
    solved = torch.linalg.pinv(unit, rtol=1e-12, hermitian=True) @ (target * inverse)[..., None]
    return torch.where(finite[..., 0], solved[..., 0] * inverse, torch.nan)
