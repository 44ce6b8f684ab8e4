"""Losses of a fit: an objective, a gradient estimator, a target and a family put together.

Which to use: `loss_of`, which returns a function of the family and its noise. The formulas live in
`objectives`, as functions of log-weights; here they meet the draws.
"""

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

from torch import Tensor

from kullback.core import require
from kullback.variational.families import Draws, Family
from kullback.variational.objectives import doubly_reparameterised, iwae, renyi, score_function
from kullback.variational.target.density import Target

__all__ = ["Gradient", "Loss", "Objective", "loss_of"]

Objective = Literal["elbo", "iwae", "renyi"]
Gradient = Literal["reparameterised", "stl", "dreg", "score"]


class Loss(Protocol):
    """A function of the family and its noise `[n, noise_dim]`: a scalar to minimise, in nats."""

    def __call__(self, family: Family, noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the loss, for all data or for the rows of a mini-batch."""
        ...


LogDensity = Callable[[Tensor, Tensor | None], Tensor]


def loss_of(
    target: Target,
    *,
    objective: Objective = "elbo",
    gradient: Gradient = "reparameterised",
    group: int = 8,
    alpha: float = 0.5,
    log_density: LogDensity | None = None,
) -> Loss:
    """Return the loss, minus the objective's estimate, as a function of the family and its noise.

    objective: "elbo"; "iwae" and "renyi" (with its `alpha`), averaged over groups of `group` draws.
    gradient: "reparameterised" (with the closed-form entropy where there is one); "stl", sticking
    the landing: the path derivative alone, whose variance vanishes as q tends to the posterior, for
    the ELBO; "dreg", its counterpart for "iwae"; "score", for the ELBO of what cannot be
    reparameterised. log_density: what stands in for the target's own (a control variate).
    Errors: `ArgumentValueError` for an unknown name or a pair that does not belong together.
    Reference: Roeder, Wu and Duvenaud (2017), "Sticking the landing"; Tucker et al. (2019).
    """
    known = objective in get_args(Objective)
    require(known, "objective", "elbo, iwae or renyi", repr(objective))
    known = gradient in get_args(Gradient)
    require(known, "gradient", "reparameterised, stl, dreg or score", repr(gradient))
    partner = {"stl": "elbo", "dreg": "iwae", "score": "elbo"}.get(gradient, objective)
    require(partner == objective, "gradient", f"one for {objective}", gradient, "reparameterised")
    require(group >= 1, "group", "at least 1 draw", group)
    require(math.isfinite(alpha), "alpha", "a finite number", alpha)
    log_p = target.log_density if log_density is None else log_density
    if objective == "elbo":
        losses = {"reparameterised": _plain, "stl": _stl, "score": _score}
        return lambda family, noise, rows=None: losses[gradient](family, noise, log_p, rows)
    power = 0.0 if objective == "iwae" else alpha

    def grouped(family: Family, noise: Tensor, rows: Tensor | None = None) -> Tensor:
        draws, size = family.push(noise), math.gcd(group, len(noise))
        if gradient == "dreg":
            return -_doubly(family, draws, len(noise), size, log_p, rows)
        logs = draws.spread(log_p(draws.z, rows) - draws.log_q)
        logs = _grouped(logs, len(noise), size)
        return -(iwae(logs) if power == 0.0 else renyi(logs, power)).mean()

    return grouped


def _plain(family: Family, noise: Tensor, log_p: LogDensity, rows: Tensor | None) -> Tensor:
    draws, entropy = family.push(noise), family.entropy()
    if entropy is None:
        return -draws.mean(log_p(draws.z, rows) - draws.log_q)
    return -draws.mean(log_p(draws.z, rows)) - entropy


def _stl(family: Family, noise: Tensor, log_p: LogDensity, rows: Tensor | None) -> Tensor:
    draws = family.push(noise)
    return -draws.mean(log_p(draws.z, rows) - family.held_log_prob(draws.z))


def _score(family: Family, noise: Tensor, log_p: LogDensity, rows: Tensor | None) -> Tensor:
    z = family.push(noise).z.detach()
    log_q = family.log_prob(z)
    weights = (log_p(z, rows) - log_q).detach()
    return -score_function(weights[:, None], log_q[:, None]).sum()


def _doubly(
    family: Family, draws: Draws, n: int, size: int, log_p: LogDensity, rows: Tensor | None
) -> Tensor:
    z = _grouped(draws.z, n, size)
    flat = z.flatten(0, 1)
    logs = log_p(flat, rows) - family.held_log_prob(flat)
    spread = draws._replace(share=_shares_like(draws, n, size)).spread(logs)
    return doubly_reparameterised(spread.reshape(z.shape[:2]), z).mean()


def _shares_like(draws: Draws, n: int, size: int) -> Tensor | None:
    return None if draws.share is None else _grouped(draws.share, n, size).flatten()


def _grouped(values: Tensor, n: int, size: int) -> Tensor:
    """Arrange `[strata · n, …]` as `[strata · size, n / size, …]`: a group has every stratum."""
    strata = len(values) // n
    shaped = values.reshape(strata, size, n // size, *values.shape[1:])
    return shaped.flatten(0, 1)
