"""A mixture of Gaussians: for several peaks, and for shapes that one cannot follow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kullback.core import require

from .family import Draws, Family, Frame
from .gaussians import Diagonal, Lower

__all__ = ["Mixture"]

FULL = 100  # dimensions up to which the default covariance is full


class Mixture(Family):
    """`q(z) = Σ_k π_k N(mean_k, L_k L_kᵀ)`, with exact log density and no closed-form entropy.

    components: K. covariance: "full" (L_k lower triangular) or "diagonal" in the frame's
    coordinates, a factor that all share; "auto" is full up to 100 dimensions, as a draw costs K d²
    with it. starts: a frame for each of the K, in which it begins as N(0, I); by default they lie
    about the frame's centre. A reparameterised draw is stratified: the same noise goes through
    every component, and the draws of component k share π_k between them, so that gradients reach π.

    Errors: `ArgumentValueError` for fewer than one component, an unknown covariance, or
    starts that are no frames of these dimensions.

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
        whole = len(frame.shift) <= FULL if covariance == "auto" else covariance == "full"
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
        logs = logs - 0.5 * self.dim * math.log(2 * math.pi)
        return torch.logsumexp(logs[:, None] - 0.5 * self.lower.squares(u, self.means), 0)

    def _entropy(self) -> Tensor | None:
        if len(self.means) > 1:
            return None
        return self.lower.log_diagonal.sum() + 0.5 * self.dim * (1 + math.log(2 * math.pi))

    def _absorb(self) -> None:
        return None
