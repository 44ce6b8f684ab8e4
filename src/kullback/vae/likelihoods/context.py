"""`WithContext`: an image's pixels, each given z and learned features of the pixels before it.

`Neighbours` reads the nearest pixels as they are. Here a small convolution reads a window of them
and of what is further away, and the decoder's outputs weigh its features: a pixel's distribution
depends on z and on the pixels before it together. Of bits on a CPU the weighted sum, the
log-likelihood and the gradient are one pass in C (`step.c`), where it compiles.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kullback.core import require

from ..limits import CONTEXT_REACH
from ..networks import real
from .levels import Bernoulli, Event, as_read, in_threads, library
from .neighbours import InRasterOrder, Movable

__all__ = ["CausalFeatures", "WithContext", "weighted_bits"]


class CausalFeatures(nn.Module):
    """Features of the pixels before each pixel, in rows from the top: `φ_i(x_<i)`.

    A convolution over the pixels to the left and above within `CONTEXT_REACH`, its own pixel left
    out, then residual 3x3 convolutions `h + conv(silu(h))` over features at and before each place.
    Reference: van den Oord et al. (2016), "Conditional image generation with PixelCNN decoders".

    Args:
        colours: C of the images.
        widths: Features, one equal number for the first convolution and each of those after it.

    Example:
        >>> features = CausalFeatures(1, (8, 8))
        >>> one, other = torch.zeros(2, 1, 1, 5, 5)
        >>> other[..., 2:, 3:] = 1.0  # the first pixel that reads these is at row 2, column 4
        >>> before = features(features.padded(one)), features(features.padded(other))
        >>> torch.equal(before[0][..., :2, :], before[1][..., :2, :])
        True
    """

    def __init__(self, colours: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        width, reach = widths[0], CONTEXT_REACH
        taps = reach * (2 * reach + 1) + reach
        self.first = _filters(width, colours, (reach + 1, 2 * reach + 1), 1.0, colours * taps)
        self.first_bias = nn.Parameter(torch.zeros(width))
        further = [_filters(width, width, (2, 3), 0.7, 5 * width) for _ in widths[1:]]
        self.further = nn.ParameterList(further)
        self.biases = nn.ParameterList([torch.zeros(width) for _ in widths[1:]])

    @staticmethod
    def padded(values: Tensor) -> Tensor:
        """Return values `[batch, C, H, W]` with the zeros that the first convolution reads."""
        return F.pad(values, (CONTEXT_REACH, CONTEXT_REACH, CONTEXT_REACH, 0))

    def forward(self, padded: Tensor) -> Tensor:
        """Return features `[batch, width, H, W]` of what `padded` gives."""
        own = self.first.dtype
        window = _causal(self.first, upto=CONTEXT_REACH)
        h = F.conv2d(padded.to(own), window, self.first_bias).contiguous()  # not channels last
        for weight, bias in zip(self.further, self.biases, strict=True):
            h = h + F.conv2d(F.pad(F.silu(h), (1, 1, 1, 0)), _causal(weight, upto=2), bias)
        return F.silu(h)


def _filters(out: int, into: int, size: tuple[int, int], gain: float, numbers: int) -> nn.Parameter:
    """Return filters with standard deviation gain/√numbers, of which those after 0 are unused."""
    return nn.Parameter(torch.randn(out, into, *size) * (gain / math.sqrt(numbers)))


def _causal(weight: Tensor, *, upto: int) -> Tensor:
    """Return filters with 0 for what comes after: in the last row from column `upto` on."""
    kept = torch.ones(weight.shape[-2:], dtype=weight.dtype, device=weight.device)
    kept[-1, upto:] = 0.0
    return weight * kept


class WithContext(InRasterOrder):
    """A likelihood of images in which a pixel depends on features of those before it.

    `log p(x|z) = Σ_i log p(x_i | z, x_<i)`. The parameters of pixel i that move (the logit of a
    bit; the mixture's logits, and the means of a colour's logistics together) are the decoder's
    plus `Σ_j w_ij(z) φ_ij(x_<i)`: features φ by `CausalFeatures`, weights w by the decoder. Exact:
    a product of conditionals. One pass gives the log-likelihood. Drawing takes
    W + (`CONTEXT_REACH` + 1)(H − 1) steps, each of which computes the features again.
    Reference: Gulrajani et al. (2017), "PixelVAE: a latent variable model for natural images".

    Args:
        likelihood: Of every pixel: `Bernoulli` or `DiscretisedLogistics`, of events `[C, H, W]`.
        widths: As in `CausalFeatures`.

    Raises:
        ArgumentValueError: Events that are no images.

    Example:
        >>> model = WithContext(Bernoulli((1, 2, 2)), (4,))
        >>> every = torch.tensor([[a, b, c, d] for a in (0, 1) for b in (0, 1) for c in (0, 1)
        ...                       for d in (0, 1)]).reshape(16, 1, 2, 2)
        >>> parameters = torch.randn(1, model.channels, 4).expand(16, -1, -1)
        >>> round(float(model.log_prob(parameters, every).exp().sum().detach()), 4)
        1.0
    """

    def __init__(self, likelihood: Movable, widths: tuple[int, ...]) -> None:
        shape = list(likelihood.event.shape)
        require(len(shape) == 3, "context", "images [C, H, W]", shape, "no context")
        super().__init__(likelihood, widths[0], CONTEXT_REACH)
        self.features = CausalFeatures(shape[0], widths)
        self.of_features = Event((widths[0], *shape[1:]), patch=likelihood.event.patch)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        values = self.likelihood.unit(x.reshape(-1, *self.event.shape))
        features = self.of_features.split(real(self.features(self.padded(values))))
        bits = type(self.likelihood) is Bernoulli and _compiles(parameters)
        if bits and self.event.matches(parameters, self.channels, x):
            return weighted_bits(parameters, self.event.split(x), features)
        sizes = [self.likelihood.channels, self.channels - self.likelihood.channels]
        own, weights = torch.split(parameters, sizes, -2)
        apart = (*weights.shape[:-2], self.count, self.likelihood.moves, weights.shape[-1])
        shift = (real(weights).reshape(apart) * features.unsqueeze(-2)).sum(-3)
        return self.likelihood.log_prob(self.likelihood.moved(own, shift), x)

    def before(self, values: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the features of some pixels."""
        found = real(self.features(values.clone()))[..., y, x]  # values are written to later
        return [found[:, place : place + 1] for place in range(self.count)]


def _compiles(parameters: Tensor) -> bool:
    """Say whether `weighted_bits` takes parameters: on a CPU, where `step.c` compiles."""
    known = parameters.dtype in (torch.float32, torch.bfloat16)
    plain = known and parameters.device.type == "cpu" and parameters.numel() > 0
    return plain and library() is not None


def weighted_bits(parameters: Tensor, x: Tensor, features: Tensor) -> Tensor:
    """Return `Σ_i log Bernoulli(x_i; l_i + Σ_j w_ij φ_j)`, compiled, with its gradient.

    Args:
        parameters: `[*draws, batch, C (1 + width), places]`: logits l, then for each feature the
            weights w of every colour; float32 or bfloat16, on the CPU.
        x: 0 and 1, `[batch, C, places]`.
        features: φ, float32 `[batch, width, places]`.

    Returns:
        `[*draws, batch]`, in nats, with gradients to parameters and features.
    """
    out: Tensor = _WeightedBits.apply(parameters, x, features)  # type: ignore[no-untyped-call]
    return out


class _WeightedBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, x: Tensor, features: Tensor) -> Tensor:
        given = [as_read(parameters), as_read(x.float()), as_read(features.float())]
        value = torch.empty(parameters.shape[:-2])
        residual = torch.empty((value.numel(), *x.shape[1:]))
        pointers = [tensor.data_ptr() for tensor in (*given, residual, value)]
        sizes = _sizes(given[0], given[1], given[2])
        in_threads(lambda a, b: library().bits_in_context(*pointers, a, b, *sizes), value.numel())  # type: ignore[union-attr]
        ctx.save_for_backward(given[0], given[2], residual)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        parameters, features, residual = ctx.saved_tensors
        factor = as_read(grad.float())
        by_parameters, by_features = torch.empty_like(parameters), torch.empty_like(features)
        given = (parameters, features, residual, factor, by_parameters, by_features)
        pointers = [tensor.data_ptr() for tensor in given]
        sizes = (factor.numel(), *_sizes(parameters, residual, features))
        in_threads(
            lambda a, b: library().bits_in_context_back(*pointers, a, b, *sizes),  # type: ignore[union-attr]
            len(features),
        )
        return by_parameters, None, by_features


def _sizes(parameters: Tensor, x: Tensor, features: Tensor) -> tuple[int, ...]:
    """Return batch, places, colours, width and whether parameters are bfloat16."""
    batch, width, places = features.shape
    return batch, places, x.shape[-2], width, int(parameters.dtype == torch.bfloat16)
