"""Priors p(z) over the latent space. There is one so far: the standard normal.

A prior knows three things: its exact KL from a diagonal Gaussian, the log ratio of the two at a
draw, and how to draw.
"""

import torch
from torch import Tensor

from . import diagonal_gaussian
from .fast.fused import draw_and_kl

__all__ = ["StandardNormal"]


class StandardNormal:
    """The prior p(z) = N(0, I) in `latent` dimensions (MATH 1.1).

    >>> StandardNormal(2).kl(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([[0., 0.]])
    """

    def __init__(self, latent: int) -> None:
        self.latent = latent

    def kl(self, mean: Tensor, log_sd: Tensor) -> Tensor:
        """Return the exact KL(q ‖ p) per latent dimension, `[*batch, latent]`, in nats."""
        return diagonal_gaussian.kl_to_standard_normal(mean, log_sd)

    def draw_and_kl(self, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = mean + sd·noise `[draws, batch, latent]` and `kl`, as one operation."""
        return draw_and_kl(mean, log_sd, noise)

    def log_ratio(self, z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z) − log q(z) at `z = mean + sd·noise`, `[*draws, *batch]`, in nats."""
        return diagonal_gaussian.log_ratio_to_standard_normal(z, log_sd, noise)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]` on the generator's device."""
        return torch.randn(n, self.latent, generator=generator, device=generator.device)
