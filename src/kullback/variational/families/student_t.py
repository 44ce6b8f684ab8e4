"""The Student-t with any scale matrix: tails heavier than a Gaussian's."""

import math

import torch
from torch import Tensor, nn

from kullback.core import require

from .family import Draws, Family, Frame
from .gaussians import Lower

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

    def balanced(self, noise: Tensor) -> Tensor:
        """Give the draws that fixed noise is pushed to their exact covariance, `ν/(ν−2)` of L Lᵀ.

        The noise is whitened anew for what the divisor √(χ²/ν) has made of it: then a Gaussian
        target is fitted as exactly as a Gaussian q fits it. For ν ≤ 2, where there is no
        covariance, and where draws are too few to have one, it is left as it is.
        """
        if self.degrees <= 2 or len(noise) < 4 * self.dim:
            return noise
        stretch = self._stretch(noise)
        t = stretch * noise[:, : self.dim]
        spread = t.mT @ t * ((self.degrees - 2) / (self.degrees * len(noise)))
        root = torch.linalg.cholesky(spread)
        white = torch.linalg.solve_triangular(root, noise[:, : self.dim].mT, upper=False).mT
        return torch.cat([white, noise[:, self.dim :]], 1)

    def _stretch(self, noise: Tensor) -> Tensor:
        """Return √(ν/χ²_ν) of noise `[n, noise_dim]`, `[n, 1]`."""
        return (self.degrees / noise[:, self.dim :].square().sum(-1, keepdim=True)).sqrt()

    def _push(self, noise: Tensor) -> Draws:
        t = self._stretch(noise) * noise[:, : self.dim]
        return Draws(self.mean + self.lower.outwards(t), self._standard(t.square().sum(-1)), None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        return self._standard(self.lower.squares(u, self.mean))

    def _standard(self, squares: Tensor) -> Tensor:
        power = 0.5 * (self.degrees + self.dim)
        logs: Tensor = self.lower.log_diagonal
        return self._constant() - logs.sum() - power * (squares / self.degrees).log1p()

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
