"""What a closed form between two families is: a function of two distributions, and its source.

Which to use: `Pair` to hold one; `in_float64` around a formula of the two distributions'
parameters; `scores_as` before a formula of a family is used for an instance of a subclass.

Two operations on Cholesky factors `[*batch, n, n]`, shared by the families that have one.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Pair",
    "Parameters",
    "float_dtype",
    "in_float64",
    "log_diagonal",
    "scores_as",
    "solve_lower",
]


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


def scores_as(p: Any, family: Any) -> bool:
    """Say whether p has the density of `family`, or a `log_prob` of its own, and so another one.

    A subclass of Normal that overrides `log_prob`, a truncated Normal for instance, has none of a
    Normal's divergences.

    Args:
        p: A torch distribution, an instance of `family`.
        family: A class of distributions.

    Returns:
        Whether p's class inherits the `log_prob` of `family`.

    Example:
        >>> import math
        >>> import torch.distributions as d
        >>> class Doubled(d.Normal):
        ...     def log_prob(self, value):
        ...         return super().log_prob(2 * value) + math.log(2)
        >>> scores_as(d.Chi2(3.0), d.Gamma), scores_as(Doubled(0.0, 1.0), d.Normal)
        (True, False)
    """
    return getattr(type(p), "log_prob", None) is getattr(family, "log_prob", None)


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


def float_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the float dtype of a value whose parameters have these dtypes, integers included.

    >>> float_dtype(torch.int64, torch.int64), float_dtype(torch.int64, torch.float64)
    (torch.float32, torch.float64)
    """
    shared: torch.dtype = reduce(torch.promote_types, dtypes)
    return shared if shared.is_floating_point else torch.get_default_dtype()


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
        return value.to(float_dtype(*dtypes)) if dtypes else value

    widened.__doc__ = formula.__doc__
    return widened


def solve_lower(tril: Tensor, columns: Tensor) -> Tensor:
    """Return `L⁻¹ X` for lower triangular L `[*batch, n, n]` and X `[*batch, n, k]`."""
    solution: Tensor = torch.linalg.solve_triangular(tril, columns, upper=False)
    return solution


def log_diagonal(tril: Tensor) -> Tensor:
    """Return `log det L`, `[*batch]`."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
