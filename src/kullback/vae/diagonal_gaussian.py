"""The diagonal Gaussian q(z) = N(mean, diag(sd²)), given as `mean` and `log_sd`.

Plain functions, because an encoder makes a new q for every image. `draw` reparameterises,
`kl_to_standard_normal` is exact, `log_ratio_to_standard_normal` is its one-draw form.
"""

import torch
from torch import Tensor

__all__ = ["draw", "kl_to_standard_normal", "log_ratio_to_standard_normal"]


def draw(mean: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return z = mean + sd · noise, differentiable in mean and log_sd.

    mean, log_sd: `[*batch, latent]`; noise ~ N(0, 1): `[*draws, *batch, latent]`.
    Reference: Kingma and Welling (2014), section 2.4.

    >>> draw(torch.ones(2), torch.zeros(2), torch.tensor([0.5, -1.0]))
    tensor([1.5000, 0.0000])
    """
    return torch.addcmul(mean, log_sd.exp(), noise)


def kl_to_standard_normal(mean: Tensor, log_sd: Tensor) -> Tensor:
    """Return `KL(N(mean, sd²) ‖ N(0, 1)) = ½(mean² + sd² − 1) − log sd` per dimension, in nats.

    mean, log_sd: any one shape; the result has it too. Exact, never negative: the part in sd is
    written `½(expm1(2 log sd) − 2 log sd)`, which keeps float32 accuracy near sd = 1.
    Reference: Kingma and Welling (2014), appendix B.

    >>> kl_to_standard_normal(torch.tensor([0.0, 2.0]), torch.zeros(2))
    tensor([0., 2.])
    """
    twice = 2.0 * log_sd
    return 0.5 * (mean * mean + (torch.expm1(twice) - twice))


def log_ratio_to_standard_normal(z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return `log N(z; 0, I) − log q(z)` for `z = draw(mean, log_sd, noise)`, summed over latent.

    z, noise: `[*draws, *batch, latent]`; log_sd: `[*batch, latent]`; the result `[*draws, *batch]`,
    in nats. Its mean over draws is −KL(q ‖ N(0, I)).

    >>> log_ratio_to_standard_normal(torch.tensor([3.0]), torch.zeros(1), torch.tensor([1.0]))
    tensor(-4.)
    """
    return (0.5 * (noise * noise - z * z) + log_sd).sum(-1)
