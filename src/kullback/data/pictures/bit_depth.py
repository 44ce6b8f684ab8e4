"""Pictures of 16 bits: how many of them are in use, and the levels of a trained model.

Which to use: `depth_of` for decoded pictures of which some have 16 bits, `as_asked` for examples
that are to have the levels that a model knows, or as many as were asked for.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError, require

from .. import limits
from ..examples import Channels, Examples, Reading, plural
from ..quantisation import Grid, named
from .decoding import Picture

__all__ = [
    "as_asked",
    "depth_of",
]


def depth_of(
    pictures: list[Picture], channels: Channels, notes: list[str], how: Reading
) -> tuple[list[Picture], Grid | None]:
    """Find the levels that 16-bit pictures use; where others have 8 bits, cut them to 8 bits."""
    deep = [picture for picture in pictures if picture.pixels.dtype == np.uint16]
    if not deep:
        return pictures, None
    step, largest = _step_of(deep, how)
    grid = how.grid or named(0.0, float(step), max(1, largest // step))
    bits = (grid.count - 1).bit_length()
    if len(deep) == len(pictures) and channels != "rgb":
        if how.grid is None:
            said = (
                "8-bit"
                if grid.count == limits.BYTE_LEVELS
                else f"{bits}-bit ({grid.count:,} levels)"
            )
            every = "" if step == 1 else f", all multiples of {step},"
            notes.append(
                f"{plural(len(deep), 'image')} of 16 bits with values up to {largest:,}{every} "
                f"modelled as {said}"
            )
        return [p._replace(pixels=_levels_in(grid, p, how)) for p in pictures], grid
    top = grid.count - 1
    notes.append(
        f"{plural(len(deep), 'image')} of 16 bits, with {bits} bits in use, cut to 8 bits "
        "like the others"
    )

    def cut(picture: Picture) -> Picture:
        if picture.pixels.dtype != np.uint16:
            return picture
        level = _levels_in(grid, picture, how).astype(np.int64)
        return picture._replace(pixels=((level * 510 + top) // (2 * top)).astype(np.uint8))

    return [cut(picture) for picture in pictures], None


def _step_of(deep: list[Picture], how: Reading) -> tuple[int, int]:
    """Return the step between the levels of 16-bit pictures and their largest value.

    Pictures are looked at as stored. Resampled ones have values between the levels of a mask or
    of few labels: those get at least as many levels as 8 bits have, of which their own are some.
    """
    if how.rules < limits.DEPTH_AS_STORED_RULES:
        values = [np.unique(picture.pixels) for picture in deep]
        largest = max(int(one[-1]) for one in values)
        return math.gcd(*(int(v) for one in values for v in one)) or 1, largest
    step, largest = math.gcd(*(p.step for p in deep)) or 1, max(p.largest for p in deep)
    few = largest // step < limits.FEW_STORED_LEVELS
    if few and any(_is_resampled(picture) for picture in deep):
        finest = max(1, largest // limits.BYTE_MAX)
        step = max(one for one in range(1, min(step, finest) + 1) if step % one == 0)
    return step, largest


def _is_resampled(picture: Picture) -> bool:
    return picture.fitted.startswith(("shrunk", "enlarged"))


def _levels_in(grid: Grid, picture: Picture, how: Reading) -> NDArray[Any]:
    """Return the levels of one 16-bit picture; of a resampled one the nearest."""
    if how.rules < limits.DEPTH_AS_STORED_RULES or not _is_resampled(picture):
        if how.grid is not None:
            return _known(grid, picture.pixels)
        return picture.pixels // int(grid.step[0])
    if how.grid is not None:
        _known(grid, np.array([[picture.step, picture.largest]]))  # the stored values are on it
    levels = np.rint((picture.pixels - grid.offset[0]) / grid.step[0])
    return levels.clip(0, grid.count - 1).astype(grid.dtype)


def _known(grid: Grid, pixels: NDArray[Any]) -> NDArray[Any]:
    levels: NDArray[Any] = grid.levels_of(pixels[None, None].astype(np.float64))[0, 0]
    return levels


def as_asked(examples: Examples, how: Reading) -> Examples:
    """Bring pictures to a model's levels, or to as many as were asked for, in place."""
    if how.grid is not None and examples.levels != how.grid.count:
        raise DataError(
            f"expected pictures of {how.grid.count:,} levels, as the model was trained on; "
            f"got {examples.levels:,}"
        )
    require(how.levels != "none", "levels", "auto or a number for pictures", "none")
    if how.levels == "auto":
        return examples
    before, count = examples.levels, int(how.levels)
    require(count <= before, "levels", f"at most the pictures' own {before:,}", count)
    grid = Grid(count, (0.0,), ((before - 1) / max(1, count - 1),))
    levels = examples.values.astype(np.int64) * count // before
    examples.values, examples.grid = levels.astype(grid.dtype), grid
    examples.notes.append(
        f"{before:,} levels cut to {count:,}, as asked: floor(k·{count}/{before})"
    )
    return examples
