"""The Gaussian with independent coordinates."""

import math

import torch
from torch import Tensor, nn

from kullback.variational.frame import Frame

from .family import Draws, Family, normal_log_prob

__all__ = ["MeanField"]


class MeanField(Family):
    """`q(z) = N(mean, diag(sd²))`: 2d parameters; understates the spread of correlated posteriors.

    Its log density and entropy are exact. Of a posterior's marginal variances, precisions and
    entropy it can match only one when coordinates depend on each other.

    >>> MeanField(Frame.identity(2)).sample(3).shape
    torch.Size([3, 2])
    """

    name, dense = "mean_field", False

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.mean = nn.Parameter(torch.zeros_like(self.shift))
        self.log_sd = nn.Parameter(torch.zeros_like(self.shift))

    def _push(self, noise: Tensor) -> Draws:
        u = torch.addcmul(self.mean, self.log_sd.exp(), noise)
        return Draws(u, normal_log_prob(noise) - self.log_sd.sum(), None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        return normal_log_prob((u - self.mean) * (-self.log_sd).exp()) - self.log_sd.sum()

    def _entropy(self) -> Tensor:
        return self.log_sd.sum() + 0.5 * self.dim * (1 + math.log(2 * math.pi))

    def _absorb(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_sd.exp()
