"""The Student-t with any scale matrix: tails heavier than a Gaussian's."""

import math

import torch
from torch import Tensor, nn

from kullback.core import require
from kullback.variational.frame import Frame

from .family import Draws, Family
from .lower import Lower

__all__ = ["StudentT"]


class StudentT(Family):
    """`z = mean + L e √(ν/χ²_ν)`, e ~ N(0, I): a full-rank Student-t with ν degrees of freedom.

    For importance weights that stay bounded where a Gaussian's tails are too light. Its log density
    and entropy are exact. degrees: ν, a whole number of at least 1 that is chosen, not fitted; χ²
    is a sum of ν squared normals, so that draws are smooth in the noise.

    >>> StudentT(Frame.identity(2), degrees=5).noise_dim
    7
    """

    name, dense = "student_t", True
    chosen = ("degrees",)

    def __init__(self, frame: Frame, *, degrees: int = 5) -> None:
        super().__init__(frame)
        whole = isinstance(degrees, int) and degrees >= 1
        require(whole, "degrees", "a whole number of at least 1", degrees)
        self.degrees, self.noise_dim = degrees, self.dim + degrees
        self.mean = nn.Parameter(torch.zeros_like(self.shift))
        self.lower = Lower(self.dim)

    def _push(self, noise: Tensor) -> Draws:
        chi2 = noise[:, self.dim :].square().sum(-1, keepdim=True)
        t = noise[:, : self.dim] * (self.degrees / chi2).sqrt()
        return Draws(self.mean + t @ self.lower().mT, self._standard(t), None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        whole = (u - self.mean).mT
        return self._standard(torch.linalg.solve_triangular(self.lower(), whole, upper=False).mT)

    def _standard(self, t: Tensor) -> Tensor:
        power = 0.5 * (self.degrees + self.dim)
        squares = t.square().sum(-1) / self.degrees
        logs: Tensor = self.lower.log_diagonal
        return self._constant() - logs.sum() - power * squares.log1p()

    def _constant(self) -> float:
        nu, d = self.degrees, self.dim
        gammas = math.lgamma(0.5 * (nu + d)) - math.lgamma(0.5 * nu)
        return gammas - 0.5 * d * math.log(nu * math.pi)

    def _entropy(self) -> Tensor:
        halves = torch.tensor([self.degrees + self.dim, self.degrees], dtype=torch.float64) / 2
        digamma = torch.special.digamma(halves)
        value: Tensor = halves[0] * (digamma[0] - digamma[1]) + self.lower.log_diagonal.sum()
        return value - self._constant()

    def _absorb(self) -> None:
        return None
