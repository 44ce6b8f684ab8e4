"""A user's function of one point made a function of many, by `vmap` or else by a loop.

Which to use: `Vectoriser.over_points`, which also finds how many points are best differentiated
together, and makes refused points survive (see `refusals`).
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, message
from kullback.variational import limits

from .deadline import Deadline
from .density_checks import check_result, check_same, check_signature, hinted
from .functions import PointDensity
from .parameters import Layout
from .refusals import UNFACTORED, Refusals, factored, refuses_one_of_two, surviving

__all__ = ["Vectorised", "Vectoriser"]


class Vectorised(NamedTuple):
    """A density of many points, whether it loops over them, and how many to differentiate together.

    function: maps values with a leading `[n]`, by name, and a batch of data to log p, `[n]`, or
    `[n, rows]` with data.
    """

    function: Callable[..., Tensor]
    looped: bool
    piece: int


@dataclass(frozen=True, slots=True)
class Vectoriser:
    """What the functions of one target share: parameters, type of z, refusals and the deadline."""

    layout: Layout
    dtype: torch.dtype
    refusals: Refusals
    deadline: Deadline

    def over_points(
        self, function: PointDensity, name: str, batch: tuple[Tensor, ...]
    ) -> Vectorised:
        """Wrap a function of one point for many, after a look at what it returns."""
        one = self._of_values(function)
        check_signature(function, name, self.layout, batch)
        probe = torch.linspace(-0.5, 0.5, self.layout.dim, dtype=self.dtype)
        result, piece = self._tried(one, probe, name, batch)
        axes = (0, *(None for _ in batch))
        vectorised = torch.func.vmap(one, in_dims=axes)
        at_once = torch.func.vmap(factored(one), in_dims=axes)
        survived = surviving(vectorised, one, self.refusals, at_once)
        together = Vectorised(survived, looped=False, piece=piece)
        two = torch.stack([probe, -probe])
        seen = torch.zeros(()) if result is None else result.detach()
        try:
            first = vectorised(self._values(two), *batch)[0]
        except UNFACTORED:
            first = None
        except (RuntimeError, ValueError) as error:
            if "randomness" in str(error):
                words = message(name, "a function of z alone", "one that draws at random")
                raise ArgumentValueError(words) from error
            refused = not isinstance(error, ValueError)
            if refused and refuses_one_of_two(one, self._values(two), batch):
                return together
            reason = str(error).strip().splitlines()[0]
            again = partial(one, self._values(probe), *batch)
            check_same(seen, again() if result is not None else seen, again, name)
            warnings.warn(f"{name}: evaluated one point at a time, slowly: {reason}", stacklevel=4)
            survived = surviving(_looped(one, self.deadline), one, self.refusals)
            return Vectorised(survived, looped=True, piece=piece)
        if result is not None and first is not None:
            check_same(seen, first, lambda: vectorised(self._values(two), *batch)[0], name)
        return together

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        return self.layout.constrain(z)[0]

    def _of_values(self, function: PointDensity) -> PointDensity:
        """Return the function of values by name, then of a batch of data."""

        def one(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
            if batch and batch[0].is_floating_point():  # z has float64, data often less
                values = {key: value.to(batch[0].dtype) for key, value in values.items()}
            if self.layout.named:
                return function(*batch, **values)
            return function(values["z"], *batch)

        return one

    def _tried(
        self, one: PointDensity, probe: Tensor, name: str, batch: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, int]:
        """Return the checked result at a point, None where it is refused, and the best piece."""
        found: tuple[Any, _Kept] | None = None
        # what is refused here is perhaps not elsewhere
        with contextlib.suppress(UNFACTORED, ValueError), hinted(name):
            found = _counted(lambda z: one(self._values(z), *batch), probe.clone())
        if found is None:
            return None, _Kept(limits.CACHED_NUMBERS, 1).piece
        result, kept = found
        check_result(result, name, len(batch[0]) if batch else None)
        if not batch and bool(result.isfinite()):
            self.refusals.taken = probe
        return result, kept.piece


def _looped(one: PointDensity, deadline: Deadline) -> PointDensity:
    def at(values: dict[str, Tensor], i: int, batch: tuple[Tensor, ...]) -> Tensor:
        deadline.check()
        value: Tensor = one({k: v[i] for k, v in values.items()}, *batch)
        return value

    def many(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
        count = len(next(iter(values.values())))
        return torch.stack([at(values, i, batch) for i in range(count)])

    return many


class _Kept(NamedTuple):
    """How many numbers, in how many tensors, are kept for the gradient at one point."""

    numbers: int
    tensors: int

    @property
    def piece(self) -> int:
        """How many points to differentiate together.

        As many as keep the graph in the cache; more where its tensors would be so small that the
        calls cost more than the numbers in them, as in the steps of a differential equation.
        """
        numbers = max(1, self.numbers)
        small = limits.SMALL_TENSOR * self.tensors // numbers
        roomy = min(small, limits.MAX_KEPT_NUMBERS // numbers)
        piece = max(limits.MIN_PIECE, limits.CACHED_NUMBERS // numbers, roomy)
        return min(limits.MAX_PIECE, piece)


def _counted(function: Callable[[Tensor], Any], z: Tensor) -> tuple[Any, _Kept]:
    """Return function(z) and what is kept for its gradient."""
    sizes: list[int] = []

    def count(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved)
    with torch.enable_grad(), hooks:
        result = function(z.requires_grad_())
    return result, _Kept(sum(sizes), len(sizes))
