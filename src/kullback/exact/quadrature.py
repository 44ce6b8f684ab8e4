"""Evidence, posterior and KL by quadrature in one and two latent dimensions (MATH 1.4).

Which to use: `posterior` for a model `log p(x, z)` (its evidence, moments, and the KL of any q
from it in both directions); `kl` between two densities; `grid` for the nodes themselves. The nodes
are Gauss-Legendre on a box: for a smooth density well inside the box the error falls geometrically,
and `Posterior.error` shows what is left. The box is the caller's to choose: mass outside it is not
counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import describe, require, require_type

from .table_sums import Table, alpha_sum

__all__ = ["Posterior", "grid", "kl", "posterior"]

LogDensity = Callable[[Tensor], Tensor]
Bound = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Posterior:
    """A posterior on a grid: `log p(x)`, nodes `z`, and the posterior mass of each node.

    log_evidence: `log ∫ p(x, z) dz` in nats, scalar. error: how much it moved from half as many
    nodes a dimension, an estimate of what quadrature still gets wrong (mass outside the box is not
    in it). nodes: `[n, d]`. log_weights: logs of the quadrature weights, `[n]`. log_density: the
    normalised log posterior at the nodes, `[n]`. All float64.

    >>> model = lambda z: -0.5 * z.square().sum(-1)
    >>> two = posterior(model, lower=(-9, -9), upper=(9, 9))
    >>> math.isclose(float(two.log_evidence), math.log(2 * math.pi), rel_tol=1e-14)
    True
    """

    log_evidence: Tensor
    error: float
    nodes: Tensor
    log_weights: Tensor
    log_density: Tensor

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `E[f(z)]` under the posterior; f maps nodes `[n, d]` to `[n, *shape]`.

        >>> half_normal = posterior(lambda z: -0.5 * z[:, 0] ** 2, lower=0, upper=9)
        >>> half_normal.expectation(lambda z: z[:, 0])
        tensor(0.7979, dtype=torch.float64)
        """
        mass = (self.log_density + self.log_weights).exp()
        return torch.einsum("n,n...->...", mass, function(self.nodes).to(mass.dtype))

    @property
    def mean(self) -> Tensor:
        """The posterior mean, `[d]`."""
        return self.expectation(lambda z: z)

    @property
    def covariance(self) -> Tensor:
        """The posterior covariance, `[d, d]`."""
        return self.expectation(lambda z: (z - self.mean)[:, :, None] * (z - self.mean)[:, None])

    def kl_to(self, log_q: LogDensity) -> Tensor:
        """Return `KL(posterior‖q)` in nats, for a normalised log density q."""
        return _kl_on_grid(self.log_density, _values(log_q, self.nodes, "log_q"), self.log_weights)

    def kl_from(self, log_q: LogDensity) -> Tensor:
        """Return `KL(q‖posterior)` in nats: the gap `log p(x) − ELBO(q)` (MATH 2.1)."""
        return _kl_on_grid(_values(log_q, self.nodes, "log_q"), self.log_density, self.log_weights)


def posterior(log_joint: LogDensity, *, lower: Bound, upper: Bound, nodes: int = 200) -> Posterior:
    """Integrate `p(x, z) dz` over a box and return the evidence and the posterior on its grid.

    Reference: Davis and Rabinowitz (1984), "Methods of Numerical Integration", section 2.7.

    Args:
        log_joint: Maps float64 nodes `[n, d]` to `log p(x, z)` `[n]` in nats; −inf is allowed.
        lower: Lower end of the box, finite: a number for d = 1, or one per dimension, d ≤ 2.
        upper: Upper end of the box, likewise, above `lower`.
        nodes: Nodes per dimension, ≥ 4.

    Returns:
        A `Posterior`, differentiable with respect to whatever log_joint closes over.

    Raises:
        ArgumentTypeError: For a log_joint that returns no tensor.
        ArgumentValueError: For a bad box, a log_joint of the wrong shape, NaN, or no mass.

    Example:
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> def log_joint(z):
        ...     return (normal.log_prob(z) + normal.log_prob(1.0 - z))[:, 0]
        >>> found = posterior(log_joint, lower=-9, upper=9)
        >>> expected = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        >>> bool((found.log_evidence - expected).abs() < 1e-6)
        True
    """
    require(nodes >= 4, "nodes", "at least 4 a dimension", nodes)
    points, log_weights = grid(lower, upper, nodes=nodes)
    logs = _values(log_joint, points, "log_joint")
    log_evidence = torch.logsumexp(logs + log_weights, 0)
    some = bool(log_evidence > -math.inf)
    require(some, "log_joint", "some mass in the box", "none", "a box around the mode")
    coarse_points, coarse_weights = grid(lower, upper, nodes=nodes // 2)
    with torch.no_grad():
        coarse = torch.logsumexp(_values(log_joint, coarse_points, "log_joint") + coarse_weights, 0)
        error = float((log_evidence - coarse).abs())
    return Posterior(log_evidence, error, points, log_weights, logs - log_evidence)


def kl(
    log_p: LogDensity, log_q: LogDensity, *, lower: Bound, upper: Bound, nodes: int = 200
) -> Tensor:
    """Return `KL(p‖q) = ∫ p log(p/q)` over a box, in nats.

    The integrand is `p log(p/q) − p + q ≥ 0`. Mass of either outside the box makes
    the value too small, never negative.

    Args:
        log_p: Normalised log density of p: maps float64 nodes `[n, d]` to `[n]` in nats.
        log_q: Likewise of q.
        lower: Lower end of the box, finite: a number for d = 1, or one per dimension, d ≤ 2.
        upper: Upper end of the box, likewise, above `lower`.
        nodes: Nodes per dimension, ≥ 2.

    Returns:
        A scalar in float64; +inf where q is 0 and p is not.

    Raises:
        ArgumentTypeError: For a density that returns no tensor.
        ArgumentValueError: For a bad box, a density of the wrong shape, or NaN.

    Example:
        >>> p, q = (torch.distributions.Normal(m, 1.0) for m in (0.0, 1.0))
        >>> kl(lambda z: p.log_prob(z[:, 0]), lambda z: q.log_prob(z[:, 0]), lower=-9, upper=9)
        tensor(0.5000, dtype=torch.float64)
    """
    points, log_weights = grid(lower, upper, nodes=nodes)
    at_p, at_q = _values(log_p, points, "log_p"), _values(log_q, points, "log_q")
    return _kl_on_grid(at_p, at_q, log_weights)


def grid(lower: Bound, upper: Bound, *, nodes: int = 200) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes on a box and the logs of their weights, float64.

    Args:
        lower: Lower end of the box, finite: a number for d = 1, or one per dimension, d ≤ 2.
        upper: Upper end of the box, likewise, above `lower`.
        nodes: Nodes per dimension, ≥ 2.

    Returns:
        Nodes `[n, d]` and log weights `[n]`, n = nodes^d.

    Raises:
        ArgumentValueError: For a bad box, or fewer than 2 nodes.

    Example:
        >>> points, log_weights = grid(0.0, 3.0, nodes=8)
        >>> bool((log_weights.exp().sum() - 3).abs() < 1e-14)
        True
    """
    low, high = (np.atleast_1d(np.asarray(b, dtype=np.float64)) for b in (lower, upper))
    sizes = f"{low.shape} and {high.shape}"
    box = low.shape == high.shape and low.ndim == 1 and 1 <= low.size <= 2
    require(box, "lower and upper", "one number each for one or two dimensions", sizes)
    finite = bool((np.isfinite(low) & np.isfinite(high) & (low < high)).all())
    require(finite, "lower and upper", "finite, lower < upper", f"{low} and {high}")
    require(nodes >= 2, "nodes", "at least 2 a dimension", nodes)
    base, weights = (torch.from_numpy(a) for a in _legendre(nodes))
    half, middle = torch.from_numpy((high - low) / 2), torch.from_numpy((high + low) / 2)
    axes = [middle[i] + half[i] * base for i in range(low.size)]
    logs = [(half[i] * weights).log() for i in range(low.size)]
    points = torch.cartesian_prod(*axes).reshape(-1, low.size)
    return points, torch.cartesian_prod(*logs).reshape(-1, low.size).sum(-1)


@lru_cache(maxsize=8)
def _legendre(nodes: int) -> tuple[Any, Any]:
    return np.polynomial.legendre.leggauss(nodes)


def _values(function: LogDensity, points: Tensor, name: str) -> Tensor:
    values = function(points)
    require_type(values, Tensor, name)
    shape = (points.shape[0],)
    require(values.shape == shape, name, f"to return float [{shape[0]}]", describe(values))
    require(not bool(values.isnan().any()), name, "no NaN", "NaN at some nodes")
    return values.double()


def _kl_on_grid(log_p: Tensor, log_q: Tensor, log_weights: Tensor) -> Tensor:
    """Sum `w·(p log(p/q) − p + q)`, 0 where both are 0, +inf where only q is."""
    p, q = Table(log_p + log_weights, by_mass=False), Table(log_q + log_weights, by_mass=False)
    return alpha_sum(p, q, 1.0)
