"""Gaussian families, mixtures of Gaussians, and the Student-t, a Gaussian of random scale.

Which to use: `FullRank` up to a few hundred dimensions, `LowRank` or `MeanField` above, where d²
numbers are too many; `Mixture` for several peaks, and for shapes that one Gaussian cannot follow;
`StudentT` for heavy tails. `Lower` and `Diagonal` are the square roots of their covariances, as
modules: both begin at the identity and keep a positive diagonal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LowRankMultivariateNormal

from kullback.core import require
from kullback.exact import HALF_LOG_2PI, NORMAL_ENTROPY
from kullback.variational import limits

from .family import Draws, Family, Frame, normal_log_prob, student_t_constant, student_t_log_prob

__all__ = ["Diagonal", "FullRank", "LowRank", "Lower", "MeanField", "Mixture", "StudentT"]


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

    Args:
        frame: the coordinates, in which it begins as N(0, I).

    Example:
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
        return self.log_sd.sum() + self.dim * NORMAL_ENTROPY

    def _absorb(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_sd.exp()


class LowRank(Family):
    """`q(z) = N(mean, D (I + F Fᵀ) D)`, F `[d, rank]`: (rank + 2) d parameters.

    For hundreds to thousands of dimensions with a few strong directions of dependence. Its log
    density and entropy are exact, at cost d · rank² (Woodbury). F starts with small fixed entries:
    F = 0 is a stationary point of every objective.

    Args:
        frame: the coordinates, in which it begins near N(0, I).
        rank: columns of F, 1 to d; at most 10 by default.

    Raises:
        ArgumentValueError: for a rank outside 1 to d.

    Example:
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

    @torch.no_grad()
    def torch_distribution(self) -> Distribution:
        """Return q as torch's `LowRankMultivariateNormal` over z."""
        sd = self.scale * self.log_sd.exp()
        mean = self.frame.outwards(self.mean)
        return LowRankMultivariateNormal(mean, sd[:, None] * self.weights, sd.square())


class FullRank(Family):
    """`q(z) = N(mean, L Lᵀ)`: d(d + 3)/2 parameters, L lower triangular with a positive diagonal.

    Its log density and entropy are exact. The first choice up to a few hundred dimensions.

    Args:
        frame: the coordinates, in which it begins as N(0, I).

    Example:
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
        squares = self.lower.squares(u, self.mean)
        return -0.5 * squares - self.dim * HALF_LOG_2PI - self.lower.log_diagonal.sum()

    def _entropy(self) -> Tensor:
        return self.lower.log_diagonal.sum() + self.dim * NORMAL_ENTROPY

    def _absorb(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.lower()


class StudentT(Family):
    """`z = mean + L e √(ν/χ²_ν)`, e ~ N(0, I): a full-rank Student-t with ν degrees of freedom.

    For importance weights that stay bounded where a Gaussian's tails are too light. Its log density
    and entropy are exact. χ² is a sum of ν squared normals, so that draws are smooth in the noise.

    Args:
        frame: the coordinates, in which its scale matrix begins as I.
        degrees: ν, a whole number of at least 1 that is chosen, not fitted.

    Raises:
        ArgumentValueError: for any other ν.

    Example:
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
        log_det = self.lower.log_diagonal.sum()
        return student_t_log_prob(squares, self.dim, self.degrees, log_det)

    def _entropy(self) -> Tensor:
        halves = torch.tensor([self.degrees + self.dim, self.degrees], dtype=torch.float64) / 2
        digamma = torch.special.digamma(halves)
        value: Tensor = halves[0] * (digamma[0] - digamma[1]) + self.lower.log_diagonal.sum()
        return value - student_t_constant(self.dim, self.degrees)

    def _absorb(self) -> None:
        return None


class Mixture(Family):
    """`q(z) = Σ_k π_k N(mean_k, L_k L_kᵀ)`, with exact log density and no closed-form entropy.

    A reparameterised draw is stratified: the same noise goes through every component, and the draws
    of component k share π_k between them, so that gradients reach π.

    Args:
        frame: the coordinates.
        components: K.
        covariance: "full" (L_k lower triangular) or "diagonal" in the frame's coordinates, a factor
            that all share; "auto" is full up to 100 dimensions, as a draw costs K d² with it.
        starts: a frame for each of the K, in which it begins as N(0, I); by default they lie about
            the frame's centre.

    Raises:
        ArgumentValueError: for fewer than one component, an unknown covariance, or starts that are
            no frames of these dimensions.

    Example:
        >>> noise = torch.zeros(4, 1, dtype=torch.float64)
        >>> Mixture(Frame.identity(1), components=3).push(noise).z.shape
        torch.Size([12, 1])
    """

    name, dense = "mixture", True
    chosen = ("components", "covariance")

    def __init__(
        self,
        frame: Frame,
        *,
        components: int = 4,
        covariance: str = "auto",
        starts: Sequence[Frame] = (),
    ) -> None:
        known = covariance in ("auto", "full", "diagonal")
        require(known, "covariance", "auto, full or diagonal", repr(covariance))
        whole = (
            len(frame.shift) <= limits.MAX_MIXTURE_FULL_DIMENSIONS
            if covariance == "auto"
            else covariance == "full"
        )
        super().__init__(frame)
        self.covariance = "full" if whole else "diagonal"
        k, d = len(starts) or components, self.dim
        require(k >= 1, "components", "at least 1", k)
        alike = all(isinstance(one, Frame) and len(one.shift) == d for one in starts)
        require(alike, "starts", f"frames of {d} dimensions", starts)
        self.components = k
        grid = torch.arange(1, k * d + 1, dtype=self.shift.dtype)
        around = torch.sin(grid * grid).reshape(k, d) if k > 1 else self.shift.new_zeros(k, d)
        self.means = nn.Parameter(around)
        self.log_shares = nn.Parameter(self.shift.new_zeros(k))
        self.lower = Lower(d, batch=(k,)) if whole else Diagonal(d, batch=(k,))
        if starts:
            self._start_at(starts)

    @torch.no_grad()
    def _start_at(self, starts: Sequence[Frame]) -> None:
        seen = [self.frame.inside(start) for start in starts]
        self.means.copy_(torch.stack([one.shift for one in seen]))
        full = self.covariance == "full"
        self.lower.start_at(torch.stack([one.factor if full else one.sd for one in seen]))

    def _push(self, noise: Tensor) -> Draws:
        u = self.means[:, None] + self.lower.outwards(noise)
        share = self.log_shares.softmax(0)[:, None].expand(-1, len(noise)) / len(noise)
        u = u.flatten(0, 1)
        return Draws(u, self._log_prob(u), share.flatten())

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        share = self.log_shares.softmax(0)
        which = share.multinomial(n, replacement=True, generator=generator)
        every = self.means[:, None] + self.lower.outwards(self.noise(n, generator))
        return every[which, torch.arange(n)]

    def _log_prob(self, u: Tensor) -> Tensor:
        logs = self.log_shares.log_softmax(0) - self.lower.log_diagonal.sum(-1)
        logs = logs - self.dim * HALF_LOG_2PI
        return torch.logsumexp(logs[:, None] - 0.5 * self.lower.squares(u, self.means), 0)

    def _entropy(self) -> Tensor | None:
        if len(self.means) > 1:
            return None
        return self.lower.log_diagonal.sum() + self.dim * NORMAL_ENTROPY

    def _absorb(self) -> None:
        return None
