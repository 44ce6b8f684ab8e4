"""Importance weights in logarithms: `log w = log p(x, z) − log q(z|x)`, z ~ q.

Which to use: `log_evidence` estimates `log E[w]` (the evidence log p(x)) from one set of draws,
with its error; `importance_bound` is the importance-weighted bound from many sets, or with
`jackknife=True` the evidence with most of the bound's gap taken out; `log_mean_exp` and
`effective_sample_size` are the bare numbers, differentiable, for use inside an objective. Whether
weights can be trusted at all is `pareto_k`'s question (beside this file).

Reference: Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders", eq. 8;
Nowozin (2018), "Debiasing evidence approximations" for the jackknife; Kong (1992) for the
effective sample size.

Weights whose expectation is known (both densities normalised, `E[w] = 1`) can be tested: pass
`normalised=True`, or call `weight_identity`. Where a constant is missing nothing can be: the
effective sample size of weights that are all 0.9 is as high as of weights that are all 1.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from kullback.core import Estimate, require, require_type

from . import error_bars, limits
from .identity import half_ulps, weight_identity
from .tails import pareto_k

__all__ = ["effective_sample_size", "importance_bound", "log_evidence", "log_mean_exp"]

_UNKNOWN = "normalised=False where a constant is missing, as in p(x, z)/q(z|x)"


def log_mean_exp(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return `log (1/K) Σ_k exp(log w_k)` over `dim`, in nats.

    As an estimate of `log E[w]` it is biased low (Jensen); as a value it is exact up to rounding.

    Args:
        log_weights: Log weights in nats, any shape with K ≥ 1 along `dim`.
        dim: The axis of the draws.

    Returns:
        The shape without `dim`, in nats, differentiable. All −inf gives −inf, any +inf gives +inf,
        NaN stays NaN.

    Raises:
        ArgumentValueError: For no draws.

    Example:
        >>> log_mean_exp(torch.tensor([0.0, math.log(3.0)])).exp()
        tensor(2.)
    """
    draws = log_weights.shape[dim]
    require(draws >= 1, "log_weights", "at least one draw", draws)
    return torch.logsumexp(log_weights, dim) - math.log(draws)


def effective_sample_size(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return Kong's effective sample size `(Σ w)² / Σ w²` over `dim`, between 1 and K.

    It measures how unequal weights are, not whether they are right: `weight_identity` tests their
    mean.

    Args:
        log_weights: Unnormalised log weights in nats, any shape with K ≥ 1 along `dim`.
        dim: The axis of the draws.

    Returns:
        The shape without `dim`, a number of draws; NaN where all weights are zero (−inf).

    Example:
        >>> effective_sample_size(torch.zeros(8))
        tensor(8.)
        >>> effective_sample_size(torch.tensor([0.0, -100.0]))
        tensor(1.)
    """
    return (2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim)).exp()


def log_evidence(log_weights: Tensor, *, normalised: bool = False) -> Estimate:
    """Estimate `log E[w]` by `log (1/n) Σ w`, with the error bar `sd(w) / (√n · mean w)`.

    Biased low by about half the squared error (Jensen); the error is the delta method's.
    Reference: Burda et al. (2016), eq. 8.

    Args:
        log_weights: `[*batch, draws]`, draws ≥ 2, in nats.
        normalised: Assert that `E[w] = 1`, so that the evidence is 0: the draws are tested for it.

    Returns:
        An `Estimate` of `[*batch]`, in nats. `k_hat` is that of the weights; `warnings` say when
        tail or bias make the error bar doubtful, and there is no error bar where the tail is so
        heavy that no mean can be inferred. All weights zero gives −inf ± inf; NaN stays NaN. No
        gradient flows (use `log_mean_exp`).

    Raises:
        ArgumentTypeError: For anything but a tensor.
        ArgumentValueError: For fewer than 2 draws, or an asserted mean that the draws refute.

    Example:
        >>> z = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> print(log_evidence(0.3 * z - 0.045))
        0.012 ± 0.010 nats, biased low
    """
    logs = _checked(log_weights, "[*batch, draws]", 1)
    require(logs.shape[-1] >= 2, "log_weights", "at least 2 draws", logs.shape[-1])
    if normalised:
        weight_identity(log_weights).require("log_weights", _UNKNOWN)
    value = log_mean_exp(logs)
    relative = (logs - value[..., None]).exp() - 1.0
    size = value.abs().clamp_min(1.0)
    error = error_bars.standard_error(relative, size)
    words = "biased low by about {:.1f} standard errors (half the squared error bar): draw more"
    more = [error_bars.about_bias(0.5 * error**2, error, words)]
    why = "the log of a mean (Jensen): low by about half the squared error"
    rounding = half_ulps(log_weights).amax(-1)
    return error_bars.estimate_of(
        relative, value, "low", why, size=size, more=more, rounding=rounding
    )


def importance_bound(
    log_weights: Tensor, *, jackknife: bool = False, normalised: bool = False
) -> Estimate:
    """Estimate the bound `L_K = E[log (1/K) Σ_k w_k] ≤ log E[w]`, or its jackknifed correction.

    As a bound it is unbiased, and low as an estimate of `log E[w]`, by Var(w) / (2K E[w]²) to first
    order. With `jackknife=True` a repeat's value is `K L_K − (K−1) mean_k L_{K−1}^{(−k)}` instead:
    the first order is gone, what is left is of order 1/K² and of either sign, and the number is no
    bound any more; `warnings` say when the drift from K/2 to K draws shows that more than the error
    bar is left, or when k̂ of the weights shows that the expansion does not hold.
    Reference: Burda et al. (2016), eq. 8; Nowozin (2018), section 4.

    Args:
        log_weights: `[*batch, draws, K]`, in nats: K weights for each of `draws` ≥ 2 independent
            repeats or data points, over which the bound is averaged.
        jackknife: Remove the bias of first order; needs K ≥ 2.
        normalised: Assert that `E[w] = 1` (both densities normalised): the draws are tested for it.

    Returns:
        An `Estimate` of `[*batch]`, in nats. All weights of a repeat zero gives −inf; NaN stays
        NaN. No gradient flows.

    Raises:
        ArgumentTypeError: For anything but a tensor.
        ArgumentValueError: For fewer than 2 repeats, K < 2 with the jackknife, or an asserted mean
            that the draws refute.

    Example:
        >>> z = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
        >>> print(importance_bound(z - 0.5))
        -0.076 ± 0.018 nats, biased low
        >>> print(importance_bound(z - 0.5, jackknife=True).brief)
        -0.003 ± 0.020 nats, bias unknown
    """
    logs = _checked(log_weights, "[*batch, draws, K]", 2)
    repeats, size = logs.shape[-2:]
    require(repeats >= 2, "log_weights", "at least 2 repeats on the axis before the last", repeats)
    fewest = 2 if jackknife else 1
    require(size >= fewest, "log_weights", f"K ≥ {fewest} weights on the last axis", size)
    if normalised:
        weight_identity(log_weights.flatten(-2)).require("log_weights", _UNKNOWN)
    terms = _jackknifed(logs) if jackknife else log_mean_exp(logs)
    value = terms.mean(-1)
    centred = terms - value[..., None]
    rounding = half_ulps(log_weights).amax((-2, -1))
    if not jackknife:
        why = "a lower bound on log E[w] (Jensen)"
        return error_bars.estimate_of(centred, value, "low", why, rounding=rounding)
    rounding = (2 * size - 1) * rounding  # K L_K − (K − 1) L_{K−1}, each off by as much
    doubts = [_bias_left(logs, terms, error_bars.standard_error(centred, value))]
    why = "the jackknife leaves a bias of order 1/K²"
    k_hat = pareto_k(logs).mean(-1) if size >= limits.MIN_DRAWS_FOR_TAIL else None
    if k_hat is not None:
        words = "heavy-tailed weights (mean Pareto k-hat {:.2f}, above 0.5): the jackknife fails"
        doubts.append(error_bars.Doubt(k_hat, k_hat > limits.FINITE_VARIANCE_PARETO_K, words))
    found = error_bars.estimate_of(centred, value, "unknown", why, more=doubts, rounding=rounding)
    if k_hat is None:
        return found
    return replace(found, k_hat=k_hat if k_hat.ndim else float(k_hat))


def _bias_left(logs: Tensor, terms: Tensor, error: Tensor) -> error_bars.Doubt:
    """Doubt the jackknife by how far it drifts from K/2 to K weights, and by that drift's error."""
    size = logs.shape[-1]
    if size < 4:
        words = "only {:.0f} weights a repeat: too few to judge what bias the jackknife leaves"
        few = torch.full_like(error, size)
        return error_bars.Doubt(few, few < 4, words)
    halves = [_jackknifed(part) for part in logs.tensor_split(2, -1)]
    left = (0.5 * (halves[0] + halves[1]) - terms) / 2  # of order 1/K² to 1/K: drifts by 3 to 1
    bias = left.mean(-1)
    own = error_bars.standard_error(left - bias[..., None], terms.mean(-1))
    words = "the drift from K/2 to K weights tells of up to {:.1f} standard errors of bias"
    return error_bars.about_bias(bias.abs() + own, error, words)


def _checked(log_weights: Tensor, shape: str, axes: int) -> Tensor:
    require_type(log_weights, Tensor, "log_weights", f"pass a torch tensor {shape}")
    fits = log_weights.dim() >= axes and log_weights.is_floating_point()
    require(fits, "log_weights", f"floating-point {shape}", list(log_weights.shape))
    return log_weights.detach().double()


def _jackknifed(logs: Tensor) -> Tensor:
    size = logs.shape[-1]
    if size == 1:
        return logs[..., 0]
    before = logs.logcumsumexp(-1)
    after = logs.flip(-1).logcumsumexp(-1).flip(-1)
    edge = torch.full_like(logs[..., :1], -math.inf)
    others = torch.logaddexp(
        torch.cat([edge, before[..., :-1]], -1), torch.cat([after[..., 1:], edge], -1)
    )
    without = (others - math.log(size - 1)).mean(-1)
    whole = before[..., -1] - math.log(size)
    return torch.where(whole == -math.inf, whole, whole + (size - 1) * (whole - without))
