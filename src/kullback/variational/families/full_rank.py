"""The Gaussian with any covariance."""

import math

import torch
from torch import Tensor, nn

from kullback.variational.frame import Frame

from .factors import Lower
from .family import Draws, Family, normal_log_prob

__all__ = ["FullRank"]


class FullRank(Family):
    """`q(z) = N(mean, L Lᵀ)`: d(d + 3)/2 parameters, L lower triangular with a positive diagonal.

    Its log density and entropy are exact. The first choice up to a few hundred dimensions.

    >>> FullRank(Frame.identity(2)).entropy()
    tensor(2.8379, dtype=torch.float64, grad_fn=<AddBackward0>)
    """

    name, dense = "full_rank", True

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.mean = nn.Parameter(torch.zeros_like(self.shift))
        self.lower = Lower(self.dim)

    def _push(self, noise: Tensor) -> Draws:
        u = self.mean + self.lower.outwards(noise)
        return Draws(u, normal_log_prob(noise) - self.lower.log_diagonal.sum(), None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        squares = self.lower.squares(u, self.mean) + self.dim * math.log(2 * math.pi)
        return -0.5 * squares - self.lower.log_diagonal.sum()

    def _entropy(self) -> Tensor:
        return self.lower.log_diagonal.sum() + 0.5 * self.dim * (1 + math.log(2 * math.pi))

    def _absorb(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.lower()
