"""What a closed form between two families is: a function of two distributions, and its source.

Which to use: `Pair` to hold one; `in_float64` around a formula of the two distributions'
parameters.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "Parameters", "in_float64"]


def _never(*distributions: Any) -> Exception | None:
    return None


class Pair(NamedTuple):
    """A closed form `function(p, q) → [*batch]` in nats, and the reference it was taken from.

    refuses: `refuses(p, q)` returns None where the formula holds for these two distributions, else
    the error that says why not (unequal counts, transforms that differ).
    """

    function: Callable[..., Tensor]
    source: str
    refuses: Callable[..., Exception | None] = _never


class Parameters:
    """A distribution whose float parameters read as float64 (where the device has it).

    `given` is the distribution itself.

    >>> Parameters(torch.distributions.Exponential(torch.tensor(4.0))).rate
    tensor(4., dtype=torch.float64)
    """

    def __init__(self, distribution: Any) -> None:
        self.given, self.dtypes = distribution, set[torch.dtype]()

    def __getattr__(self, name: str) -> Tensor:
        value: Tensor = getattr(self.given, name)
        self.dtypes.add(value.dtype)
        return value if value.device.type == "mps" else value.double()


def in_float64(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `formula` with every parameter it reads in float64, its value in their own dtype.

    >>> from torch.distributions import Exponential
    >>> slow, fast = Exponential(torch.tensor(1.0)), Exponential(torch.tensor(4.0))
    >>> in_float64(lambda p, q: p.rate / q.rate)(slow, fast)
    tensor(0.2500)
    """

    def widened(*distributions: Any) -> Tensor:
        both = [Parameters(d) for d in distributions]
        value = formula(*both)
        dtypes = set[torch.dtype]().union(*(d.dtypes for d in both))
        return value.to(reduce(torch.promote_types, dtypes)) if dtypes else value

    widened.__doc__ = formula.__doc__
    return widened
