"""Named parameters with shapes and constraints, laid out on one unconstrained vector z.

Which to use: `Parameter(shape, constraint)` for one parameter, where a bare constraint, an integer
or a shape do as well; `Layout.of` for all of them, which `Target` makes for you.
`bijection(constraint, shape)` is the map from the real line onto one, with its Jacobian. Every
constraint of `torch.distributions.constraints` that has a bijection from unconstrained reals is
taken; matrices are packed, so that no unconstrained number is without effect. Those that PyTorch
lacks are `ordered`, `positive_ordered`, `sum_to_zero`, `unit_vector` and `corr_matrix`. A function
in place of a constraint gives bounds that depend on the parameters before it.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from kullback.core import ArgumentValueError, message, require, require_type

__all__ = [
    "Bijection",
    "Layout",
    "Parameter",
    "Parameters",
    "bijection",
    "corr_matrix",
    "ordered",
    "positive_ordered",
    "sum_to_zero",
    "unit_vector",
]


class _Ordered(constraints.Constraint):
    """Vectors `[n]` whose entries strictly increase."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Say which vectors of `[*batch, n]` increase, bool `[*batch]`."""
        return (value.diff(dim=-1) > 0).all(-1)


class _PositiveOrdered(constraints.Constraint):
    """Vectors `[n]` of positive entries that strictly increase."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Say which vectors of `[*batch, n]` are positive and increase, bool `[*batch]`."""
        return (value.diff(dim=-1) > 0).all(-1) & (value[..., 0] > 0)


class _SumToZero(constraints.Constraint):
    """Vectors `[n]` whose entries sum to 0 (to rounding)."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Say which vectors of `[*batch, n]` sum to 0, bool `[*batch]`."""
        room = 8 * torch.finfo(value.dtype).eps * value.abs().sum(-1)
        return value.sum(-1).abs() <= room


class _UnitVector(constraints.Constraint):
    """Vectors `[n]` of length 1 (to rounding): directions."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Say which vectors of `[*batch, n]` have length 1, bool `[*batch]`."""
        room = 8 * value.shape[-1] * torch.finfo(value.dtype).eps
        return (value.square().sum(-1) - 1).abs() <= room


class _CorrMatrix(constraints.Constraint):
    """Correlation matrices `[n, n]`: positive definite, with ones on the diagonal."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Say which matrices of `[*batch, n, n]` are correlation matrices, bool `[*batch]`."""
        room = 8 * value.shape[-1] * torch.finfo(value.dtype).eps
        ones = ((value.diagonal(dim1=-2, dim2=-1) - 1).abs() <= room).all(-1)
        definite: Tensor = torch.linalg.cholesky_ex(value).info == 0
        return ones & definite


ordered = _Ordered()
positive_ordered = _PositiveOrdered()
sum_to_zero = _SumToZero()
unit_vector = _UnitVector()
corr_matrix = _CorrMatrix()

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Bounds = Callable[[dict[str, Tensor]], constraints.Constraint]  # of one point's earlier values


@dataclass(frozen=True, slots=True)
class Bijection:
    """A smooth one-to-one map from `size` reals onto values of one shape, with its Jacobian.

    size: how many unconstrained reals. shape: that of the value. forward: maps `[*batch, size]` to
    the value `[*batch, *shape]` and `log |det ∂value/∂reals|`, `[*batch]` (for a simplex or a
    correlation matrix, with respect to its free coordinates). inverse: back from a value (for a
    unit vector one of many reals). bounds: where given, both maps are made anew from the values of
    the parameters before; see `given`.
    """

    size: int
    shape: tuple[int, ...]
    forward: Forward
    inverse: Callable[[Tensor], Tensor]
    bounds: Bounds | None = None

    def given(self, reals: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, with the bounds that the earlier values set at each point."""
        bounds = self.bounds
        if bounds is None:
            return self.forward(reals)

        def one(reals: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
            try:
                constraint = bounds(dict(zip(values, known, strict=True)))
            except KeyError as error:
                hint = f"put {error} before, in the mapping of parameters"
                words = message("bounds", f"parameters before: {[*values]}", f"{error}", hint)
                raise ArgumentValueError(words) from error
            value, log_jacobian = self.of(constraint).forward(reals)
            return value, _within(constraint, log_jacobian)

        batch = reals.shape[:-1]
        for _ in batch:
            one = torch.func.vmap(one)
        return one(reals, *values.values())

    def of(self, constraint: Any) -> "Bijection":
        """Return the map of one constraint that `bounds` returned."""
        hint = "constraints.less_than(a); a shape: Parameter((3,), lambda values: …)"
        require_type(constraint, constraints.Constraint, "bounds", hint)
        made = bijection(constraint, self.shape)
        if made.size != self.size:  # asked first: a constraint that vmap has cannot be printed
            words = f"a constraint of each entry, {self.size} reals"
            raise ArgumentValueError(
                message("bounds", words, f"{_spelled(constraint)}, {made.size}")
            )
        return made


def _within(constraint: Any, log_jacobian: Tensor) -> Tensor:
    """Return log |det J| where an interval is one, −inf where its lower end is not below."""
    low, high = _ends(constraint)
    if low is None or high is None:
        return log_jacobian
    empty = torch.as_tensor(low >= high).any()
    return torch.where(empty, -math.inf, log_jacobian)


def _ends(constraint: Any) -> tuple[Any, Any]:
    return getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)


def bijection(constraint: Any, shape: tuple[int, ...]) -> Bijection:
    """Return the map from the real line onto `constraint`, for values of `shape`.

    Exact. Cholesky factors and positive definite matrices `[n, n]` take n(n+1)/2 reals, the logs of
    the factor's diagonal last; a vector that is `ordered` its first entry and the logs of its gaps,
    `positive_ordered` the logs of all; `sum_to_zero` n − 1 reals, turned by an isometry;
    `corr_matrix` the n(n−1)/2 reals of PyTorch's `corr_cholesky`, times its transpose; all else is
    PyTorch's `biject_to`. A `unit_vector` is n reals over their length: no one-to-one map exists,
    and the length, on which the value does not depend, is standard normal's (as in Stan).
    Errors: `ArgumentTypeError` for what is no constraint, `ArgumentValueError` for a constraint
    that no map from the reals reaches (integers) or for a shape that does not fit it.

    >>> value, log_jacobian = bijection(constraints.positive, ()).forward(torch.zeros(1))
    >>> value, log_jacobian
    (tensor(1.), tensor(0.))
    """
    hint = "torch.distributions.constraints.positive"
    require_type(constraint, constraints.Constraint, "constraint", hint)
    low, high = _ends(constraint)
    if isinstance(low, int | float) and isinstance(high, int | float):
        require(low < high, "constraint", "a lower end below the upper", f"{low} and {high}")
    size = math.prod(shape)
    for kind, name, least, fewer, forward, inverse in _VECTORS:
        if isinstance(constraint, kind):
            _need(len(shape) == 1 and size >= least, name, f"[n], n at least {least}", shape)
            return Bijection(size - fewer, shape, forward, inverse)
    if isinstance(constraint, _CorrMatrix):
        _need(len(shape) == 2 and shape[0] == shape[1] >= 2, "corr_matrix", "[n, n]", shape)
        factor = _of_torch(constraints.corr_cholesky, shape)
        return Bijection(
            factor.size,
            shape,
            _correlations(factor, shape[0]),
            lambda value: factor.inverse(torch.linalg.cholesky(value)),
        )
    for known, matrix, back in ((_LOWER, _lower, _packed), (_DEFINITE, _definite, _factored)):
        if isinstance(constraint, known):
            _need(len(shape) == 2 and shape[0] == shape[1], _spelled(constraint), "[n, n]", shape)
            side = shape[0]
            return Bijection(side * (side + 1) // 2, shape, matrix(side), back)
    return _of_torch(constraint, shape)


_SIMPLEX = type(constraints.simplex)
_LOWER = type(constraints.lower_cholesky)
_DEFINITE = type(constraints.positive_definite)


def _need(ok: bool, name: str, wanted: str, shape: tuple[int, ...]) -> None:  # noqa: FBT001
    sides = "(3, 3)" if wanted == "[n, n]" else "(3,)"
    hint = f"Parameter({sides}, {name}), with the shape of its value"
    require(ok, "shape", f"{wanted} for the constraint {name}", list(shape), hint)


def _spelled(constraint: Any) -> str:
    """Return how a user writes a constraint: `constraints.simplex`, not `Simplex()`."""
    names = (name for name in constraints.__all__ if getattr(constraints, name) is constraint)
    found = next(names, None)
    return f"constraints.{found}" if found else str(constraint)


def _of_torch(constraint: Any, shape: tuple[int, ...]) -> Bijection:
    """Flatten the input of PyTorch's transform and sum its Jacobian."""
    try:
        transform: Any = biject_to(constraint)
    except NotImplementedError as error:
        hint = "leave it out of z and sum over it, or use a score-function estimator"
        words = message("constraint", "one that reals map onto", _spelled(constraint), hint)
        raise ArgumentValueError(words) from error
    try:
        pointwise = constraint.event_dim == 0  # asking PyTorch would import sympy, half a second
        inner = shape if pointwise else tuple(transform.inverse_shape(torch.Size(shape)))
    except (ValueError, IndexError) as error:
        spelled, sides = _spelled(constraint), "(3, 3)" if constraint.event_dim == 2 else "(3,)"
        hint = f"Parameter({sides}, {spelled}), with the shape of its value"
        words = message("shape", f"one that fits {spelled}", list(shape), hint)
        raise ArgumentValueError(words) from error

    def forward(reals: Tensor) -> tuple[Tensor, Tensor]:
        batch = reals.shape[:-1]
        x = reals.reshape((*batch, *inner))
        if isinstance(constraint, _SIMPLEX):
            shares, log_jacobian = _break_stick(x)
            return shares, log_jacobian.reshape((*batch, -1)).sum(-1)
        y: Tensor = transform(x)
        log_jacobian = transform.log_abs_det_jacobian(x, y)
        return y, log_jacobian.reshape((*batch, -1)).sum(-1)

    def inverse(value: Tensor) -> Tensor:
        reals: Tensor = transform.inv(value)
        return reals.reshape((*value.shape[: value.ndim - len(shape)], -1))

    return Bijection(math.prod(inner), shape, forward, inverse)


def _break_stick(reals: Tensor) -> tuple[Tensor, Tensor]:
    """Map n − 1 reals to n shares as PyTorch does, but in logs, which fall without a floor."""
    left = torch.arange(reals.shape[-1], 0, -1, dtype=reals.dtype, device=reals.device)
    u = reals - left.log()
    kept = torch.nn.functional.logsigmoid(-u)  # log of what is left of the stick, each time
    logs = torch.nn.functional.logsigmoid(u) + kept.cumsum(-1) - kept
    shares = torch.cat([logs, kept.sum(-1, keepdim=True)], -1).exp()
    return shares.clamp_min(torch.finfo(reals.dtype).tiny), (logs + kept).sum(-1)


def _increase(reals: Tensor) -> tuple[Tensor, Tensor]:
    gaps = reals[..., 1:]
    return torch.cat([reals[..., :1], gaps.exp()], -1).cumsum(-1), gaps.sum(-1)


def _increase_from_zero(reals: Tensor) -> tuple[Tensor, Tensor]:
    return reals.exp().cumsum(-1), reals.sum(-1)


def _balance(reals: Tensor) -> tuple[Tensor, Tensor]:
    """Turn n − 1 reals into n that sum to 0, by orthonormal contrasts (Helmert's)."""
    k = torch.arange(1, reals.shape[-1] + 1, dtype=reals.dtype, device=reals.device)
    scaled = reals / (k * (k + 1)).sqrt()
    after = torch.nn.functional.pad(scaled, (0, 1)).flip(-1).cumsum(-1).flip(-1)
    value = after - torch.nn.functional.pad(scaled * k, (1, 0))
    return value, reals.new_zeros(reals.shape[:-1])


def _contrasts(value: Tensor) -> Tensor:
    """Undo `_balance`: the products with the same orthonormal contrasts."""
    k = torch.arange(1, value.shape[-1], dtype=value.dtype, device=value.device)
    before = value.cumsum(-1)[..., :-1]
    return (before - k * value[..., 1:]) / (k * (k + 1)).sqrt()


def _gaps(value: Tensor) -> Tensor:
    return torch.cat([value[..., :1], value.diff(dim=-1).log()], -1)


def _logs_of_gaps(value: Tensor) -> Tensor:
    return torch.cat([value[..., :1], value.diff(dim=-1)], -1).log()


def _packed(factor: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(factor.shape[-1], factor.shape[-1], -1)
    logs = factor.diagonal(dim1=-2, dim2=-1).log()
    return torch.cat([factor[..., rows, columns], logs], -1)


def _factored(value: Tensor) -> Tensor:
    return _packed(torch.linalg.cholesky(value))


def _direct(reals: Tensor) -> tuple[Tensor, Tensor]:
    square = reals.square().sum(-1)
    return reals / square.sqrt()[..., None], -0.5 * square


_VECTORS: tuple[tuple[type, str, int, int, Forward, Callable[[Tensor], Tensor]], ...] = (
    (_Ordered, "ordered", 1, 0, _increase, _gaps),
    (_PositiveOrdered, "positive_ordered", 1, 0, _increase_from_zero, _logs_of_gaps),
    (_SumToZero, "sum_to_zero", 2, 1, _balance, _contrasts),
    (_UnitVector, "unit_vector", 2, 0, _direct, Tensor.clone),
)


def _correlations(factor: Bijection, side: int) -> Forward:
    """Multiply a factor by its transpose: `dR = Π L_kk^(n − k) dL`, k from 1."""

    def forward(reals: Tensor) -> tuple[Tensor, Tensor]:
        lower, log_jacobian = factor.forward(reals)
        powers = torch.arange(side - 1, -1, -1, dtype=reals.dtype, device=reals.device)
        logs = lower.diagonal(dim1=-2, dim2=-1).log()
        return lower @ lower.mT, log_jacobian + (powers * logs).sum(-1)

    return forward


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
        constraint: one of `torch.distributions.constraints`; or `ordered`, `positive_ordered`,
            `sum_to_zero`, `unit_vector`, `corr_matrix` of `kullback.variational`; or a function of
            the values of the parameters before it, at one point, that returns a constraint of each
            entry (an interval, `greater_than`, `less_than`).

    Example:
        >>> Parameter((3,), constraints.simplex).shape
        (3,)
        >>> layout = Layout.of(
        ...     {"top": constraints.positive, "x": lambda v: constraints.interval(0, v["top"])}
        ... )
        >>> layout.constrain(torch.zeros(2))[0]["x"]
        tensor(0.5000)
    """

    shape: tuple[int, ...] = ()
    constraint: Any = constraints.real


Parameters = int | Mapping[str, Parameter | constraints.Constraint | Bounds | int | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each parameter lies on z: its bijection and its slice; `dim` reals in all.

    named: whether the user named the parameters; else there is one, "z", a vector. outside: where
    another program has the constraints, its map from z `[n, dim]` to values by name, and their
    shapes.

    >>> shares = Parameter((3,), constraints.simplex)
    >>> layout = Layout.of({"mu": (), "tau": constraints.positive, "w": shares})
    >>> layout.dim, layout.names, layout.value_names
    (4, ('mu', 'tau', 'w{1}', 'w{2}'), ('mu', 'tau', 'w[1]', 'w[2]', 'w[3]'))
    """

    parts: dict[str, Bijection]
    dim: int
    named: bool
    outside: "Outside | None" = None

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
        dim = sum(part.size for part in parts.values())
        require(dim > 0, "parameters", "at least one that can vary", f"constants {[*parts]}")
        made = cls(parts, dim, named=True)
        if any(part.bounds is not None for part in parts.values()):
            made.constrain(torch.zeros(dim))  # so that wrong bounds are refused here
        return made

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the constrained values, by name."""
        if self.outside is not None:
            return self.outside.shapes
        return {name: part.shape for name, part in self.parts.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the `dim` entries of z, one-based: `theta[3]`.

        Braces, `w{1}`, where the value has fewer or more entries than reals (a simplex, a matrix).
        """
        return tuple(n for name, part in self.parts.items() for n in _reals(name, part))

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of the entries of the constrained values, in their order."""
        return tuple(n for name, shape in self.shapes.items() for n in _entries(name, shape))

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Map z `[*batch, dim]` to values `[*batch, *shape]` by name, and log |det J|."""
        if self.outside is not None:
            return self.outside.constrain(z), z.new_zeros(z.shape[:-1])
        values: dict[str, Tensor] = {}
        log_jacobian, start = z.new_zeros(z.shape[:-1]), 0
        for name, part in self.parts.items():
            value, log_det = part.given(z[..., start : start + part.size], values)
            values[name], log_jacobian = value, log_jacobian + log_det
            start += part.size
        return values, log_jacobian

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """Map one value of every parameter, by name, to z `[dim]`, float64.

        Errors: `ArgumentValueError` for a missing or unknown name, another shape, or a value that
        its constraint does not allow.

        >>> layout = Layout.of({"mu": (), "tau": constraints.positive})
        >>> layout.unconstrain({"mu": 3.0, "tau": 1.0})
        tensor([3., 0.], dtype=torch.float64)
        """
        if self.outside is not None and self.outside.inverse is not None:
            return torch.as_tensor(self.outside.inverse(values), dtype=torch.float64)
        known = self.outside is None
        require(known, "values", "z itself, unconstrained", "values of another program's model")
        require(set(values) == set(self.parts), "values", f"names {[*self.parts]}", [*values])
        done: dict[str, Tensor] = {}
        reals = []
        for name, part in self.parts.items():
            value = torch.as_tensor(values[name], dtype=torch.float64)
            same = tuple(value.shape) == part.shape
            require(same, name, f"shape {list(part.shape)}", list(value.shape))
            back = part if part.bounds is None else part.of(part.bounds(done))
            try:
                reals.append(back.inverse(value).reshape(-1))
            except RuntimeError as error:  # no Cholesky factor
                raise ArgumentValueError(
                    message(name, "a value its constraint allows", value)
                ) from error
            ok = bool(reals[-1].isfinite().all())
            require(ok, name, "a value inside its constraint", value.tolist())
            done[name] = value
        return torch.cat(reals)


@dataclass(frozen=True, slots=True)
class Outside:
    """Another program's map from unconstrained z to named values, `[n, *shape]` each.

    inverse: back from one value of every parameter, by name, to z `[dim]`, where it has one.
    """

    function: Callable[[Tensor], Mapping[str, Any]]
    shapes: dict[str, tuple[int, ...]]
    inverse: Callable[[Mapping[str, Any]], Any] | None = None

    @classmethod
    def of(
        cls,
        function: Callable[[Tensor], Mapping[str, Any]],
        dim: int,
        inverse: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> "Outside":
        """Ask for the values at one point, to know names and shapes."""
        values = function(torch.zeros(1, dim, dtype=torch.float64))
        require_type(values, Mapping, "constrain", "a mapping of names to arrays [n, *shape]")
        shapes = {}
        for name, value in values.items():
            shape = tuple(torch.as_tensor(value).shape)
            require(shape[:1] == (1,), f"constrain: {name}", "an array [n, *shape]", list(shape))
            shapes[name] = shape[1:]
        return cls(function, shapes, inverse)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Return the values at z `[*batch, dim]`, `[*batch, *shape]` each, without a graph."""
        flat = z.detach().reshape(-1, z.shape[-1])
        values = self.function(flat)
        return {
            name: torch.as_tensor(values[name], dtype=torch.float64).reshape(
                (*z.shape[:-1], *shape)
            )
            for name, shape in self.shapes.items()
        }


def _part(name: str, given: Any) -> Bijection:
    hint = "a shape such as (3,), a constraint, or Parameter(shape, constraint)"
    require_type(name, str, "parameters", "names as keys")
    if isinstance(given, tuple | list):
        mixed = any(isinstance(one, constraints.Constraint) for one in given)
        two = "Parameter((3,), constraints.positive), for a shape with a constraint"
        require(not mixed, f"parameters[{name!r}]", "a shape", "a tuple with a constraint", two)
    if isinstance(given, constraints.Constraint) or inspect.isfunction(given):
        given = Parameter((), given)
    elif isinstance(given, int | tuple | list) and not isinstance(given, bool):
        given = Parameter((given,) if isinstance(given, int) else tuple(given))
    require_type(given, Parameter, f"parameters[{name!r}]", hint)
    shape = (given.shape,) if isinstance(given.shape, int) else tuple(given.shape)
    whole = all(isinstance(side, int) and side >= 1 for side in shape)
    require(whole, f"parameters[{name!r}]", "a shape of positive integers", shape)
    if inspect.isfunction(given.constraint):
        free = bijection(constraints.real, shape)
        return replace(free, bounds=given.constraint)
    try:
        return bijection(given.constraint, shape)
    except ArgumentValueError as error:
        raise ArgumentValueError(f"parameters[{name!r}]: {error}") from error


def _entries(name: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return [name]
    places = product(*(range(1, side + 1) for side in shape))
    return [f"{name}[{','.join(map(str, place))}]" for place in places]


def _reals(name: str, part: Bijection) -> list[str]:
    if part.size == math.prod(part.shape):
        return _entries(name, part.shape)
    return [f"{name}{{{place}}}" for place in range(1, part.size + 1)]
