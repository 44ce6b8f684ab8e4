"""The bookkeeping every likelihood shares: an event seen as colours by places."""

import math

import torch
from torch import Tensor

__all__ = ["Event", "real"]


def real(x: Tensor) -> Tensor:
    """Return x as float32, or as it is when it is float64: sums of logs need that much.

    >>> real(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


class Event:
    """An event `[C, *spatial]` as C colours at some places; a vector `[D]` is one colour, D places.

    >>> Event((3, 8, 8)).places
    64
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.shape = tuple(event_shape)
        self.colours = event_shape[0] if len(event_shape) > 1 else 1
        self.places = math.prod(event_shape) // self.colours

    def split(self, x: Tensor) -> Tensor:
        """Reshape `[batch, *event]` to `[batch, colours, places]`; one event becomes a batch."""
        return x.reshape(-1, self.colours, self.places)

    def join(self, x: Tensor) -> Tensor:
        """Reshape `[*lead, colours, places]` to `[*lead, *event]`."""
        return x.reshape(*x.shape[:-2], *self.shape)
