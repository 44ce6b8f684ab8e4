"""Named parameters with shapes and constraints, laid out on one unconstrained vector z.

Which to use: `Parameter(shape, constraint)` for one parameter, where a bare constraint, an integer
or a shape do as well; `Layout.of` for all of them, which `Target` makes for you.
`bijection(constraint, shape)` is the map from the real line onto one, with its Jacobian; `ordered`
is the constraint that PyTorch lacks (a vector that strictly increases). Every constraint of
`torch.distributions.constraints` that has a bijection from unconstrained reals is taken; matrices
are packed, so that no unconstrained number is without effect.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from kullback.core import ArgumentValueError, message, require, require_type

__all__ = ["Bijection", "Layout", "Parameter", "Parameters", "bijection", "ordered"]


class _Ordered(constraints.Constraint):
    """Vectors `[n]` whose entries strictly increase."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Say which vectors of `[*batch, n]` increase, bool `[*batch]`."""
        return (value.diff(dim=-1) > 0).all(-1)


ordered = _Ordered()

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Bijection:
    """A smooth one-to-one map from `size` reals onto values of one shape, with its Jacobian.

    size: how many unconstrained reals. shape: that of the value. forward: maps `[*batch, size]` to
    the value `[*batch, *shape]` and `log |det ∂value/∂reals|`, `[*batch]` (for a simplex or a
    correlation matrix, with respect to its free coordinates).
    """

    size: int
    shape: tuple[int, ...]
    forward: Forward


def bijection(constraint: Any, shape: tuple[int, ...]) -> Bijection:
    """Return the map from the real line onto `constraint`, for values of `shape`.

    Exact. Cholesky factors and positive definite matrices `[n, n]` take n(n+1)/2 reals, the logs of
    the factor's diagonal last; a vector that is `ordered` its first entry and the logs of its gaps;
    all else is PyTorch's `biject_to`.
    Errors: `ArgumentTypeError` for what is no constraint, `ArgumentValueError` for a constraint
    that no map from the reals reaches (integers) or for a shape that does not fit it.

    >>> value, log_jacobian = bijection(constraints.positive, ()).forward(torch.zeros(1))
    >>> value, log_jacobian
    (tensor(1.), tensor(0.))
    """
    hint = "torch.distributions.constraints.positive"
    require_type(constraint, constraints.Constraint, "constraint", hint)
    size = math.prod(shape)
    if isinstance(constraint, _Ordered):
        _need(len(shape) == 1, "ordered", "[n]", shape)
        return Bijection(size, shape, _increase)
    for known, forward in ((_LOWER, _lower), (_DEFINITE, _definite)):
        if isinstance(constraint, known):
            _need(len(shape) == 2 and shape[0] == shape[1], str(constraint), "[n, n]", shape)
            side = shape[0]
            return Bijection(side * (side + 1) // 2, shape, forward(side))
    return _of_torch(constraint, shape)


_LOWER = type(constraints.lower_cholesky)
_DEFINITE = type(constraints.positive_definite)


def _need(ok: bool, name: str, wanted: str, shape: tuple[int, ...]) -> None:  # noqa: FBT001
    require(ok, "shape", f"{wanted} for the constraint {name}", list(shape))


def _of_torch(constraint: Any, shape: tuple[int, ...]) -> Bijection:
    """Flatten the input of PyTorch's transform and sum its Jacobian."""
    try:
        transform: Any = biject_to(constraint)
    except NotImplementedError as error:
        hint = "leave it out of z and sum over it, or use a score-function estimator"
        words = message("constraint", "one that reals map onto", str(constraint), hint)
        raise ArgumentValueError(words) from error
    try:
        pointwise = constraint.event_dim == 0  # asking PyTorch would import sympy, half a second
        inner = shape if pointwise else tuple(transform.inverse_shape(torch.Size(shape)))
    except (ValueError, IndexError) as error:
        words = message("shape", f"one that fits {constraint}", list(shape))
        raise ArgumentValueError(words) from error

    def forward(reals: Tensor) -> tuple[Tensor, Tensor]:
        batch = reals.shape[:-1]
        x = reals.reshape((*batch, *inner))
        y: Tensor = transform(x)
        log_jacobian = transform.log_abs_det_jacobian(x, y)
        return y, log_jacobian.reshape((*batch, -1)).sum(-1)

    return Bijection(math.prod(inner), shape, forward)


def _increase(reals: Tensor) -> tuple[Tensor, Tensor]:
    gaps = reals[..., 1:]
    return torch.cat([reals[..., :1], gaps.exp()], -1).cumsum(-1), gaps.sum(-1)


def _lower(side: int) -> Forward:
    """Rows below the diagonal first, then the logs of the diagonal."""
    rows, columns = torch.tril_indices(side, side, -1)

    def forward(reals: Tensor) -> tuple[Tensor, Tensor]:
        below, logs = reals[..., : len(rows)], reals[..., len(rows) :]
        factor = torch.diag_embed(logs.exp())
        factor[..., rows, columns] = below
        return factor, logs.sum(-1)

    return forward


def _definite(side: int) -> Forward:
    """Multiply a factor by its transpose: `dA = 2ⁿ Π L_ii^(n − i + 1) dL`, i from 1."""
    factor_of = _lower(side)

    def forward(reals: Tensor) -> tuple[Tensor, Tensor]:
        factor, log_jacobian = factor_of(reals)
        powers = torch.arange(side, 0, -1, dtype=reals.dtype, device=reals.device)
        logs = reals[..., -side:]
        log_jacobian = log_jacobian + side * math.log(2.0) + (powers * logs).sum(-1)
        return factor @ factor.mT, log_jacobian

    return forward


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: the shape of its constrained value, and its constraint (by default none).

    Attributes:
        shape: of the constrained value; () for a scalar.
        constraint: one of `torch.distributions.constraints`, or `parameters.ordered`.

    Example:
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
