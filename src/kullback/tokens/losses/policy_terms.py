"""A policy loss worked out: its value, terms and slopes, from checked arguments.

Which to use: `policy.policy_kl_loss`, or `compiled` in a graph; both call `policy_kl_of`.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import Estimator, choose_parts, coefficients

from .input_checks import refuse_infinite, report
from .native_policy import Swept, sweep
from .policy_kl import PolicyKL
from .sampled_tokens import (
    Drawn,
    Request,
    Sampled,
    at_prefixes,
    check,
    drawn_from,
    masked,
    slope_of,
)
from .sequence_sums import ratios_of_rows, row_scale

__all__ = ["attach", "detached", "exact_terms", "policy_kl_of"]


def policy_kl_of(
    sampled: Sampled,
    request: Request,
    estimator: Estimator,
    exact_kl: Tensor | None,
    log_limits: tuple[float, float] | None,
) -> tuple[PolicyKL, Tensor]:
    """Return what `policy_kl_loss` does, of checked arguments, and the slopes of the loss.

    log_limits: of the trust region, in logs.
    """
    biased = request.level == "sequence" and estimator == "k2"
    require(not biased, "estimator", "an unbiased one at level 'sequence'", "'k2'", "'k3'")
    found = None
    if exact_kl is None and estimator != "best":
        found = sweep(sampled, request, coefficients(estimator), log_limits=log_limits)
    if found is None:
        drawn = drawn_from(sampled, request)
        found = _in_sweeps(drawn, estimator, exact_kl, request.normalise, log_limits)
    kl = PolicyKL(
        loss=attach(found.value, sampled.current, found.slope),
        drawn=found.drawn,
        terms=found.terms,
        normalise=request.normalise,
        estimator=estimator if exact_kl is None else "exact",
        martingale=found.martingale,
        log_limits=log_limits,
    )
    swept_well = found.odd is not None and math.isfinite(found.value)  # then slopes are finite too
    if request.missing != "keep" and not swept_well:
        refuse_infinite(found.drawn, found.terms, found.slope, exact_kl=exact_kl, loss=kl.loss)
    if request.on_mismatch != "ignore" and found.odd is not False:
        report(kl.mismatch(), "log_current", request.on_mismatch)
    return kl, found.slope


class _Attached(torch.autograd.Function):
    """A scalar worth `value`, with its gradient, and `slope` as that of `log_current`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, log_current: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad, (grad.to(slope.dtype) * slope).to(ctx.dtype), None


# PyTorch asks for it at every call, and finding it out takes 10 µs
_Attached.forward.__signature__ = inspect.signature(_Attached.forward)  # type: ignore[attr-defined]


def attach(value: Tensor | float, log_current: Tensor, slope: Tensor) -> Tensor:
    """Return a scalar worth `value`, whose gradient with respect to `log_current` is `slope`.

    What `value` has of a graph is kept. Where `slope` is 0, log_current may hold anything.
    """
    value = slope.new_full((), value) if isinstance(value, float) else value
    found: Tensor = _Attached.apply(value, log_current, slope)  # type: ignore[no-untyped-call]
    return found


def _form(drawn: Drawn, estimator: Estimator) -> tuple[Tensor | float, ...]:
    """Return the estimator's coefficients: numbers, or `[batch, 1]`, each half's from the other."""
    if estimator != "best":
        return coefficients(estimator)
    rows = torch.stack([_sums(drawn, column) for column in range(3)])
    fewest = "at least 4 sequences for 'best'"
    require(rows.shape[-1] >= 4, "log_current", fewest, rows.shape[-1], "'k3'")
    halves = ratios_of_rows(rows).halves
    parts = choose_parts(halves, "best", weighted=False, ratio=False, cross_fit=True)
    form = rows.new_empty(rows.shape[-1], 1, 3)
    form[::2], form[1::2] = (part.form.coefficients for part in parts)
    return form.to(drawn.log_ratio.dtype).unbind(-1)


def _sums(drawn: Drawn, column: int) -> Tensor:
    return drawn.feature(column).double().sum(-1)


def _in_sweeps(
    drawn: Drawn,
    estimator: Estimator,
    exact_kl: Tensor | None,
    normalise: str,
    limits: tuple[float, float] | None,
) -> Swept:
    """Return what `native_policy.sweep` returns, by one PyTorch operation after the other."""
    mask, martingale, baseline = drawn.mask, None, None
    if exact_kl is None:
        terms = drawn.value_terms(_form(drawn, estimator))
    else:
        baseline = detached(exact_kl, drawn)
        terms, martingale = exact_terms(drawn, baseline)
    scale = row_scale(mask, drawn.log_ratio, normalise)
    value = (terms * scale).sum() if scale.dim() else terms.sum() * scale
    slope = _inside(slope_of(drawn, terms, baseline), drawn, limits)
    if drawn.level == "sequence":  # at level "token" a slope is the token's own: 0 where masked
        slope = masked(slope, mask)
    return Swept(drawn, terms, slope.mul_(scale), value, martingale)


def detached(exact_kl: Tensor, drawn: Drawn) -> Tensor:
    """Return exact KLs checked, without graph, in the dtype of the draws, 0 where masked."""
    check({"log_current": drawn.log_ratio, "exact_kl": exact_kl}, drawn.mask)
    return masked(exact_kl.detach().to(drawn.log_ratio.dtype), drawn.mask)


def exact_terms(drawn: Drawn, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted exact KLs, and k1's terms less them: a martingale, of mean zero."""
    terms = at_prefixes(drawn, exact)
    return terms, drawn.value_terms(coefficients("k1")) - terms


def _inside(slope: Tensor, drawn: Drawn, limits: tuple[float, float] | None) -> Tensor:
    if limits is None or drawn.log_step is None:
        return slope
    outside = (drawn.log_step < limits[0]) | (drawn.log_step > limits[1])
    return slope.masked_fill_(outside, 0.0)
