"""The inverse Gaussian (Wald) distribution, which torch lacks.

Which to use: `InverseGaussian` as any torch distribution; `closed_forms.kl` knows the pair.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

__all__ = ["InverseGaussian"]


class InverseGaussian(Distribution):
    """Density `√(λ/2πx³) exp(−λ(x − μ)²/(2μ²x))` on x > 0, of a Brownian first passage.

    loc: the mean μ > 0; concentration: the shape λ > 0 (variance μ³/λ); both `[*batch]`.
    Its entropy has no closed form in torch's functions; its KL does. Draws are not
    reparametrised.
    Reference: Michael, Schucany and Haas (1976), "Generating random variates using transformations
    with multiple roots".

    >>> InverseGaussian(torch.tensor(2.0), torch.tensor(4.0)).variance
    tensor(2.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive

    def __init__(
        self,
        loc: Tensor | float,
        concentration: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, μ."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance, μ³/λ."""
        return self.loc**3 / self.concentration

    def expand(self, batch_shape: Any, _instance: Any = None) -> "InverseGaussian":
        """Return the same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return InverseGaussian(
            self.loc.expand(shape), self.concentration.expand(shape), validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density at `value > 0`, broadcast against `[*batch]`."""
        if self._validate_args:
            self._validate_sample(value)
        bend = self.concentration * ((value - self.loc) / self.loc) ** 2 / value
        return 0.5 * (self.concentration.log() - math.log(2 * math.pi) - 3 * value.log() - bend)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch]` from a squared normal and a coin, without gradient."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            ratio = (self.loc / self.concentration).expand(shape)
            y = torch.randn(shape, dtype=ratio.dtype, device=ratio.device) ** 2 * ratio / 2
            root = 1 / (1 + y + (y * (2 + y)).sqrt())  # the smaller root, in units of μ
            coin = torch.rand(shape, dtype=ratio.dtype, device=ratio.device)
            return self.loc * torch.where(coin * (1 + root) <= 1, root, 1 / root)
