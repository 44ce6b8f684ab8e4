"""Importance weights in logarithms: `log w = log p(x, z) − log q(z|x)`, z ~ q.

Which to use: `log_mean_exp` averages weights without overflow (the importance-weighted bound);
`effective_sample_size` says how many of the draws really count.

Reference: Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders", eq. 8;
Kong (1992) for the effective sample size.
"""

import math

import torch
from torch import Tensor

from kullback.core import require

__all__ = ["effective_sample_size", "log_mean_exp"]


def log_mean_exp(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return `log (1/K) Σ_k exp(log w_k)` over `dim`, in nats.

    log_weights: any shape with K ≥ 1 along `dim`; the result lacks `dim`.
    All −inf gives −inf, any +inf gives +inf, NaN stays NaN. As an estimate of `log E[w]` it is
    biased low (Jensen); as a value it is exact up to rounding.

    >>> log_mean_exp(torch.tensor([0.0, math.log(3.0)])).exp()
    tensor(2.)
    """
    draws = log_weights.shape[dim]
    require(draws >= 1, "log_weights", "at least one draw", draws)
    return torch.logsumexp(log_weights, dim) - math.log(draws)


def effective_sample_size(log_weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return Kong's effective sample size `(Σ w)² / Σ w²` over `dim`, between 1 and K.

    log_weights: unnormalised, any shape with K ≥ 1 along `dim`; the result lacks `dim`.
    All weights zero (−inf) gives NaN: no draw says anything.

    >>> effective_sample_size(torch.zeros(8))
    tensor(8.)
    >>> effective_sample_size(torch.tensor([0.0, -100.0]))
    tensor(1.)
    """
    return (2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim)).exp()
