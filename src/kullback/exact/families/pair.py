"""What a closed form between two families is: a function of two distributions, and its source.

Which to use: `Pair` to hold one; `on` to write one as a function of parameters.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "on"]


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


def on(*names: str, double: bool = False) -> Callable[..., Callable[[Any, Any], Tensor]]:
    """Turn `f(p's parameters, q's parameters)` into a function of two distributions.

    double: compute in float64 where the device has it, and return the parameters' own dtype. The
    formulas that subtract log-gamma values lose all float32 digits otherwise.

    >>> from torch.distributions import Exponential
    >>> slow, fast = Exponential(torch.tensor(1.0)), Exponential(torch.tensor(4.0))
    >>> on("rate")(lambda p, q: p / q)(slow, fast)
    tensor(0.2500)
    """

    def wrap(function: Callable[..., Tensor]) -> Callable[[Any, Any], Tensor]:
        def pair(p: Any, q: Any) -> Tensor:
            parameters = [getattr(d, name) for d in (p, q) for name in names]
            if not double or parameters[0].device.type == "mps":
                return function(*parameters)
            dtype = reduce(torch.promote_types, (t.dtype for t in parameters))
            return function(*(t.double() for t in parameters)).to(dtype)

        pair.__doc__ = function.__doc__
        return pair

    return wrap
