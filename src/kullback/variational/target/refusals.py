"""Points that a density refuses: log p is −inf there, and they are counted.

Which to use: `surviving` for a function vectorised by torch, `without_nan` for another program.
A matrix that cannot be factored (`torch.linalg.LinAlgError`) and a distribution that refuses its
arguments (`ValueError`) are refusals of a point; what else is raised passes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kullback.core import ArgumentTypeError, message
from kullback.variational import limits

from .functions import PointDensity, Score
from .programs import Model

__all__ = ["UNFACTORED", "Refusals", "factored", "refuses_one_of_two", "surviving", "without_nan"]

UNFACTORED: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

ITEM = ".item() on a Tensor"  # under vmap a distribution that refuses its arguments fails at this

CHOLESKY = (torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky)


@dataclass(slots=True)
class Refusals:
    """How many points a density refused, by an exception, the last one and its first words.

    value: the log p of a refused point. accepted: whether any was taken. first: points refused
    before that. taken: a point at which log p was finite when the target was made.
    """

    count: int = 0
    words: str = ""
    last: Exception | None = None
    value: float = -math.inf
    accepted: bool = False
    first: int = 0
    taken: Tensor | None = None

    @contextlib.contextmanager
    def unknown(self) -> Iterator[None]:
        """Let log p be NaN at refused points, not −inf, and count none, while rays are followed."""
        before, self.value = (self.count, self.words), math.nan
        try:
            yield
        finally:
            (self.count, self.words), self.value = before, -math.inf

    def add(self, error: Exception) -> None:
        """Count one point; raise where the function fails, not a point: it refused all so far."""
        self.count += 1
        self.first += 0 if self.accepted else 1
        self.last = error
        self.words = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if not self.accepted and self.first >= limits.MAX_FIRST_REFUSALS:
            got = f"a refusal of each of the first {self.first} points: {self.words}"
            hint = "finite data of one length, constraints, or init= at a point that it takes"
            raise ArgumentTypeError(message("log_density", "a log density", got, hint)) from error

    def __str__(self) -> str:
        points = "point" if self.count == 1 else "points"
        if not self.count:
            return ""
        return f"{self.count:,} {points} refused by log_density count as log p = -inf: {self.words}"


def surviving(
    many: PointDensity,
    one: PointDensity,
    refusals: Refusals,
    factored: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> PointDensity:
    """Give −inf to points that the density refuses by an exception, and count them.

    A matrix that cannot be factored, or a distribution that refuses its arguments: `factored` (see
    `factored`) finds those points in one call. Points that anything else refuses are found by
    halving.
    """

    def survived(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
        try:
            found = many(values, *batch)
            refusals.accepted = True
            return found
        except (UNFACTORED, ValueError, RuntimeError) as error:
            if not _refuses(error):
                raise
            many_points = len(next(iter(values.values()))) > 1
            at_once = factored is not None and (many_points or isinstance(error, UNFACTORED))
            others = _found(values, batch) if at_once else None
            return _halved(values, batch) if others is None else others

    def _found(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor | None:
        try:
            result, bad, invalid = cast(Any, factored)(values, *batch)
            bad = bad | invalid
            if bool(bad.all()):
                return _none(values, batch)
            if bool(invalid.any()):  # NaN there would reach the gradient: another point's value
                spare = torch.where(bad, int((~bad).nonzero()[0]), torch.arange(len(bad)))
                result = many({k: v[spare] for k, v in values.items()}, *batch)
        except (UNFACTORED, ValueError, RuntimeError):
            return None  # something else fails as well
        places = bad.nonzero().flatten()
        if len(places) == 0:
            return None
        refusals.accepted = True
        first = int(places[0])
        _alone(one, {k: v[first : first + 1] for k, v in values.items()}, batch, refusals)
        refusals.count += len(places) - 1
        return torch.where(bad[:, None] if result.ndim > 1 else bad, refusals.value, result)

    def _none(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        count = len(next(iter(values.values())))
        if not refusals.accepted:
            refusals.first += count - 1
        one_point = _alone(one, {k: v[:1] for k, v in values.items()}, batch, refusals)
        refusals.count += count - 1
        return one_point.expand(count, *one_point.shape[1:])

    def _halved(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        first = next(iter(values.values()))
        half = len(first) // 2
        if half == 0:
            return _alone(one, values, batch, refusals)
        parts = ({k: v[:half] for k, v in values.items()}, {k: v[half:] for k, v in values.items()})
        return torch.cat([survived(part, *batch) for part in parts])

    return survived


class _Factoring(TorchFunctionMode):
    """Note where a matrix has no Cholesky factor, or a distribution refuses its arguments.

    The identity is factored instead; the distribution goes on with what it refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bad = self.invalid = torch.zeros((), dtype=torch.bool)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the argument of Cholesky factorisations, and what distributions ask of theirs."""
        kwargs = kwargs or {}
        if func is torch._is_all_true and args:
            self.invalid = self.invalid | ~args[0].detach().all()
            return torch.ones((), dtype=torch.bool)
        if func in CHOLESKY and args:
            matrix, *others = args
            failed = torch.linalg.cholesky_ex(matrix.detach())[1] != 0
            self.bad = self.bad | failed.any()
            whole = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
            args = (torch.where(failed[..., None, None], whole, matrix), *others)
        return func(*args, **kwargs)


def factored(one: PointDensity) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a function that also says what `_Factoring` notes: without a factor, and refused."""

    def checked(values: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with _Factoring() as factoring:
            result = one(values, *batch)
        return result, factoring.bad, factoring.invalid

    return checked


def refuses_one_of_two(
    one: PointDensity, values: dict[str, Tensor], batch: tuple[Tensor, ...]
) -> bool:
    """Say whether a density refuses one of two points, so that vmap is not what fails."""
    for i in range(2):
        try:
            one({k: v[i] for k, v in values.items()}, *batch)
        except (UNFACTORED, ValueError):
            return True
    return False


def _alone(
    one: PointDensity, values: dict[str, Tensor], batch: tuple[Tensor, ...], refusals: Refusals
) -> Tensor:
    """Evaluate one point without vmap, which hides the words of a refusal; −inf if it is one."""
    try:
        found = one({k: v[0] for k, v in values.items()}, *batch)[None]
        refusals.accepted = True
        return found
    except (UNFACTORED, ValueError) as error:
        refusals.add(error)
        zero = (
            0.0 * torch.stack([value.sum() for value in values.values()]).sum()
        )  # keeps the graph
        return (zero + refusals.value).expand((1, len(batch[0])) if batch else (1,))


def _refuses(error: Exception) -> bool:
    """Say whether an exception is about the values at a point, not about the function."""
    return isinstance(error, UNFACTORED | ValueError) or ITEM in str(error)


def without_nan(model: Model, refusals: Refusals) -> Score:
    """Count points where log p is NaN as refused: another program leaves its bounds so."""

    def scored(z: Tensor) -> tuple[Tensor, Any]:
        value, gradient = model.score(z)
        value = torch.as_tensor(value, dtype=torch.float64)
        bad = value.isnan()
        if bool(bad.any()):
            refusals.count += int(bad.sum())
            refusals.words = model.reason()
            value = value.masked_fill(bad, refusals.value)
        return value, gradient

    return scored
