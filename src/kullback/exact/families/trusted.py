"""The pairs of torch's own registry that are used as they stand: checked here against quadrature.

Which to use: `TRUSTED` through `closed_forms.kl`. "Infinite" pairs are those whose p always has
mass outside q's support.
"""

from typing import Any

import torch
import torch.distributions as families
from torch import Tensor

from .pair import Pair

__all__ = ["FINITE", "INFINITE", "TRUSTED"]

FINITE: dict[type, tuple[type, ...]] = {
    families.Bernoulli: (families.Poisson,),
    families.Beta: (
        families.ContinuousBernoulli,
        families.Exponential,
        families.Gamma,
        families.Normal,
        families.Uniform,
    ),
    families.ContinuousBernoulli: (
        families.ContinuousBernoulli,
        families.Exponential,
        families.Normal,
    ),
    families.Exponential: (families.Gamma, families.Gumbel, families.Normal),
    families.Gamma: (families.Exponential, families.Gumbel, families.Normal),
    families.Gumbel: (families.Gumbel, families.Normal),
    families.Laplace: (families.Normal,),
    families.Normal: (families.Gumbel, families.Laplace),
    families.Pareto: (families.Exponential, families.Gamma, families.Normal, families.Pareto),
    families.Uniform: (
        families.Beta,
        families.Exponential,
        families.Gamma,
        families.Gumbel,
        families.Normal,
        families.Uniform,
    ),
}

_UNIT = (families.Beta, families.ContinuousBernoulli)
_HALF_LINE = (families.Exponential, families.Gamma)
_BOUNDED = (families.Pareto, families.Uniform)
INFINITE: dict[type, tuple[type, ...]] = {
    families.Beta: (families.Pareto,),
    families.ContinuousBernoulli: (families.Pareto,),
    families.Exponential: (*_UNIT, *_BOUNDED),
    families.Gamma: (*_UNIT, *_BOUNDED),
    families.Pareto: (*_UNIT, families.Uniform),
    families.Gumbel: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Laplace: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Normal: (*_UNIT, *_HALF_LINE, *_BOUNDED),
    families.Poisson: (families.Bernoulli, families.Binomial),
}


def _torch_kl(p: Any, q: Any) -> Tensor:
    value: Tensor = families.kl_divergence(p, q)
    return value


def _infinite(p: Any, q: Any) -> Tensor:
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)  # type: ignore[no-untyped-call]
    return torch.full(shape, torch.inf, dtype=p.mean.dtype, device=p.mean.device)


TRUSTED: dict[tuple[type, type], Pair] = {
    **{(p, q): Pair(_torch_kl, "torch.distributions") for p in FINITE for q in FINITE[p]},
    **{
        (p, q): Pair(_infinite, "+inf: p has mass outside q's support")
        for p in INFINITE
        for q in INFINITE[p]
    },
}
