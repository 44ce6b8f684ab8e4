"""The base of every q(z), its coordinates, and its face as a torch distribution.

Which to use: `Frame.diagonal(shift, sd)` or `Frame.dense(shift, factor)` for an affine change of
coordinates z = shift + scale · u, in which a target looks round. A family lives in the coordinates
u of its frame, so that one unit is about one standard deviation whatever the user's units are: no
learning rate has to be guessed, and a gradient is a distance in standard deviations.
`Frame.of_draws` whitens draws.

`Family`, where you write a family of your own: it is final and writes five short methods about u
(push, sample, log density, entropy, absorb); the base does the frame, the shapes and the errors,
once. About twenty lines: see `gaussians.MeanField`.

`as_distribution(q)`, which `fit(...).distribution` calls: a Gaussian becomes torch's own (so that
closed-form KLs apply), any other family a `FamilyDistribution`. `FamilyDistribution(q)` directly
where gradients must reach q's parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
)

from kullback.core import describe, require, require_type
from kullback.exact import HALF_LOG_2PI
from kullback.variational import limits

__all__ = ["Draws", "Family", "FamilyDistribution", "Frame", "Make", "as_distribution"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The map `z = shift + scale ∘ u` (scale `[d]`) or `z = shift + scale u` (`[d, d]`, lower).

    >>> frame = Frame.diagonal(torch.tensor([1.0]), torch.tensor([2.0]))
    >>> frame.outwards(torch.tensor([[3.0]])), frame.log_det
    (tensor([[7.]]), tensor(0.6931))
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def diagonal(cls, shift: Tensor, sd: Tensor) -> "Frame":
        """Make a frame from a centre `[d]` and positive deviations `[d]`."""
        same = shift.ndim == 1 and shift.shape == sd.shape
        require(same, "sd", f"{list(shift.shape)}, as the shift", describe(sd))
        return cls(shift, sd)

    @classmethod
    def dense(cls, shift: Tensor, factor: Tensor) -> "Frame":
        """Make a frame from a centre `[d]` and a lower-triangular factor `[d, d]`."""
        side = len(shift)
        require(factor.shape == (side, side), "factor", f"[{side}, {side}]", describe(factor))
        return cls(shift, factor)

    @classmethod
    def identity(cls, dim: int, *, dtype: torch.dtype = torch.float64) -> "Frame":
        """Make the frame that changes nothing."""
        return cls(torch.zeros(dim, dtype=dtype), torch.ones(dim, dtype=dtype))

    @classmethod
    def of_draws(cls, draws: Tensor) -> "Frame":
        """Make the frame in which draws `[n, d]` have mean 0 and covariance I."""
        centre = draws.mean(0)
        covariance = (draws - centre).mT @ (draws - centre) / (len(draws) - 1)
        return cls(centre, ridged_cholesky(covariance, limits.COVARIANCE_RIDGE))

    @property
    def is_dense(self) -> bool:
        """Whether the scale is a matrix."""
        return self.scale.ndim == 2

    @property
    def factor(self) -> Tensor:
        """The scale as a lower-triangular matrix `[d, d]`."""
        return self.scale if self.is_dense else torch.diag(self.scale)

    @property
    def sd(self) -> Tensor:
        """The deviation of every coordinate of z, u being N(0, I): `[d]`."""
        return self.scale.square().sum(1).sqrt() if self.is_dense else self.scale

    @property
    def log_det(self) -> Tensor:
        """`log |det scale|`, a scalar."""
        return (self.scale.diagonal() if self.is_dense else self.scale).log().sum()

    @property
    def axes(self) -> Tensor:
        """Unit vectors `[d, d]`: coordinate j of z, in its sd, is axis j times u."""
        return self.factor / self.sd[:, None]

    def outwards(self, u: Tensor) -> Tensor:
        """Map u to z, `[*batch, d]`."""
        if self.is_dense:
            return self.shift + u @ self.scale.mT
        return torch.addcmul(self.shift, self.scale, u)

    def inwards(self, z: Tensor) -> Tensor:
        """Map z to u, `[*batch, d]`."""
        if self.is_dense:
            whole = z.reshape(-1, len(self.shift)) - self.shift
            solved = torch.linalg.solve_triangular(self.scale, whole.mT, upper=False)
            u: Tensor = solved.mT.reshape(z.shape)
            return u
        return (z - self.shift) / self.scale

    def inside(self, other: "Frame") -> "Frame":
        """Return another frame as it looks from this one: `self.then(...)` undone."""
        shift = self.inwards(other.shift)
        if not (self.is_dense or other.is_dense):
            return Frame(shift, other.scale / self.scale)
        solved = torch.linalg.solve_triangular(self.factor, other.factor, upper=False)
        return Frame(shift, solved)

    def then(self, mean: Tensor, scale: Tensor) -> "Frame":
        """Return the frame that looks at `mean + scale · v` seen from this one.

        scale: `[d]` or lower-triangular `[d, d]`, as this one's own.
        """
        shift = self.outwards(mean)
        if scale.ndim == 1:
            return Frame(shift, self.scale * scale)
        return Frame(shift, self.scale @ scale if self.is_dense else self.scale[:, None] * scale)


class Draws(NamedTuple):
    """Reparameterised draws: z `[n, d]`, log q(z) `[n]`, and each draw's share of q, `[n]`.

    share: None when all draws count alike; else weights that sum to one (stratified draws of a
    mixture, whose shares are differentiable in the mixture's weights).
    """

    z: Tensor
    log_q: Tensor
    share: Tensor | None

    def mean(self, terms: Tensor) -> Tensor:
        """Average terms `[n]` over the draws, by their shares."""
        return terms.mean() if self.share is None else (self.share * terms).sum()

    def spread(self, log_weights: Tensor) -> Tensor:
        """Return log-weights `[n]` whose plain mean of weights is the one by shares."""
        if self.share is None:
            return log_weights
        return log_weights + self.share.log() + math.log(len(self.z))


class Family(nn.Module, ABC):
    """A distribution q(z) on `[n, d]` with float64 parameters to fit, in a frame.

    A new family starts near N(0, I) in its frame.

    Attributes:
        name: what a user calls it.
        dense: whether it stays itself in every affine frame (a full-rank Gaussian, a flow) or only
            under scalings of single axes (mean field).
        chosen: names of the arguments beside the frame that give it its shape, kept as attributes,
            so that a saved q can be made again.
        noise_dim: how many standard normals make one draw.

    Args:
        frame: the coordinates it lives in.

    Example:
        >>> from kullback.variational import FullRank
        >>> issubclass(FullRank, Family), FullRank.dense
        (True, True)
    """

    name: ClassVar[str]
    dense: ClassVar[bool]
    chosen: ClassVar[tuple[str, ...]] = ()
    noise_dim: int

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        scale = frame.scale if self.dense else frame.sd
        self.shift, self.scale = frame.shift.detach().clone(), scale.detach().clone()
        self.noise_dim = self.dim

    @property
    def frame(self) -> Frame:
        """The coordinates the family lives in."""
        return Frame(self.shift, self.scale)

    @property
    def dim(self) -> int:
        """How many reals z has."""
        return len(self.shift)

    @property
    def options(self) -> dict[str, int | float]:
        """What makes a family of the same shape: `type(q)(frame, **q.options)`."""
        return {name: getattr(self, name) for name in self.chosen}

    def balanced(self, noise: Tensor) -> Tensor:
        """Adapt fixed noise `[n, noise_dim]`, whose normals have covariance I, to this family.

        A family whose draws are not linear in the noise can give them exact second moments here.
        """
        return noise

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n rows of standard normals for `push`, `[n, noise_dim]`.

        Args:
            n: how many draws, at least 1.
            generator: the source of randomness; torch's global one by default.

        Returns:
            The noise.

        Raises:
            ArgumentValueError: for n < 1.
        """
        require(n >= 1, "n", "at least 1 draw", n)
        return torch.randn(n, self.noise_dim, generator=generator, dtype=self.shift.dtype)

    def push(self, noise: Tensor) -> Draws:
        """Turn noise `[n, noise_dim]` into reparameterised draws with their log density.

        Args:
            noise: of `Family.noise`.

        Returns:
            The draws, differentiable in the parameters.
        """
        inner, frame = self._push(noise), self.frame
        return Draws(frame.outwards(inner.z), inner.log_q - frame.log_det, inner.share)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z), `[n, d]` → `[n]`, in nats, differentiable in z and the parameters.

        Args:
            z: unconstrained reals, `[n, d]`.

        Returns:
            The normalised log density, exact.

        Raises:
            ArgumentValueError: for another shape.
        """
        require(z.ndim == 2 and z.shape[1] == self.dim, "z", f"[n, {self.dim}]", describe(z))
        frame = self.frame
        return self._log_prob(frame.inwards(z)) - frame.log_det

    def forward(self, z: Tensor) -> Tensor:
        """Return `log_prob(z)`, so that the module can be called functionally."""
        return self.log_prob(z)

    def held_log_prob(self, z: Tensor) -> Tensor:
        """Return `log_prob(z)` with the parameters held: its gradient flows through z alone."""
        held = {name: value.detach() for name, value in self.named_parameters()}
        result: Tensor = torch.func.functional_call(self, held, (z,))
        return result

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n independent points `[n, d]`, without a graph.

        Args:
            n: how many, at least 1.
            generator: the source of randomness; torch's global one by default.

        Returns:
            The points.

        Raises:
            ArgumentValueError: for n < 1.
        """
        require(n >= 1, "n", "at least 1 draw", n)
        with torch.no_grad():
            return self.frame.outwards(self._sample(n, generator))

    def entropy(self) -> Tensor | None:
        """Return `−E_q[log q]` in nats where it has a closed form, else None."""
        inner = self._entropy()
        return None if inner is None else inner + self.frame.log_det

    def absorb(self) -> Frame | None:
        """Return the frame in which this q would be N(0, I), for a Gaussian; else None."""
        with torch.no_grad():
            inner = self._absorb()
            return None if inner is None else self.frame.then(inner[0], inner[1])

    def torch_distribution(self) -> Distribution | None:
        """Return torch's own distribution for a q that is no N(mean, L Lᵀ), or None."""
        return None

    @abstractmethod
    def _push(self, noise: Tensor) -> Draws: ...

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _entropy(self) -> Tensor | None: ...

    @abstractmethod
    def _absorb(self) -> tuple[Tensor, Tensor] | None: ...


Make = Callable[[Frame], Family]


def ridged_cholesky(covariance: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of `covariance + ridge · diag(covariance)`, `[d, d]`.

    >>> ridged_cholesky(torch.tensor([[4.0]]), 1e-12)
    tensor([[2.]])
    """
    variances = covariance.diagonal().clamp_min(1e-300)
    factor: Tensor = torch.linalg.cholesky(covariance + torch.diag(ridge * variances))
    return factor


def normal_log_prob(u: Tensor) -> Tensor:
    """Return `log N(u; 0, I)` over the last axis, in nats.

    >>> normal_log_prob(torch.zeros(2))
    tensor(-1.8379)
    """
    return -0.5 * u.square().sum(-1) - u.shape[-1] * HALF_LOG_2PI


def student_t_constant(dim: int, degrees: float) -> float:
    """Return `log Γ((ν + d)/2) − log Γ(ν/2) − d/2 log νπ`, the log density of a t at its centre.

    >>> round(student_t_constant(1, 1), 6) == round(-math.log(math.pi), 6)
    True
    """
    gammas = math.lgamma(0.5 * (degrees + dim)) - math.lgamma(0.5 * degrees)
    return gammas - 0.5 * dim * math.log(degrees * math.pi)


def student_t_log_prob(
    squares: Tensor, dim: int, degrees: float, log_det: Tensor | float = 0.0
) -> Tensor:
    """Return the log density of a multivariate t at squared Mahalanobis distances, in nats.

    `log Γ((ν + d)/2) − log Γ(ν/2) − d/2 log νπ − log |det L| − (ν + d)/2 log(1 + squares/ν)`.

    >>> student_t_log_prob(torch.zeros(1), 1, 1.0)
    tensor([-1.1447])
    """
    power = 0.5 * (degrees + dim)
    value: Tensor = student_t_constant(dim, degrees) - log_det - power * (squares / degrees).log1p()
    return value


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
        >>> from kullback.variational import StudentT
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

    Exact: the same distribution as the family's `sample` and `log_prob`, up to rounding.

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
    return family.torch_distribution() or FamilyDistribution(family)
