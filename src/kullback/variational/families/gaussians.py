"""Square roots of a Gaussian's covariance, as modules: a triangle, or a diagonal.

Which to use: `Lower` where coordinates depend on each other, `Diagonal` where they do not, or where
d² numbers are too many. Both begin at the identity and keep a positive diagonal.

The Gaussian with independent coordinates.

The Gaussian whose covariance is low rank plus diagonal.

The Gaussian with any covariance.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from kullback.core import require

from .family import Draws, Family, Frame, normal_log_prob

__all__ = ["Diagonal", "FullRank", "LowRank", "Lower", "MeanField"]


class Lower(nn.Module):
    """The factor L `[*batch, d, d]`: logs of the diagonal and what lies below it, packed.

    >>> Lower(2)()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64, grad_fn=<IndexPutBackward0>)
    """

    def __init__(self, dim: int, *, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.rows, self.columns = torch.tril_indices(dim, dim, -1)
        self.log_diagonal = nn.Parameter(torch.zeros(*batch, dim, dtype=torch.float64))
        self.below = nn.Parameter(torch.zeros(*batch, len(self.rows), dtype=torch.float64))

    @torch.no_grad()
    def start_at(self, factor: Tensor) -> None:
        """Set the matrix to a given lower-triangular factor `[*batch, d, d]`."""
        self.log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
        self.below.copy_(factor[..., self.rows, self.columns])

    def outwards(self, noise: Tensor) -> Tensor:
        """Return L e for every row e of `[n, d]` or `[*batch, n, d]`."""
        matrix: Tensor = self()
        return noise @ matrix.mT

    def squares(self, u: Tensor, means: Tensor) -> Tensor:
        """Return `‖L⁻¹(u − mean)‖²`, u rows of `[n, d]`, means `[*batch, d]`: `[*batch, n]`."""
        whole = (u - means.unsqueeze(-2)).mT
        solved: Tensor = torch.linalg.solve_triangular(self(), whole, upper=False)
        return solved.square().sum(-2)

    def forward(self) -> Tensor:
        """Return the matrix, `[*batch, d, d]`."""
        matrix = torch.diag_embed(self.log_diagonal.exp())
        if matrix.ndim == 2:
            return matrix.index_put((self.rows, self.columns), self.below)
        which = torch.arange(len(matrix))[:, None]
        return matrix.index_put((which, self.rows, self.columns), self.below)


class Diagonal(nn.Module):
    """The factor diag(sd), `[*batch, d]` numbers.

    >>> Diagonal(2).outwards(torch.ones(1, 2, dtype=torch.float64))
    tensor([[1., 1.]], dtype=torch.float64, grad_fn=<MulBackward0>)
    """

    def __init__(self, dim: int, *, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(*batch, dim, dtype=torch.float64))

    @torch.no_grad()
    def start_at(self, sd: Tensor) -> None:
        """Set the deviations, `[*batch, d]`."""
        self.log_diagonal.copy_(sd.log())

    def outwards(self, noise: Tensor) -> Tensor:
        """Return sd ∘ e for every row e of `[n, d]` or `[*batch, n, d]`."""
        return noise * self.log_diagonal.exp().unsqueeze(-2)

    def squares(self, u: Tensor, means: Tensor) -> Tensor:
        """Return `‖(u − mean)/sd‖²` for rows u of `[n, d]` and means `[*batch, d]`: `[*batch, n]`.

        Multiplied out, so that it costs two matrix products and no array of `[*batch, n, d]`.
        """
        weight = (-2 * self.log_diagonal).exp()
        shifted = weight * means
        whole = weight @ u.square().mT - 2 * (shifted @ u.mT)
        return whole + (shifted * means).sum(-1, keepdim=True)


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
