"""What an event is (`Event`: where its numbers lie) and what a VAE asks of a likelihood."""

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Event", "Likelihood"]


class Event:
    """An event `[C, *spatial]` as C colours at some places; a vector `[D]` is one colour, D places.

    patch: side of the square patches whose pixels lie side by side in memory, where it is not 0:
    the axes are then (patch, colour, place in the patch).

    Example:
        >>> Event((3, 8, 8)).places
        64
        >>> Event((3, 8, 8), patch=4).split(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 3, 16])
    """

    def __init__(self, event_shape: tuple[int, ...], *, patch: int = 0) -> None:
        self.shape = tuple(event_shape)
        self.colours = event_shape[0] if len(event_shape) > 1 else 1
        self.patch = patch
        self.places = patch**2 or math.prod(event_shape) // self.colours
        self.axes = 3 if patch else 2

    def split(self, x: Tensor) -> Tensor:
        """Reshape `[batch, *event]` to `[batch, colours, places]`; one event becomes a batch."""
        if not self.patch:
            return x.reshape(-1, self.colours, self.places)
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = x.reshape(-1, self.colours, rows, self.patch, columns, self.patch)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(
            -1, rows * columns, *self.shape[:1], self.places
        )

    def matches(self, parameters: Tensor, channels: int, x: Tensor) -> bool:
        """Say whether parameters are `[*draws, batch, (patches,) channels, places]` for x's batch.

        That is how C reads them, without a look at their shape. An x of one event is for any batch.
        """
        batch, places = x.numel() // math.prod(self.shape), math.prod(self.shape[1:])
        patches = [places // self.places] if self.patch else []
        wanted = (*patches, channels, self.places)
        own = parameters.shape[-self.axes - 1] if parameters.dim() > self.axes else 1
        return parameters.shape[-self.axes :] == wanted and batch in (1, own)

    def join(self, x: Tensor) -> Tensor:
        """Reshape `[*lead, colours, places]` to `[*lead, *event]`."""
        lead = x.shape[: -self.axes]
        if not self.patch:
            return x.reshape(*lead, *self.shape)
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = x.reshape(-1, rows, columns, self.colours, self.patch, self.patch)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(*lead, *self.shape)

    def in_rows(self, parameters: Tensor) -> Tensor:
        """Bring `[*lead, (patches,) channels, places]` to `[*lead, channels, all places]`."""
        if not self.patch:
            return parameters
        lead, channels = parameters.shape[: -self.axes], parameters.shape[-2]
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = parameters.reshape(-1, rows, columns, channels, self.patch, self.patch)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(*lead, channels, math.prod(self.shape[1:]))


class Likelihood(Protocol):
    """What a VAE asks of a likelihood; any object with these members serves."""

    channels: int

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats, from x `[batch, *event]`."""
        ...

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected x, `[*lead, *event]`, in the data's units."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x, `[*lead, *event]`, in the data's units."""
        ...

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the decoder's best constant output `[channels, places]` for data of this mean."""
        ...
