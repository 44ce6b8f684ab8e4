"""The Gaussian whose covariance is low rank plus diagonal."""

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from kullback.core import require
from kullback.variational.frame import Frame

from .family import Draws, Family

__all__ = ["LowRank"]


class LowRank(Family):
    """`q(z) = N(mean, D (I + F Fᵀ) D)`, F `[d, rank]`: (rank + 2) d parameters.

    For hundreds to thousands of dimensions with a few strong directions of dependence. Its log
    density and entropy are exact, at cost d · rank² (Woodbury). F starts with small fixed entries:
    F = 0 is a stationary point of every objective.

    Errors: `ArgumentValueError` for a rank outside 1 to d.

    >>> LowRank(Frame.identity(5), rank=2).noise_dim
    7
    """

    name, dense = "low_rank", False
    chosen = ("rank",)

    def __init__(self, frame: Frame, *, rank: int | None = None) -> None:
        super().__init__(frame)
        rank = min(self.dim, 10) if rank is None else rank
        require(1 <= rank <= self.dim, "rank", f"1 to {self.dim}", rank)
        self.rank, self.noise_dim = rank, self.dim + rank
        self.mean = nn.Parameter(torch.zeros_like(self.shift))
        self.log_sd = nn.Parameter(torch.zeros_like(self.shift))
        grid = torch.arange(self.dim * rank, dtype=self.shift.dtype)
        self.weights = nn.Parameter(0.1 * torch.sin(1 + grid * grid).reshape(self.dim, rank))

    def _law(self) -> LowRankMultivariateNormal:
        sd = self.log_sd.exp()
        return LowRankMultivariateNormal(
            self.mean, sd[:, None] * self.weights, sd.square(), validate_args=False
        )

    def _push(self, noise: Tensor) -> Draws:
        own, common = noise[:, : self.dim], noise[:, self.dim :]
        u = self.mean + self.log_sd.exp() * (own + common @ self.weights.mT)
        return Draws(u, self._log_prob(u), None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        value: Tensor = self._law().log_prob(u)  # type: ignore[no-untyped-call]
        return value

    def _entropy(self) -> Tensor:
        value: Tensor = self._law().entropy()  # type: ignore[no-untyped-call]
        return value

    def _absorb(self) -> None:
        return None
