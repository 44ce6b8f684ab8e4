"""Named parameters with shapes and constraints, laid out on one unconstrained vector z.

Which to use: `Parameter(shape, constraint)` for one parameter, where a bare constraint, an integer
or a shape do as well; `Layout.of` for all of them, which `Target` makes for you.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

from torch import Tensor
from torch.distributions import constraints

from kullback.core import require, require_type

from .constraints import Bijection, bijection

__all__ = ["Layout", "Parameter", "Parameters"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: the shape of its constrained value, and its constraint (by default none).

    >>> Parameter((3,), constraints.simplex).shape
    (3,)
    """

    shape: tuple[int, ...] = ()
    constraint: Any = constraints.real


Parameters = int | Mapping[str, Parameter | constraints.Constraint | int | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each parameter lies on z: its bijection and its slice; `dim` reals in all.

    named: whether the user named the parameters; else there is one, "z", a vector.

    >>> shares = Parameter((3,), constraints.simplex)
    >>> layout = Layout.of({"mu": (), "tau": constraints.positive, "w": shares})
    >>> layout.dim, layout.names, layout.value_names
    (4, ('mu', 'tau', 'w{1}', 'w{2}'), ('mu', 'tau', 'w[1]', 'w[2]', 'w[3]'))
    """

    parts: dict[str, Bijection]
    dim: int
    named: bool

    @classmethod
    def of(cls, parameters: Parameters) -> "Layout":
        """Lay out an integer (that many unconstrained reals) or a mapping of names to parameters.

        Errors: `ArgumentTypeError` or `ArgumentValueError` for anything else, and for no
        parameters.
        """
        if isinstance(parameters, int) and not isinstance(parameters, bool):
            require(parameters >= 1, "parameters", "at least 1 dimension", parameters)
            return cls({"z": bijection(constraints.real, (parameters,))}, parameters, named=False)
        hint = 'pass the dimension of z, or {"mu": (), "tau": constraints.positive}'
        require_type(parameters, Mapping, "parameters", hint)
        parameters = cast("Mapping[str, Any]", parameters)
        require(len(parameters) > 0, "parameters", "at least one parameter", "none")
        parts = {name: _part(name, given) for name, given in parameters.items()}
        return cls(parts, sum(part.size for part in parts.values()), named=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the `dim` entries of z, one-based: `theta[3]`.

        Braces, `w{1}`, where the value has fewer or more entries than reals (a simplex, a matrix).
        """
        return tuple(n for name, part in self.parts.items() for n in _reals(name, part))

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of the entries of the constrained values, in their order."""
        return tuple(n for name, part in self.parts.items() for n in _entries(name, part.shape))

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Map z `[*batch, dim]` to values `[*batch, *shape]` by name, and log |det J|."""
        values, log_jacobian, start = {}, z.new_zeros(z.shape[:-1]), 0
        for name, part in self.parts.items():
            value, log_det = part.forward(z[..., start : start + part.size])
            values[name], log_jacobian = value, log_jacobian + log_det
            start += part.size
        return values, log_jacobian


def _part(name: str, given: Any) -> Bijection:
    hint = "a shape such as (3,), a constraint, or Parameter(shape, constraint)"
    require_type(name, str, "parameters", "names as keys")
    if isinstance(given, constraints.Constraint):
        given = Parameter((), given)
    elif isinstance(given, int | tuple | list) and not isinstance(given, bool):
        given = Parameter((given,) if isinstance(given, int) else tuple(given))
    require_type(given, Parameter, f"parameters[{name!r}]", hint)
    shape = (given.shape,) if isinstance(given.shape, int) else tuple(given.shape)
    whole = all(isinstance(side, int) and side >= 1 for side in shape)
    require(whole, f"parameters[{name!r}]", "a shape of positive integers", shape)
    return bijection(given.constraint, shape)


def _entries(name: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return [name]
    places = product(*(range(1, side + 1) for side in shape))
    return [f"{name}[{','.join(map(str, place))}]" for place in places]


def _reals(name: str, part: Bijection) -> list[str]:
    if part.size == math.prod(part.shape):
        return _entries(name, part.shape)
    return [f"{name}{{{place}}}" for place in range(1, part.size + 1)]
