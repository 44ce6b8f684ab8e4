"""`WithContext`: an image's pixels, each given z and learned features of the pixels before it.

`Neighbours` reads the nearest pixels as they are. Here a small convolution reads a window of them
and of what is further away, and the decoder's outputs weigh its features: a pixel's distribution
depends on z and on the pixels before it together. On a CPU the weighted sum, the log-likelihood and
the gradient are one pass in C (`step.c`), where it compiles: of bits, and, where they are trained
or lie in patches, of levels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kullback.core import require

from ..limits import CONTEXT_REACH
from ..networks import real
from .compiled import as_read, in_c, in_threads, library
from .events import Event
from .levels import Bernoulli
from .logistics import DiscretisedLogistics
from .neighbours import InRasterOrder, Movable, padded

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
        >>> before = features(one), features(other)
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

    def forward(self, values: Tensor) -> Tensor:
        """Return features `[batch, width, H, W]` of values `[batch, C, H, W]`, 0 outside."""
        own = self.first.dtype
        h = _causal(values.to(own), self.first, self.first_bias, CONTEXT_REACH)
        h = h.contiguous()  # not channels last
        for weight, bias in zip(self.further, self.biases, strict=True):
            h = h + _causal(F.silu(h), weight, bias, 2)
        return F.silu(h)

    def in_fronts(self, values: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of pixels' x and y that gives their features, `[batch, width, pixels]`.

        It is called for each front in turn, of pixels with the same x + (`CONTEXT_REACH` + 1) y,
        once values hold all fronts before that one. All calls together compute every feature once:
        what a convolution reads is kept.

        Args:
            values: `[batch, C, H, W]`, `padded` by `CONTEXT_REACH`; written to between calls.

        Returns:
            A function that gives what `forward` does, but for rounding.
        """
        own, reach = self.first.dtype, CONTEXT_REACH
        size = (values.shape[-2] - reach, values.shape[-1] - 2 * reach)
        empty = values.new_zeros((len(values), len(self.first), *size), dtype=own)
        kept = [padded(empty, 1) for _ in self.further]
        first = _at_pixels(self.first, self.first_bias, reach)
        pairs = zip(self.further, self.biases, strict=True)
        further = [_at_pixels(weight, bias, 2) for weight, bias in pairs]

        def features(x: Tensor, y: Tensor) -> Tensor:
            h = first(values, x, y)
            for read, convolve in zip(kept, further, strict=True):
                read[..., y + 1, x + 1] = F.silu(h).to(own)
                h = h + convolve(read, x, y)
            return F.silu(h)

        return features


def _filters(out: int, into: int, size: tuple[int, int], gain: float, numbers: int) -> nn.Parameter:
    """Return filters with standard deviation gain/√numbers, of which those after 0 are unused."""
    return nn.Parameter(torch.randn(out, into, *size) * (gain / math.sqrt(numbers)))


def _kept(weight: Tensor, upto: int) -> Tensor:
    """Return 0 for the places of filters that come after: in the last row from column `upto` on."""
    kept = torch.ones(weight.shape[-2:], dtype=weight.dtype, device=weight.device)
    kept[-1, upto:] = 0.0
    return kept


def _causal(values: Tensor, weight: Tensor, bias: Tensor, upto: int) -> Tensor:
    """Return the convolution by `_kept` filters at every place, `[batch, out, H, W]`.

    oneDNN pads below too, and those rows are cut: faster than a padded copy of the values.
    """
    reach = weight.shape[-2] - 1
    taller = F.conv2d(values, weight * _kept(weight, upto), bias, padding=reach)
    return taller[..., : values.shape[-2], :]


def _at_pixels(
    weight: Tensor, bias: Tensor, upto: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the convolution by `_kept` filters at some pixels, `[batch, out, pixels]`."""
    filters = weight * _kept(weight, upto)
    height, width = weight.shape[-2:]
    down = torch.arange(height, device=weight.device)[:, None, None]
    right = torch.arange(width, device=weight.device)

    def convolve(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        windows = values[..., y[:, None] + down, x[:, None] + right]  # side by side, in one row
        side_by_side = windows.flatten(-2).to(weight.dtype)
        return F.conv2d(side_by_side, filters, bias, stride=(1, width)).squeeze(-2)

    return convolve


class WithContext(InRasterOrder):
    """A likelihood of images in which a pixel depends on features of those before it.

    `log p(x|z) = Σ_i log p(x_i | z, x_<i)`. The parameters of pixel i that move (the logit of a
    bit; the mixture's logits, and the means of a colour's logistics together) are the decoder's
    plus `Σ_j w_ij(z) φ_ij(x_<i)`: features φ by `CausalFeatures`, weights w by the decoder. Exact:
    a product of conditionals. One pass gives the log-likelihood. Drawing takes
    W + (`CONTEXT_REACH` + 1)(H − 1) steps, which together compute every feature once.
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
        features = self.of_features.split(real(self.features(values)))
        pixels = self.likelihood
        if self.event.matches(parameters, self.channels, x):
            if type(pixels) is Bernoulli and in_c(parameters):
                return weighted_bits(parameters, self.event.split(x), features)
            if type(pixels) is DiscretisedLogistics and pixels.compiles(parameters):
                return pixels.compiled(parameters, x, features)
        sizes = [self.likelihood.channels, self.channels - self.likelihood.channels]
        own, weights = torch.split(parameters, sizes, -2)
        apart = (*weights.shape[:-2], self.count, self.likelihood.moves, weights.shape[-1])
        shift = (real(weights).reshape(apart) * features.unsqueeze(-2)).sum(-3)
        return self.likelihood.log_prob(self.likelihood.moved(own, shift), x)

    def before(self, values: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]]:
        """Return what gives the features of some pixels."""
        features = self.features.in_fronts(values)
        return lambda x, y: list(torch.split(real(features(x, y)), 1, 1))


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
