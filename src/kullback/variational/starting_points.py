"""Where a user says that a fit begins: `fit(init=…)` as points on the unconstrained space.

Which to use: `first_points`, for all that `init` may be.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, message, require

from . import limits
from .fitted_posterior import FittedPosterior
from .target.density import Target

__all__ = ["Init", "first_points", "points_of"]


Init = Tensor | Mapping[str, Any] | FittedPosterior


def first_points(target: Target, init: Init) -> Tensor:
    """Return the points where the climbs begin, `[n, d]`."""
    wanted = "values by name, points, or a fit"
    require(not isinstance(init, str | Path), "init", wanted, "a path", "load(path, target)")
    if isinstance(init, FittedPosterior):
        given = init.draws
    elif isinstance(init, Mapping):
        given = points_of(target, init)
    else:
        given = _numbers("init", init)
    z: Tensor = torch.atleast_2d(given.detach().double())  # type: ignore[no-untyped-call]
    right = z.ndim == 2 and len(z) > 0 and z.shape[1] == target.dim
    hint = f"a value for each of {[*target.layout.shapes]}"
    require(right, "init", f"points [{target.dim}] or [n, {target.dim}]", list(z.shape), hint)
    require(bool(z.isfinite().all()), "init", "finite numbers", "NaN or infinity")
    return z


def points_of(target: Target, init: Mapping[str, Any]) -> Tensor:
    """Return z `[d]` of a value of every parameter, or `[n, d]` of draws `[n, *shape]` of each."""
    shapes = target.layout.shapes
    held = {name: _numbers(f"init[{name!r}]", value) for name, value in init.items()}
    known = [name for name in held if name in shapes]
    drawn = [name for name in known if held[name].ndim == len(shapes[name]) + 1]
    if not drawn:
        return target.unconstrain(init)
    counts = {name: len(held[name]) for name in drawn}
    number = counts[drawn[0]]
    same = len(drawn) == len(known) and number > 0 and {*counts.values()} == {number}
    got = ", ".join(f"{name} {list(held[name].shape)}" for name in known)
    require(same, "init", "a value of each parameter, or as many draws [n, *shape] of each", got)
    each = torch.linspace(0, number - 1, min(limits.MOST_FIRST_POINTS, number)).long()
    points = ({k: v[i] if k in drawn else v for k, v in held.items()} for i in each)
    return torch.stack([target.unconstrain(point) for point in points])


def _numbers(name: str, given: Any) -> Tensor:
    """Return what was given as a tensor of real numbers."""
    try:
        made = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:  # text, None, ragged lists
        raise ArgumentTypeError(message(name, "numbers", repr(given)[:60])) from error
    if made.is_complex():
        raise ArgumentTypeError(message(name, "real numbers", "complex"))
    return made
