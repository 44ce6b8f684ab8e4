"""Move and stretch a fitted q so that its means and sds are those of p by weighted draws.

The Gaussian of the smallest KL(q‖p) is narrower than p where p is not Gaussian: 5 % of an sd for a
hinge, 3 % for a flat top. Draws that already have weights p/q show by how much, and each coordinate
of q is moved and scaled by that, which costs no evaluation of p.

Which to use: `moved_to_moments`, after a fit. What is larger than a few per cent is the business of
a mixture (`forward_kl.maximum_likelihood`).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families import Family

__all__ = ["Moves", "Weighed", "moved_to_moments", "moves", "stretched", "to_draws"]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Points `[n, d]` with log p (up to a constant), log q and the log density they came from."""

    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    log_proposal: Tensor

    def weights(self, log_density: Tensor) -> Tensor:
        """Return the weights, sum 1, with which the points stand for a density `[n]`."""
        return (log_density - self.log_proposal).softmax(0)


@dataclass(frozen=True, slots=True)
class Moves:
    """How far p's moments are from q's: means, in q's sd, then log sds, `[2 m]`, and the errors.

    sd: of q, `[m]`.
    """

    size: Tensor
    error: Tensor
    sd: Tensor

    @property
    def most(self) -> Tensor:
        """How far they are at most, `[2 m]`."""
        return self.size.abs() + limits.MOMENT_SHIFT_ERRORS * self.error

    @property
    def certain(self) -> Tensor:
        """The moves beyond √(2 log 2m) errors, which noise alone seldom passes, others 0, `[2 m]`.

        Reference: Donoho and Johnstone (1994), the universal threshold.
        """
        beyond = self.size.abs() > math.sqrt(2 * math.log(len(self.size))) * self.error
        return torch.where(beyond, self.size, 0.0)


def moves(values: Tensor, w: Tensor, v: Tensor) -> Moves:
    """Return the moves between values `[n, m]` with p's weights w and with q's v, `[n]` each.

    Both are means of the same draws: where p is all but q their terms, and their noise, cancel.
    """
    kept = (w > 0) | (v > 0)
    values, w, v = values[kept], w[kept, None], v[kept, None]
    means = [(share * values).sum(0) for share in (w, v)]
    squares = [(values - mean).square() for mean in means]
    variances = [(s * x).sum(0) for s, x in zip((w, v), squares, strict=True)]
    sd = variances[1].sqrt()
    terms = [
        (w * (values - means[0]) - v * (values - means[1])) / sd,
        0.5 * (w * (squares[0] / variances[0] - 1) - v * (squares[1] / variances[1] - 1)),
    ]
    size = torch.cat([(means[0] - means[1]) / sd, 0.5 * (variances[0] / variances[1]).log()])
    return Moves(size, torch.cat([term.square().sum(0).sqrt() for term in terms]), sd)


def stretched(family: Family, centre: Tensor, there: Tensor, scale: Tensor) -> Family:
    """Return q with its centre moved there, and stretched about it by a factor a coordinate, `[d]`.

    >>> from kullback.variational.families import FullRank
    >>> from kullback.variational.families.family import Frame
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> stretched(FullRank(Frame.identity(1)), 0 * one, 3 * one, 2 * one).shift
    tensor([3.], dtype=torch.float64)
    """
    better = copy.deepcopy(family)
    better.shift = there + scale * (family.shift - centre)
    better.scale = (scale[:, None] if family.scale.ndim == 2 else scale) * family.scale
    return better


def to_draws(family: Family, draws: Tensor, generator: torch.Generator) -> Family:
    """Return q moved and stretched to the means and sds of draws `[n, d]`, by n draws of its own.

    >>> from kullback.variational.families import FullRank
    >>> from kullback.variational.families.family import Frame
    >>> noise = torch.Generator().manual_seed(0)
    >>> draws = 3 + 2 * torch.randn(4000, 1, generator=noise, dtype=torch.float64)
    >>> q = to_draws(FullRank(Frame.identity(1)), draws, noise)
    >>> bool((q.sample(4000, noise).std(0) - 2).abs() < 0.1)
    True
    """
    own = family.sample(len(draws), generator)
    return stretched(family, own.mean(0), draws.mean(0), draws.std(0) / own.std(0))


def moved_to_moments(
    family: Family, known: Weighed, values: Callable[[Tensor], Tensor]
) -> tuple[Family, float, float] | None:
    """Return q moved to p's means and sds, and the largest move before and after; None if close.

    values: unconstrained points `[n, d]` to the declared parameters `[n, m]`, by which the result
    is judged: it is kept where the largest move that is beyond its error falls by 30 %. Moves of z
    that are within their errors are left out.
    """
    w, v = known.weights(known.log_p), known.weights(known.log_q)
    if not bool((w.isfinite() & v.isfinite()).all()):
        return None
    declared = values(known.draws)
    before = float(moves(declared, w, v).certain.abs().max())
    if not before > limits.MIN_MOVED:
        return None
    inner = moves(known.draws, w, v)
    step, stretch = inner.certain.chunk(2)
    centre, scale = (v[:, None] * known.draws)[v > 0].sum(0), stretch.exp()
    better = stretched(family, centre, centre + step * inner.sd, scale)
    with torch.no_grad():
        moved = known.weights(better.log_prob(known.draws))
    after = float(moves(declared, w, moved).certain.abs().max())
    return (better, before, after) if after < limits.MIN_MATCHED_GAIN * before else None
