"""Encoder and decoder networks: `[batch, *event]` to a Gaussian, `[rows, latent]` to parameters.

Which to use: `Mlp` for small images, vectors and the classic models (784-200-200-50 with tanh is
Burda et al. 2016); the convolutional pair for images larger than 28x28 or in colour. An encoder
returns `(mean, log_sd)`, each `[batch, latent]`; a decoder returns `[rows, channels, places]`, the
parameters of the likelihood. Any module that does so can take their place.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kullback.core import require

from .events import real
from .fused import mlp

__all__ = ["ConvDecoder", "ConvEncoder", "Mlp", "MlpDecoder", "MlpEncoder"]

LOG_SD_LIMIT = 10.0  # e^±10 is far outside any useful posterior; beyond it exp() would overflow


class Mlp(nn.Module):
    """Linear layers of the given sizes with an activation between them, as one fused operation.

    sizes: `(in, hidden, …, out)`. Weights start as in Glorot and Bengio (2010), biases at 0.

    >>> Mlp((4, 8, 2))(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, sizes: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.activation = activation
        self.weights = nn.ParameterList([torch.empty(out, into) for into, out in pairs])
        self.biases = nn.ParameterList([torch.zeros(out) for _, out in pairs])
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[rows, in]` to `[rows, out]`."""
        return mlp(x, list(self.weights), list(self.biases), self.activation)


def _gaussian(output: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_sd = real(output).chunk(2, -1)
    return mean, log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT)


class MlpEncoder(nn.Module):
    """q(z|x) from a flat x: `[batch, *event]` to mean and log sd, `[batch, latent]` each.

    >>> MlpEncoder((1, 2, 2), (8,), 3)(torch.zeros(5, 1, 2, 2))[0].shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden: Sequence[int],
        latent: int,
        *,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.net = Mlp((math.prod(event_shape), *hidden, 2 * latent), activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log sd, `[batch, latent]` each."""
        return _gaussian(self.net(x.flatten(1)))


class MlpDecoder(nn.Module):
    """Parameters of p(x|z): `[rows, latent]` to `[rows, channels, places]`.

    bias: `[channels, places]`, the output to start from (`Likelihood.initial_bias`).

    >>> MlpDecoder(3, (8,), torch.zeros(1, 4))(torch.zeros(5, 3)).shape
    torch.Size([5, 1, 4])
    """

    def __init__(
        self, latent: int, hidden: Sequence[int], bias: Tensor, *, activation: str = "tanh"
    ) -> None:
        super().__init__()
        self.shape = tuple(bias.shape)
        self.net = Mlp((latent, *hidden, bias.numel()), activation)
        with torch.no_grad():
            self.net.biases[-1].copy_(bias.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, `[rows, channels, places]`."""
        out: Tensor = self.net(z).reshape(-1, *self.shape)
        return out


class _Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


def _pyramid(event_shape: Sequence[int], levels: int) -> list[tuple[int, int]]:
    """List the spatial sizes from the image down, halving and rounding up."""
    require(len(event_shape) == 3, "event_shape", "[C, H, W] for conv", list(event_shape), "mlp")
    sizes = [(int(event_shape[1]), int(event_shape[2]))]
    for _ in range(levels):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class ConvEncoder(nn.Module):
    """q(z|x) by stride-2 convolutions with a residual block after each, then one linear layer.

    hidden: the widths of the levels, each at half the size of the one before.

    >>> ConvEncoder((1, 28, 28), (8, 16), 3)(torch.zeros(2, 1, 28, 28))[1].shape
    torch.Size([2, 3])
    """

    def __init__(self, event_shape: Sequence[int], hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        height, width = _pyramid(event_shape, len(hidden))[-1]
        widths = (event_shape[0], *hidden)
        layers: list[nn.Module] = []
        for into, out in zip(widths, hidden, strict=False):
            layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), _Residual(out)]
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Flatten())
        self.head = nn.Linear(hidden[-1] * height * width, 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log sd, `[batch, latent]` each."""
        return _gaussian(self.head(self.body(x)))


class ConvDecoder(nn.Module):
    """Parameters of p(x|z): a linear layer, then nearest-neighbour upsampling and convolutions.

    hidden: widths as given to the encoder (used in reverse). bias: `[channels, places]`.

    >>> ConvDecoder((1, 28, 28), 3, (8, 16), torch.zeros(1, 784))(torch.zeros(2, 3)).shape
    torch.Size([2, 1, 784])
    """

    def __init__(
        self, event_shape: Sequence[int], latent: int, hidden: Sequence[int], bias: Tensor
    ) -> None:
        super().__init__()
        self.sizes = _pyramid(event_shape, len(hidden))[::-1]
        widths = (*hidden[::-1], hidden[0])
        self.head = nn.Linear(latent, widths[0] * math.prod(self.sizes[0]))
        pairs = list(itertools.pairwise(widths))
        self.blocks = nn.ModuleList([_Residual(into) for into, _ in pairs])
        self.convs = nn.ModuleList([nn.Conv2d(into, out, 3, padding=1) for into, out in pairs])
        self.out = nn.Conv2d(widths[-1], bias.shape[0], 3, padding=1)
        self.bias = nn.Parameter(bias.reshape(bias.shape[0], *self.sizes[-1]).clone())

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, `[rows, channels, places]`."""
        h = self.head(z).reshape(len(z), -1, *self.sizes[0])
        for block, conv, size in zip(self.blocks, self.convs, self.sizes[1:], strict=True):
            h = conv(F.interpolate(F.silu(block(h)), size=size, mode="nearest"))
        out: Tensor = (self.out(F.silu(h)) + self.bias).flatten(2)
        return out
