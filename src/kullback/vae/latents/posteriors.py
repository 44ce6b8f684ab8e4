"""The approximate posterior q(z|x) of a batch of images: what an encoder makes of them.

`DiagonalGaussian` is N(mean, diag(sd²)). A family of q has its moments `mean` and `log_sd`, a
reparameterised `draw`, `log_prob` at any z, and the noise that a draw was made from (`noise_of`).
The plain functions below it are those of the diagonal family and N(0, I): `draw` reparameterises,
`kl_to_standard_normal` is exact, `log_ratio_to_standard_normal` is its one-draw form, and
`draw_and_kl` does the first two with a hand-written gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.exact import HALF_LOG_2PI

__all__ = [
    "DiagonalGaussian",
    "Draws",
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


@dataclass(frozen=True, slots=True)
class Draws:
    """Reparameterised draws of q(z|x), `[*draws, *batch, latent]`.

    Args:
        z: The draws.
        noise: Standard normal numbers that they were made from, as z.
        log_det: log |det dz/dnoise|, `[*draws, *batch]` or `[*batch]`, in nats.
    """

    z: Tensor
    noise: Tensor
    log_det: Tensor

    @property
    def log_q(self) -> Tensor:
        """Return log q(z|x) at the draws, `[*draws, *batch]`, in nats."""
        squares = 0.5 * (self.noise * self.noise).sum(-1)
        return -squares - self.log_det - self.z.shape[-1] * HALF_LOG_2PI


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """q(z|x) = N(mean, diag(sd²)) of a batch.

    Args:
        mean: `[*batch, latent]`.
        log_sd: `[*batch, latent]`.

    Example:
        >>> q = DiagonalGaussian(torch.ones(1, 2), torch.zeros(1, 2))
        >>> q.draw(torch.zeros(1, 1, 2)).log_q.exp()  # 1/(2π)
        tensor([[0.1592]])
    """

    mean: Tensor
    log_sd: Tensor

    def __getitem__(self, part: slice) -> "DiagonalGaussian":
        """Return q of some of the images."""
        return DiagonalGaussian(self.mean[part], self.log_sd[part])

    def draw(self, noise: Tensor) -> Draws:
        """Return z = mean + sd·noise for noise `[*draws, *batch, latent]`."""
        return Draws(draw(self.mean, self.log_sd, noise), noise, self.log_sd.sum(-1))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return the noise that `draw` takes to z, `[*draws, *batch, latent]`."""
        return (z - self.mean) / self.log_sd.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats."""
        return Draws(z, self.noise_of(z), self.log_sd.sum(-1)).log_q

    def detached(self) -> "DiagonalGaussian":
        """Return this q without its graph."""
        return DiagonalGaussian(self.mean.detach(), self.log_sd.detach())

    def kl_to_standard_normal(self) -> Tensor:
        """Return the exact KL(q ‖ N(0, I)) of every latent dimension, `[*batch, latent]`."""
        return kl_to_standard_normal(self.mean, self.log_sd)
