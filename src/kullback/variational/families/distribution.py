"""A fitted q as a `torch.distributions.Distribution` over unconstrained z.

Which to use: `as_distribution(q)`, which `fit(...).distribution` calls: a Gaussian becomes torch's
own (so that closed-form KLs apply), any other family a `FamilyDistribution`.
`FamilyDistribution(q)` directly where gradients must reach q's parameters.
"""

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
)

from kullback.core import require_type

from .family import Family
from .gaussians import LowRank

__all__ = ["FamilyDistribution", "as_distribution"]


class FamilyDistribution(Distribution):
    """A family's q(z) with torch's interface: event shape `[d]`, no batch shape, values in nats.

    `sample` draws from torch's global random state, as torch's distributions do (use
    `Family.sample` for a generator). `log_prob` is exact and differentiable in z. `rsample` is
    differentiable in the family's parameters; a mixture has none (`has_rsample` is False), because
    its reparameterised draws are stratified and not independent. `entropy` exists where it has a
    closed form. There is no `mean` and no `variance`: average draws.

    Args:
        family: a `kullback.variational.Family`, or one of your own.
        validate_args: as for every torch distribution.

    Raises:
        ArgumentTypeError: for anything but a `Family`.

    Example:
        >>> from kullback.variational.families.family import Frame
        >>> from kullback.variational.families.student_t import StudentT
        >>> q = FamilyDistribution(StudentT(Frame.identity(2), degrees=5))
        >>> q.event_shape, q.sample((3, 4)).shape, q.log_prob(torch.zeros(7, 2)).shape
        (torch.Size([2]), torch.Size([3, 4, 2]), torch.Size([7]))
    """

    arg_constraints = {}  # noqa: RUF012  (torch declares it as an instance attribute)
    support = constraints.real_vector

    def __init__(self, family: Family, validate_args: bool | None = None) -> None:  # noqa: FBT001
        require_type(family, Family, "family")
        self.family = family
        one = torch.ones(1, family.noise_dim, dtype=family.shift.dtype)
        with torch.no_grad():
            self.has_rsample = family.push(one).share is None
        super().__init__(event_shape=torch.Size([family.dim]), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"FamilyDistribution({type(self.family).__name__}, event_shape: {self.event_shape})"

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draw independent points `[*sample_shape, d]`, without a graph."""
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = shape[:-1].numel()
        return self.family.sample(max(rows, 1))[:rows].reshape(shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draw independent points `[*sample_shape, d]`, differentiable in the parameters.

        Raises:
            NotImplementedError: for a mixture.
        """
        if not self.has_rsample:
            raise NotImplementedError("draws of a mixture are not reparameterised. Try: sample")
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = shape[:-1].numel()
        noise = self.family.noise(max(rows, 1))
        return self.family.push(noise).z[:rows].reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z), `[*batch, d]` → `[*batch]`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        flat = value.reshape(-1, self.family.dim)
        return self.family.log_prob(flat).reshape(value.shape[:-1])

    def entropy(self) -> Tensor:
        """Return `−E_q[log q]` in nats.

        Raises:
            NotImplementedError: where it has no closed form (mixtures, flows).
        """
        value = self.family.entropy()
        if value is None:
            raise NotImplementedError("no closed form. Try: the mean of -log_prob over draws")
        return value


def as_distribution(family: Family) -> Distribution:
    """Return q as a torch distribution over unconstrained z, event shape `[d]`, parameters held.

    Exact: the same law as the family's `sample` and `log_prob`, up to rounding.

    Args:
        family: q.

    Returns:
        `Independent(Normal)` for a mean field, `MultivariateNormal` for full rank,
        `LowRankMultivariateNormal` for low rank, so that torch's and `kullback.kl`'s closed forms
        apply; a `FamilyDistribution` for everything else.

    Example:
        >>> from kullback.variational import fit
        >>> q = as_distribution(fit(lambda z: -0.5 * (z - 1).square().sum(), 2).family)
        >>> q
        MultivariateNormal(loc: torch.Size([2]), scale_tril: torch.Size([2, 2]))
        >>> [round(m, 6) for m in q.mean.tolist()]
        [1.0, 1.0]
    """
    frame = family.absorb()
    if frame is not None:
        if frame.is_dense:
            return MultivariateNormal(frame.shift, scale_tril=frame.factor.contiguous())
        return Independent(Normal(frame.shift, frame.sd), 1)
    return _low_rank(family) if isinstance(family, LowRank) else FamilyDistribution(family)


@torch.no_grad()
def _low_rank(family: LowRank) -> Distribution:
    sd = family.scale * family.log_sd.exp()
    mean = family.frame.outwards(family.mean)
    return LowRankMultivariateNormal(mean, sd[:, None] * family.weights, sd.square())
