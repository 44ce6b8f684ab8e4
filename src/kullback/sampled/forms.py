"""Linear forms on the features of a draw: an estimator's coefficients, and the best λ.

Columns of the features: `log r`, `r − 1 − log r`, `½ log² r`, then the weight where draws are
weighted, then the user's own control variates; where draws are weighted all are times the weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .moments import Moments
from .terms import CONTROL, ESTIMATORS

__all__ = [
    "RATIO",
    "WEIGHT",
    "Form",
    "best_form",
    "control_columns",
    "control_form",
    "fixed_form",
    "influence",
    "level",
    "widened",
]

_FLAT = 1e-24  # a variance below this part of the squared mean is rounding
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
    flat = covariance[..., 1:, 1:].diagonal(dim1=-2, dim2=-1) <= _FLAT * moments.count * means**2
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
    seen = spread[0] > _FLAT * moments.count * moments.at(k1.coefficients) ** 2
    closer = (spread[1] < spread[0]) & seen & ~without_r
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
