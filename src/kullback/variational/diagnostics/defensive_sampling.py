"""Defensive importance sampling: draws of laws wider than q, where q's tails are too thin.

A weight p/q is unbounded where p's tail is the heavier one, and then no number of draws of q tells
what reweighing misses. Draws of q and of a wide law together have the weights p/(mixture of both),
which are bounded wherever one of the two is wide enough. A Student's t about q is wide in every
direction; a `Ridge` goes into the narrow end of a funnel, which no wider law of q's shape reaches.
Which to use: `widely`, through `assess`.
Reference: Hesterberg (1995), "Weighted average importance sampling and defensive mixture
distributions"; Owen and Zhou (2000), "Safe and effective importance sampling".
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational.limits import FREEDOM

from .nested_laplace import Ridge, Standard

__all__ = ["Wide", "pooled", "unreached", "widely"]

_LogDensity = Callable[[Tensor], Tensor]


class Wide(NamedTuple):
    """Draws of the wide law `[m, d]`, and what is known there: log p and log q, `[m]` each, nats.

    here, there: the wide law's own log density at q's draws `[n]` and at its own `[m]`.
    """

    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    here: Tensor
    there: Tensor


def widely(
    log_density: _LogDensity,
    log_prob: _LogDensity,
    draws: Tensor,
    *,
    number: int = 8000,
    ridges: Sequence[Ridge] = (),
    generator: torch.Generator | None = None,
) -> Wide:
    """Draw from a law with the mean and covariance of q's draws and heavier tails, and from ridges.

    log_density, log_prob: log p (unnormalised) and log q, `[n, d]` to `[n]`. draws: `[n, d]` of q.
    number: draws of a law that is half a multivariate t with 5 degrees of freedom, wide in all
    directions at once, and half normal but for one coordinate each time, which is t: in many
    dimensions a single heavy tail is out of the reach of the first. Each ridge adds half as many as
    q has. All are pooled, and the wide law's density is that of the mixture.
    Errors: `ArgumentValueError` for no more draws than twice the dimensions.

    >>> z = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> log_q = lambda z: -0.5 * z.square().sum(-1) - 0.919
    >>> far = widely(log_q, log_q, z, number=100, generator=torch.Generator().manual_seed(1))
    >>> far.draws.shape, bool(far.there.exp().min() < far.here.exp().min())
    (torch.Size([100, 1]), True)
    """
    count, dims = draws.shape
    require(count > 2 * dims, "draws", f"more than {2 * dims}", count)
    student = _Student(Standard.of(draws))
    numbers = [number] + len(ridges) * [count // 2]
    laws: list[_Student | Ridge] = [student, *ridges]
    far = torch.cat([law.sample(n, generator) for law, n in zip(laws, numbers, strict=True)])
    logs = (torch.tensor(numbers, dtype=draws.dtype) / sum(numbers)).log()

    def density(z: Tensor) -> Tensor:
        parts = [law.log_prob(z) + log for law, log in zip(laws, logs, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0)

    with torch.no_grad():
        return Wide(far, log_density(far), log_prob(far), density(draws), density(far))


class _Student(NamedTuple):
    """A t in all directions at once, or in one coordinate at a time, half each."""

    standard: Standard

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw n points `[n, d]`."""
        factor, axes = self.standard.factor, self.standard.axes
        dims = len(factor)
        u = torch.randn(n, dims, generator=generator, dtype=factor.dtype)
        size = torch.randn(n, int(FREEDOM), generator=generator, dtype=factor.dtype)
        stretch = (FREEDOM / size.square().sum(1)).sqrt()
        which = torch.randint(dims, (n,), generator=generator)
        along = (u * axes[which]).sum(1)
        single = u + ((stretch - 1) * along)[:, None] * axes[which]
        u = torch.where(torch.arange(n)[:, None] % 2 == 0, stretch[:, None] * u, single)
        return self.standard.centre + u @ factor.mT

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density `[n]` at z `[n, d]`."""
        log_det = self.standard.factor.diagonal().log().sum()
        return _log_wide(self.standard.inwards(z), self.standard.axes) - log_det


def pooled(draws: Tensor, log_p: Tensor, log_q: Tensor, wide: Wide) -> tuple[Tensor, Tensor]:
    """Return all draws that have any weight, q's first, and their log weights p/(mixture of both).

    >>> z = torch.zeros(2, 1)
    >>> far = Wide(z + 9, torch.full((2,), -math.inf), z[:, 0], z[:, 0], z[:, 0])
    >>> pooled(z, z[:, 0], z[:, 0], far)
    (tensor([[0.],
            [0.]]), tensor([0., 0.]))
    """
    logs = _log_weights(log_p, log_q, wide)
    kept = torch.softmax(logs, 0) > 0
    return torch.cat([draws, wide.draws])[kept], logs[kept]


def unreached(log_p: Tensor, log_q: Tensor, wide: Wide, *, times: float) -> float:
    """Return p's mass where p/q exceeds `times`, `P_p(p/q > times)`, from the pooled draws.

    log_p, log_q: `[n]` at q's own draws, log p without its constant. Under q that region has less
    than that mass divided by `times`.

    >>> z = torch.zeros(2)
    >>> round(unreached(z, z, Wide(z[:, None], z, z - 9.0, z, z), times=100.0), 2)
    0.67
    """
    logs = _log_weights(log_p, log_q, wide)
    constant = torch.logsumexp(logs, 0) - math.log(len(logs))
    ratio = torch.cat([log_p - log_q, wide.log_p - wide.log_q]) - constant
    return float(torch.softmax(logs, 0)[ratio > math.log(times)].sum())


def _log_weights(log_p: Tensor, log_q: Tensor, wide: Wide) -> Tensor:
    """Return log p/(mixture) at q's draws and then at the wide law's."""
    n, m = len(log_p), len(wide.draws)
    laws = (torch.cat([log_q, wide.log_q]), torch.cat([wide.here, wide.there]))
    shares = (math.log(n / (n + m)), math.log(m / (n + m)))
    mixed = torch.logaddexp(*(a + b for a, b in zip(laws, shares, strict=True)))
    return torch.cat([log_p, wide.log_p]) - mixed


def _log_wide(u: Tensor, axes: Tensor) -> Tensor:
    dims = u.shape[1]
    squares = u.square().sum(1)
    all_at_once = _log_t(squares, dims)
    along = u @ axes.mT
    normal = -0.5 * (squares + dims * math.log(2 * math.pi))
    gain = _log_t(along.square(), 1) + 0.5 * (along.square() + math.log(2 * math.pi))
    one_at_a_time = normal[:, None] + gain - math.log(dims)
    return torch.logaddexp(all_at_once, one_at_a_time.logsumexp(1)) - math.log(2)


def _log_t(squares: Tensor, dims: int) -> Tensor:
    """Return log of a spherical t's density at squared distances from its centre."""
    v = FREEDOM
    constant = math.lgamma((v + dims) / 2) - math.lgamma(v / 2) - 0.5 * dims * math.log(v * math.pi)
    return constant - 0.5 * (v + dims) * torch.log1p(squares / v)
