"""`Neighbours`: an image's pixels, each given z and the pixels beside and above it.

Given z alone, pixels are independent: what a code of some dozens of numbers cannot hold of a
texture counts as noise, pixel by pixel. Neighbouring pixels say most of it. The decoder runs once
whatever the neighbours are: its outputs hold, besides the likelihood's parameters, one weight a
neighbour. `InRasterOrder` is what such likelihoods share; `WithContext` is the other one.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kullback.core import require

from ..networks import real
from .events import Event, Likelihood
from .logistics import DiscretisedLogistics

__all__ = ["OFFSETS", "InRasterOrder", "Movable", "Neighbours", "padded"]

# of a neighbour from its pixel, to the right and down: left, above, above left, above right
OFFSETS = ((-1, 0), (0, -1), (-1, -1), (1, -1))


def padded(values: Tensor, reach: int) -> Tensor:
    """Return `[rows, C, H, W]` with `reach` zeros to the left, to the right and above."""
    return F.pad(values, (reach, reach, reach, 0))


class Movable(Likelihood, Protocol):
    """What `Neighbours` asks of a likelihood besides; `Bernoulli` and the logistics have it."""

    event: Event

    @property
    def moves(self) -> int:
        """How many parameters of a place move with the values of others."""
        ...

    def movers(self, values: Tensor) -> Tensor:
        """Return what each moves with, `[..., moves, places]`, of `[..., colours, places]`."""
        ...

    def unit(self, x: Tensor) -> Tensor:
        """Return values of x on a scale around 0."""
        ...

    def moved(self, parameters: Tensor, shift: Tensor) -> Tensor:
        """Return parameters with shift `[*lead, moves, places]` added to those that move."""
        ...

    def at(self, places: int) -> Self:
        """Return this likelihood for as many of its places, side by side."""
        ...


class InRasterOrder(nn.Module):
    """A likelihood of images in which a pixel depends on those before it, in rows from the top.

    `log p(x|z) = Σ_i log p(x_i | z, x_<i)`. Some parameters of pixel i, those that move (see
    `Movable`), are the decoder's plus `Σ_j w_ij f_j(x_<i)`, with weights that are outputs of the
    decoder, behind the likelihood's own channels: for each f one of every parameter that moves.
    A class derived from this one says what the f are.

    Args:
        likelihood: Of every pixel, of events `[C, H, W]`.
        count: How many f there are.
        reach: How many pixels to the right, to the left and up an f reads at most.

    Pixels with the same x + (reach + 1) y do not depend on each other, and are drawn at once.
    """

    def __init__(self, likelihood: Movable, count: int, reach: int) -> None:
        super().__init__()
        self.likelihood, self.event = likelihood, likelihood.event
        self.count, self.reach = count, reach
        self.channels = likelihood.channels + count * likelihood.moves

    def before(self, values: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]]:
        """Return a function of pixels' x and y that gives every f, `[rows, 1 or moves, pixels]`.

        It is called for each front in turn, once `values` holds all fronts before that one.

        values: what `unit` gives, 0 where there is none yet, `padded` by `reach`.
        """
        raise NotImplementedError

    def apart(self, parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the likelihood's parameters and the weights of each f."""
        sizes = [self.likelihood.channels, *[self.likelihood.moves] * self.count]
        own, *weights = torch.split(parameters, sizes, -2)
        return own, tuple(weights)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return each pixel's mean given z and the means of those before it, `[*lead, *event]`.

        An approximation of E[x|z], which has no formula: exact where the mean is linear in the
        pixels before it, as with `Neighbours` between the ends of the levels.
        """
        return self._in_fronts(parameters, lambda part, at: part.mean(at))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x, `[*lead, *event]`, in the data's units."""
        return self._in_fronts(parameters, lambda part, at: part.sample(at, generator))

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the likelihood's own, and weights of 0."""
        own = self.likelihood.initial_bias(mean)
        return torch.cat([own, own.new_zeros(self.channels - len(own), own.shape[1])])

    def _in_fronts(self, parameters: Tensor, take: Callable[[Movable, Tensor], Tensor]) -> Tensor:
        """Take the pixels front by front, each given those taken before, `[*lead, *event]`."""
        lead, (colours, height, width) = parameters.shape[: -self.event.axes], self.event.shape
        flat = self.event.in_rows(parameters).reshape(-1, self.channels, height * width)
        out = real(flat).new_zeros(len(flat), colours, height, width)
        values = padded(out, self.reach)
        before = self.before(values)
        for x, y in _fronts(height, width, self.reach + 1, out.device):
            part = self.likelihood.at(len(y))
            own, weights = self.apart(flat[..., y * width + x])
            shift = values.new_zeros(())
            for beside, weight in zip(before(x, y), weights, strict=True):
                shift = torch.addcmul(shift, beside, real(weight))
            taken = take(part, part.moved(own, shift)).to(out)
            out[..., y, x] = taken
            values[..., y + self.reach, x + self.reach] = self.likelihood.unit(taken)
        return out.reshape(*lead, *self.event.shape)


def _fronts(
    height: int, width: int, slope: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the columns and rows of the pixels with x + slope·y = 0, then 1, and so on."""
    for front in range(width + slope * (height - 1)):
        first = max(0, (front - width + slope) // slope)
        y = torch.arange(first, min(height - 1, front // slope) + 1, device=device)
        if len(y):
            yield front - slope * y, y


class Neighbours(InRasterOrder):
    """A likelihood of images in which a pixel depends on those before it, in rows from the top.

    `log p(x|z) = Σ_i log p(x_i | z, x_<i)`. Some parameters of pixel i are the decoder's plus
    `Σ_j w_ij v_j` over its neighbours j: the logit of a bit; the mixture's logits, and the means of
    a colour's logistics together. v_j is the neighbour's value from −1 to 1, of the same colour
    (for the mixture's logits the mean over colours), and 0 outside of the image; the weights w_ij
    are outputs of the decoder, around 0 at first. Exact: a product of conditionals.

    One pass gives the log-likelihood. Drawing takes W + 2(H − 1) steps: all pixels with the same
    x + 2y depend on earlier ones alone. After the likelihood's own channels come the weights,
    neighbour by neighbour, one for each parameter that moves.
    Reference: van den Oord et al. (2016), "Pixel Recurrent Neural Networks", section 2, for the
    factors; Gulrajani et al. (2017), "PixelVAE", for such a likelihood in a VAE.

    Args:
        likelihood: Of every pixel: `Bernoulli` or `DiscretisedLogistics`, of events `[C, H, W]`.
        count: How many neighbours: 1 is the left one, 2 the one above too, 3 and 4 those above to
            the left and the right too.

    Raises:
        ArgumentValueError: Events that are no images, or another count.

    Example:
        >>> from kullback.vae.likelihoods import Bernoulli
        >>> beside = Neighbours(Bernoulli((1, 1, 2)), 1)
        >>> strong = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])  # logits, weights of the left pixel
        >>> beside.log_prob(strong, torch.tensor([[[[1, 1]]]])).exp()
        tensor([0.4999])
    """

    def __init__(self, likelihood: Movable, count: int) -> None:
        shape = list(likelihood.event.shape)
        what = f"images [C, H, W], and 1 to {len(OFFSETS)}"
        fits = len(shape) == 3 and 1 <= count <= len(OFFSETS)
        require(fits, "neighbours", what, f"{count} of {shape}", "0 neighbours")
        super().__init__(likelihood, count, reach=1)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        height, width = self.event.shape[1:]
        values = padded(self.likelihood.unit(x.reshape(-1, *self.event.shape)), self.reach)
        around = [
            self.event.split(values[..., 1 + down : 1 + down + height, 1 + right :][..., :width])
            for right, down in OFFSETS[: self.count]
        ]
        fits = self.event.matches(parameters, self.channels, x)
        mixture = self.likelihood
        if isinstance(mixture, DiscretisedLogistics) and fits and mixture.compiles(parameters):
            return mixture.compiled(parameters, x, torch.cat(around, -2))
        own, weights = self.apart(parameters)
        shift = torch.zeros((), device=values.device, dtype=values.dtype)
        for beside, weight in zip(around, weights, strict=True):
            shift = torch.addcmul(shift, self.likelihood.movers(beside), real(weight))
        return self.likelihood.log_prob(self.likelihood.moved(own, shift), x)

    def before(self, values: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]]:
        """Return what gives the neighbours of some pixels, for each parameter that moves."""
        return lambda x, y: [
            self.likelihood.movers(values[..., y + 1 + down, x + 1 + right])
            for right, down in OFFSETS[: self.count]
        ]
