"""What can be asked of a fitted q: named draws, moments, new draws, densities, predictions.

Which to use: none of this directly; `Fit` and `Saved`, a fit read from disk, are both of it.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.core import RunError, require_count

from .diagnostics.summary import resample
from .families import Family
from .families.family import as_distribution
from .predictions import predict
from .target.density import Target

__all__ = ["FittedPosterior"]


class FittedPosterior:
    """What can be asked of a fitted q, whether it was just fitted or read from disk."""

    target: Target
    family: Family | None
    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor]
    converged: bool

    @cached_property
    def posterior(self) -> dict[str, Tensor]:
        """The draws of q in the user's own, constrained parameters: `{name: [n, *shape]}`.

        They are `draws`, mapped by the parameters' constraints. Names, order and shapes are those
        of `parameters`, as NumPyro's `get_samples()` gives them; `to_arviz` adds an axis of chains.
        Where `parameters` was a number of dimensions, the one name is "z". They follow q, not p:
        `diagnosis` bounds the difference and `resample` corrects for it.

        Example:
            >>> from torch.distributions import constraints
            >>> from kullback.variational import fit
            >>> parameters = {"rate": constraints.positive, "mu": (2,)}
            >>> found = fit(
            ...     lambda rate, mu: 8 * rate.log() - 3 * rate - mu.square().sum(), parameters
            ... )
            >>> {name: list(value.shape) for name, value in found.posterior.items()}
            {'rate': [4000], 'mu': [4000, 2]}
            >>> bool((found.posterior["rate"] > 0).all())
            True
        """
        with torch.no_grad():
            return self.target.constrain(self.draws)

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """Means of `posterior`, `{name: [*shape]}`; `summary` has bounds on their errors.

        Example:
            >>> from kullback.variational import fit
            >>> found = fit(lambda mu: -0.5 * (mu - 3.0) ** 2, {"mu": ()})
            >>> abs(float(found.mean["mu"]) - 3) < 0.1
            True
        """
        return {name: value.mean(0) for name, value in self.posterior.items()}

    @cached_property
    def sd(self) -> dict[str, Tensor]:
        """Standard deviations of `posterior`, `{name: [*shape]}`; `summary` bounds their errors."""
        return {name: value.std(0) for name, value in self.posterior.items()}

    @cached_property
    def cov(self) -> Tensor:
        """Covariance of all values, `[m, m]`, in the order of `target.layout.value_names`."""
        flat = [value.reshape(len(value), -1) for value in self.posterior.values()]
        size = sum(part.shape[1] for part in flat)
        return torch.cov(torch.cat(flat, 1).mT).reshape(size, size)

    def sample_posterior(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw n new points of q in the user's own, constrained parameters: `{name: [n, *shape]}`.

        Args:
            n: how many draws, at least 1.
            generator: the source of randomness; torch's global one by default.

        Returns:
            Names and shapes as in `posterior`; the same points as `sample(n, generator)`.

        Raises:
            ArgumentValueError: for n < 1.
            RunError: for a loaded fit whose q is of a class of the user's own.

        Example:
            >>> from torch.distributions import constraints
            >>> from kullback.variational import fit
            >>> found = fit(lambda p: p.log().sum(), {"p": constraints.unit_interval})
            >>> found.sample_posterior(10)["p"].shape
            torch.Size([10])
        """
        with torch.no_grad():
            return self.target.constrain(self.sample(n, generator))

    def predict(
        self,
        function: Callable[..., Any] | None = None,
        *,
        draws: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate a function at every draw: `kullback.variational.predict` of this fit."""
        return predict(self, function, draws=draws, generator=generator)

    def resample(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw n by importance weights: `kullback.variational.resample` of this fit."""
        return resample(self, n, generator=generator)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of q on the unconstrained space, `[n, d]`.

        For draws of the parameters as they were declared: `sample_posterior`.

        Args:
            n: how many, at least 1.
            generator: the source of randomness; torch's global one by default.

        Returns:
            The points.

        Raises:
            ArgumentValueError: for n < 1.
            RunError: for a loaded fit whose q is of a class of the user's own.
        """
        return self._known_family().sample(require_count(n, "n"), generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) of unconstrained z, `[n, d]` → `[n]`, in nats.

        It is a density over z, not over the constrained parameters, from which it differs by the
        log Jacobian of their map.

        Args:
            z: unconstrained reals, `[n, d]`.

        Returns:
            The normalised log density, without a graph.

        Raises:
            ArgumentValueError: for another shape.
            RunError: for a loaded fit whose q is of a class of the user's own.
        """
        with torch.no_grad():
            return self._known_family().log_prob(z)

    @property
    def distribution(self) -> Distribution:
        """Q as a `torch.distributions.Distribution` over unconstrained z, event shape `[d]`.

        A Gaussian q is torch's own (`MultivariateNormal`, …); others are a `FamilyDistribution`.

        Example:
            >>> from kullback.variational import fit
            >>> found = fit(lambda z: -0.5 * z.square().sum(), 3, family="student_t")
            >>> found.distribution
            FamilyDistribution(StudentT, event_shape: torch.Size([3]))
        """
        return as_distribution(self._known_family())

    def _known_family(self) -> Family:
        if self.family is None:
            raise RunError(
                "q is of a class of your own, which was not saved. Try: the stored draws"
            )
        return self.family
