"""Draws and densities of a fitted q: in the user's own parameters, and on the unconstrained space.

Which to use: `posterior` and `sample_posterior` for named draws in the parameters as the user
declared them; `draws`, `sample`, `log_prob` and `distribution` for z, the vector of unconstrained
reals on which q lives (the log of a positive parameter, for example). `Fit` has both, and so has
`Saved`, a fit read from disk.
"""

from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.core import RunError

from .families import Family
from .families.distribution import as_distribution
from .target.density import Target

__all__ = ["FittedPosterior"]


class FittedPosterior:
    """What can be asked of a fitted q, whether it was just fitted or read from disk."""

    target: Target
    family: Family | None
    draws: Tensor

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

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of q on the unconstrained space, `[n, d]`.

        For draws of the parameters as they were declared: `sample_posterior`.
        """
        return self._known_family().sample(n, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) of unconstrained z, `[n, d]` → `[n]`, in nats.

        It is a density over z, not over the constrained parameters, from which it differs by the
        log Jacobian of their map.
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
