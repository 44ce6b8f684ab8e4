"""A mixture of full-rank Gaussians: for several peaks, and for shapes that one cannot follow."""

import math

import torch
from torch import Tensor, nn

from kullback.core import require
from kullback.variational.frame import Frame

from .family import Draws, Family, normal_log_prob
from .lower import Lower

__all__ = ["Mixture"]


class Mixture(Family):
    """`q(z) = Σ_k π_k N(mean_k, L_k L_kᵀ)`, with exact log density and no closed-form entropy.

    components: K. means, factors: where they start, in z, `[K, d]` and `[K, d, d]`; by default
    about the frame's centre. A reparameterised draw is stratified: the same noise goes through
    every component, and the draws of component k share π_k between them, so that gradients reach π.

    Errors: `ArgumentValueError` for fewer than one component or starts of another shape.

    >>> noise = torch.zeros(4, 1, dtype=torch.float64)
    >>> Mixture(Frame.identity(1), components=3).push(noise).z.shape
    torch.Size([12, 1])
    """

    name, dense = "mixture", True
    chosen = ("components",)

    def __init__(
        self,
        frame: Frame,
        *,
        components: int = 4,
        means: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__(frame)
        k, d = components if means is None else len(means), self.dim
        require(k >= 1, "components", "at least 1", k)
        self.components = k
        grid = torch.arange(1, k * d + 1, dtype=self.shift.dtype)
        around = torch.sin(grid * grid).reshape(k, d) if k > 1 else self.shift.new_zeros(k, d)
        placed = around if means is None else self.frame.inwards(means)
        self.means = nn.Parameter(placed.clone())
        self.log_shares = nn.Parameter(self.shift.new_zeros(k))
        self.lower = Lower(d, batch=(k,))
        if factors is not None:
            self.lower.start_at(torch.linalg.solve_triangular(self.scale, factors, upper=False))

    def _push(self, noise: Tensor) -> Draws:
        u = self.means[:, None] + noise @ self.lower().mT
        share = self.log_shares.softmax(0)[:, None].expand(-1, len(noise)) / len(noise)
        u = u.flatten(0, 1)
        return Draws(u, self._log_prob(u), share.flatten())

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        share = self.log_shares.softmax(0)
        which = share.multinomial(n, replacement=True, generator=generator)
        steps = torch.einsum("nij,nj->ni", self.lower()[which], self.noise(n, generator))
        return self.means[which] + steps

    def _log_prob(self, u: Tensor) -> Tensor:
        whole = (u - self.means[:, None]).mT
        noise = torch.linalg.solve_triangular(self.lower(), whole, upper=False).mT
        logs = self.log_shares.log_softmax(0) - self.lower.log_diagonal.sum(-1)
        return torch.logsumexp(logs[:, None] + normal_log_prob(noise), 0)

    def _entropy(self) -> Tensor | None:
        if len(self.means) > 1:
            return None
        return self.lower.log_diagonal.sum() + 0.5 * self.dim * (1 + math.log(2 * math.pi))

    def _absorb(self) -> None:
        return None
