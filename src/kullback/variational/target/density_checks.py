"""Is a user's function a log density? Its arguments, result, values, gradient and data.

Which to use: `check_signature` and `check_result` about a call, `check_same` about two calls at one
point, `check_own` and `check_slope` about the gradient, `check_data` about NaN in data.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, message, require
from kullback.variational import limits

from .functions import PointDensity, Score
from .parameters import Layout
from .programs import Model
from .refusals import UNFACTORED, Refusals

__all__ = [
    "check_data",
    "check_own",
    "check_result",
    "check_same",
    "check_signature",
    "check_slope",
    "hinted",
]


def check_signature(
    function: PointDensity, name: str, layout: Layout, batch: tuple[Tensor, ...]
) -> None:
    """Refuse a function that cannot be called with these parameters and this data."""
    rows = [f"data {i}" for i in range(1, len(batch) + 1)]
    words = [*rows, *(f"{n}=" for n in layout.parts)] if layout.named else ["z", *rows]
    try:
        shape = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function has none to look at
        return
    try:
        shape.bind(*batch, **layout.parts) if layout.named else shape.bind(None, *batch)
    except TypeError as error:
        got, hint = f"{name}{shape}", ""
        if layout.named and not rows and len(shape.parameters) == 1:  # of a dictionary?
            hint = f"a function of each value, or lambda **values: {name}(values)"
        raise ArgumentTypeError(
            message(name, f"a function of ({', '.join(words)})", got, hint)
        ) from error


@contextlib.contextmanager
def hinted(name: str) -> Iterator[None]:
    """Say what to do where PyTorch refuses to mix float32 with z, or to leave for NumPy."""
    try:
        yield
    except RuntimeError as error:
        words, hint = str(error).strip().splitlines()[0], ""
        if "dtype" in words or "scalar type" in words:
            hint = "data in float64, x.double(), as the parameters are"
        elif "numpy()" in words:
            hint = "compute with torch, or give log p and its gradient: Target.of_score"
        elif "in-place" in words or "inplace" in words:
            hint = "x = x.clone() before x is changed in place"
        if hint and not isinstance(error, UNFACTORED):
            raise ArgumentTypeError(f"{name}: {words}. Try: {hint}") from error
        raise


def check_result(result: Any, name: str, rows: int | None) -> None:
    """Refuse a result that is no scalar, or no vector of rows, of real numbers."""
    wanted = "a scalar tensor" if rows is None else "a tensor [rows], one term a row"
    if not isinstance(result, Tensor):
        hint = "compute with torch, and return the sum of the log densities"
        raise ArgumentTypeError(message(f"{name}(z)", wanted, type(result).__name__, hint))
    shape = () if rows is None else (rows,)
    hint = "sum over the last axis" if rows is None else "do not sum over rows"
    require(tuple(result.shape) == shape, f"{name}(z)", wanted, list(result.shape), hint)
    require(not result.is_complex(), f"{name}(z)", "real numbers", str(result.dtype), "its .real")


def check_same(once: Tensor, first: Tensor, call: Callable[[], Tensor], name: str) -> None:
    """Refuse a function whose values at one point differ: from `once`, and between two calls.

    Two, since what is vectorised may round differently.
    """

    def off(one: Tensor, other: Tensor) -> Tensor:
        return ((other - one).abs() > limits.SAME_TOLERANCE * (1 + one.abs())).reshape(-1)

    if not bool(off(once, first).any()):
        return
    second = call()
    differ = off(first, second).nonzero()
    if len(differ):
        k = int(differ[0])
        got = f"{float(first.reshape(-1)[k]):.6g} and {float(second.reshape(-1)[k]):.6g}"
        hint = "all rows of the data, and no random numbers inside; batch_size= for mini-batches"
        wanted = "a function of its parameters alone"
        raise ArgumentValueError(message(name, wanted, f"{got} at one point", hint))


def check_own(score: Score, dim: int, refusals: Refusals, name: str) -> None:
    """Refuse a user's function whose gradient is not that of its values."""
    hint = "no detach(), no_grad, .item() or numpy() on the way from the parameters to log p"
    with refusals.unknown(), hinted(name):
        check_slope(score, dim, name, hint, tolerance=limits.OWN_SLOPE_TOLERANCE)


def check_slope(
    score: Score,
    dim: int,
    name: str = "score",
    hint: str = "∂ log p/∂z, of log p itself, not of −log p, at each point",
    tolerance: float = limits.SLOPE_TOLERANCE,
) -> None:
    """Refuse a gradient that central differences of log p contradict at most of a few points.

    With two steps, so that what a solver's tolerance adds to log p is not taken for its slope.
    """
    near, far = limits.SLOPE_STEPS
    found = _contradicted(score, dim, near, tolerance)
    right = not found or not _contradicted(score, dim, far, tolerance)
    if "nan" in found:
        hint = "torch.where on arguments that are finite in both branches, for NaN times 0 is NaN"
    require(right, name, "the gradient of its log p", found, hint)


def _contradicted(score: Score, dim: int, step: float, tolerance: float) -> str:
    """Say where the slopes of a score are not those of differences so far apart; "" if they are."""
    generator = torch.Generator().manual_seed(0)
    z, way = torch.randn(2, limits.SLOPE_PROBES, dim, generator=generator, dtype=torch.float64)
    way = way / way.norm(dim=1, keepdim=True)
    value, gradient = score(torch.cat([z, z + step * way, z - step * way]))
    middle, up, down = value.chunk(3)
    known = torch.stack([middle, up, down]).isfinite().all(0)
    seen, said = (up - down) / (2 * step), (gradient[: len(z)] * way).sum(1)
    size = torch.maximum(seen.abs(), (gradient[: len(z)] * way).norm(dim=1))
    noise = limits.SLOPE_ROUNDING * middle.abs() / step
    bend = (up - 2 * middle + down).abs() / step
    wrong = ~((seen - said).abs() <= tolerance * size + bend + noise)
    if int(wrong[known].sum()) <= 0.5 * int(known.sum()):
        return ""
    k = int((known & wrong).nonzero()[0])
    return f"a slope of {float(said[k]):.4g} where log p rises by {float(seen[k]):.4g}"


def check_data(model: Model, score: Score, dim: int, refusals: Refusals) -> None:
    """Name NaN and infinities in the data where log p is finite nowhere: masked ones do no harm."""
    places = [_not_finite(name, value, model.first_index) for name, value in model.data.items()]
    held = ", ".join(place for place in places if place)
    if not held:
        return
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(limits.DATA_PROBES, dim, generator=generator, dtype=torch.float64)
    z = torch.cat([torch.zeros(1, dim, dtype=torch.float64), 4 * spread - 2])
    with refusals.unknown():
        finite = bool(score(z)[0].isfinite().any())
    hint = f"leave those rows out, or {model.missing}"
    words = f"{held} (log p is finite at none of {len(z)} points)"
    require(finite, "data", "finite numbers", words, hint)


def _not_finite(name: str, value: Any, first_index: int) -> str:
    """Return where an array is NaN or infinite, "NaN in x[3] and 2 more"; "" where it is not."""
    array = np.asarray(value)
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return ""
    bad = np.argwhere(np.isnan(array) if np.isnan(array).any() else np.isinf(array))
    index = ",".join(str(int(i) + first_index) for i in bad[0])
    more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
    kind = "NaN" if np.isnan(array).any() else "infinity"
    return f"{kind} in {name}{f'[{index}]' if index else ''}{more}"
