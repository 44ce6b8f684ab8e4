"""The prior p(z) and the approximate posterior q(z|x) over the latent space.

q(z|x) is the diagonal Gaussian N(mean, diag(sd²)), given as `mean` and `log_sd`: plain functions,
because an encoder makes a new q for every image. `draw` reparameterises, `kl_to_standard_normal`
is exact, `log_ratio_to_standard_normal` is its one-draw form; `draw_and_kl` does the first two with
a hand-written gradient. A prior has four methods: its exact KL from q, the same with a draw, the
log ratio of the two at a draw, and how to draw from it. There is one: `StandardNormal`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "StandardNormal",
    "draw",
    "draw_and_kl",
    "kl_to_standard_normal",
    "log_ratio_to_standard_normal",
]


def draw(mean: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return z = mean + sd · noise, differentiable in mean and log_sd.

    Reference: Kingma and Welling (2014), section 2.4.

    Args:
        mean: `[*batch, latent]`.
        log_sd: `[*batch, latent]`.
        noise: Standard normal, `[*draws, *batch, latent]`.

    Returns:
        `[*draws, *batch, latent]`.

    Example:
        >>> draw(torch.ones(2), torch.zeros(2), torch.tensor([0.5, -1.0]))
        tensor([1.5000, 0.0000])
    """
    return torch.addcmul(mean, log_sd.exp(), noise)


def kl_to_standard_normal(mean: Tensor, log_sd: Tensor) -> Tensor:
    """Return `KL(N(mean, sd²) ‖ N(0, 1)) = ½(mean² + sd² − 1) − log sd` per dimension, in nats.

    Exact, never negative: the part in sd is written `½(expm1(2 log sd) − 2 log sd)`, which keeps
    float32 accuracy near sd = 1.
    Reference: Kingma and Welling (2014), appendix B.

    Args:
        mean: Any shape.
        log_sd: The same shape.

    Returns:
        The same shape, in nats.

    Example:
        >>> kl_to_standard_normal(torch.tensor([0.0, 2.0]), torch.zeros(2))
        tensor([0., 2.])
    """
    twice = 2.0 * log_sd
    return 0.5 * (mean * mean + (torch.expm1(twice) - twice))


def log_ratio_to_standard_normal(z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return `log N(z; 0, I) − log q(z)` for `z = draw(mean, log_sd, noise)`, summed over latent.

    Its mean over draws is −KL(q ‖ N(0, I)).

    Args:
        z: `[*draws, *batch, latent]`.
        log_sd: `[*batch, latent]`.
        noise: `[*draws, *batch, latent]`, that z was drawn with.

    Returns:
        `[*draws, *batch]`, in nats.

    Example:
        >>> log_ratio_to_standard_normal(torch.tensor([3.0]), torch.zeros(1), torch.tensor([1.0]))
        tensor(-4.)
    """
    return (0.5 * (noise * noise - z * z) + log_sd).sum(-1)


def draw_and_kl(mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return `draw` and `kl_to_standard_normal` of the same arguments, as one operation.

    Args:
        mean: `[batch, latent]`.
        log_sd: `[batch, latent]`.
        noise: `[draws, batch, latent]`; no gradient flows to it.

    Returns:
        z `[draws, batch, latent]` and the KL `[batch, latent]`, in nats.

    Example:
        >>> draw_and_kl(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 1))
        (tensor([[[1.]]]), tensor([[0.5000]]))
    """
    z, kl = _DrawAndKl.apply(mean, log_sd, noise)  # type: ignore[no-untyped-call]
    return z, kl


class _DrawAndKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        spread = log_sd.exp().mul(noise)  # sd · noise, the draw's derivative by log sd
        ctx.save_for_backward(mean, log_sd, spread)
        return mean + spread, kl_to_standard_normal(mean, log_sd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> Any:
        mean, log_sd, spread = ctx.saved_tensors
        by_mean = torch.addcmul(by_z.sum(0), by_kl, mean)
        by_log_sd = torch.addcmul((by_z * spread).sum(0), by_kl, torch.expm1(2.0 * log_sd))
        return by_mean, by_log_sd, None


class StandardNormal:
    """The prior p(z) = N(0, I) in `latent` dimensions (MATH 1.1).

    Args:
        latent: How many dimensions z has.

    Example:
        >>> StandardNormal(2).kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([[0., 0.]])
    """

    def __init__(self, latent: int) -> None:
        self.latent = latent

    def kl(self, mean: Tensor, log_sd: Tensor) -> Tensor:
        """Return the exact KL(q ‖ p) per latent dimension, `[*batch, latent]`, in nats."""
        return kl_to_standard_normal(mean, log_sd)

    def draw_and_kl(self, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = mean + sd·noise `[draws, batch, latent]` and `kl`, as one operation."""
        return draw_and_kl(mean, log_sd, noise)

    def log_ratio(self, z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z) − log q(z) at `z = mean + sd·noise`, `[*draws, *batch]`, in nats."""
        return log_ratio_to_standard_normal(z, log_sd, noise)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]` on the generator's device."""
        return torch.randn(n, self.latent, generator=generator, device=generator.device)
