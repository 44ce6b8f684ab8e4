"""Levels in data that are stored as numbers: which grid they lie on, and the way there and back.

Which to use: `find_grid` for one array of values, `grid_of` for examples `[N, *event]` (one grid
for all, one for each channel or column, or the few values themselves); `Grid` to convert.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError

from . import limits

__all__ = ["Grid", "distinct", "find_grid", "grid_of", "is_shifted_grid", "named", "quantised"]

_CHUNK = 1 << 20
Floats = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """Values and their levels: `x = offset + step·k` for k = 0 … count − 1, or `x = values[k]`.

    Args:
        count: How many levels there are.
        offset: The value of level 0: one number for all, or one a channel (images) or column
            (vectors).
        step: Between neighbouring levels, positive; as many numbers as `offset`.
        values: The values themselves, ascending, where they are not equally spaced; else empty.

    Example:
        >>> eight_bit = Grid(256, (-1.0,), (2 / 255,))
        >>> eight_bit.levels_of(np.array([[-1.0, 1.0]])).tolist()
        [[0, 255]]
        >>> eight_bit.describe()
        '256 equally spaced levels from -1 to 1'
    """

    count: int
    offset: tuple[float, ...] = (0.0,)
    step: tuple[float, ...] = (1.0,)
    values: tuple[float, ...] = ()

    @property
    def dtype(self) -> Any:
        """The dtype that holds the levels: uint8, or int32 where they are more than 256."""
        return np.uint8 if self.count <= limits.BYTE_LEVELS else np.int32

    def levels_of(self, x: Floats) -> NDArray[Any]:
        """Return the level k of every value.

        Args:
            x: Values `[N, *event]`.

        Returns:
            Levels `[N, *event]`, uint8 or int32.

        Raises:
            DataError: A value is not on the grid, to 0.4 of a step.
        """
        levels = np.empty(x.shape, self.dtype)
        for start, piece in _rows(x):
            nearest, error = self._nearest(piece)
            bad = (error > limits.ROUNDING_SHARE_OF_STEP) | (nearest < 0) | (nearest >= self.count)
            if bad.any():
                first = float(piece[bad].flat[0])
                row = start + int(np.argwhere(bad)[0][0])
                raise DataError(f"expected {self.describe()}; got {first:.8g} in row {row}")
            levels[start : start + len(piece)] = nearest
        return levels

    def values_of(self, levels: Floats) -> Floats:
        """Return the values of levels `[N, *event]`, which need not be whole, as float64."""
        k = np.asarray(levels, np.float64)
        if self.values:
            return np.interp(k, np.arange(self.count), self.values)
        return self._spread(self.offset, k.ndim) + self._spread(self.step, k.ndim) * k

    def _nearest(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the nearest levels and the distances from them, in steps."""
        if self.values:
            table = np.asarray(self.values)
            gap = np.diff(table, prepend=-np.inf, append=np.inf)
            k = np.searchsorted(table, x).clip(1, max(1, self.count - 1))
            k = k - (x - table[k - 1] < table[k] - x)
            return k, abs(x - table[k]) / np.minimum(gap[k], gap[k + 1])
        place = np.asarray(x, np.float64) - self._spread(self.offset, x.ndim)
        place /= self._spread(self.step, x.ndim)
        return np.rint(place), abs(place - np.rint(place))

    def _spread(self, numbers: tuple[float, ...], ndim: int) -> Floats:
        return np.asarray(numbers).reshape(-1, *[1] * (ndim - 2))

    def describe(self) -> str:
        """Say in words what the levels are."""
        if self.values:
            low, high = self.values[0], self.values[-1]
            return f"{self.count:,} values from {low:.6g} to {high:.6g}, not equally spaced"
        ends = [(a, a + s * (self.count - 1)) for a, s in zip(self.offset, self.step, strict=True)]
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        each = "" if len(ends) == 1 else ", with an offset and a step for each column or channel"
        return f"{self.count:,} equally spaced levels from {low:.6g} to {high:.6g}{each}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "count": self.count,
            "offset": list(self.offset),
            "step": list(self.step),
            "values": list(self.values),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Grid":
        """Rebuild from `to_dict`; DataError when it is damaged.

        Example:
            >>> Grid.from_dict(Grid(17, (0.0,), (1 / 16,)).to_dict()).count
            17
        """
        try:
            names = ("offset", "step", "values")
            offset, step, values = (tuple(float(v) for v in fields[name]) for name in names)
            grid = cls(int(fields["count"]), offset, step, values)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"grid: expected what load() stores; got {error}") from error
        whole = grid.count >= 1 and len(grid.offset) == len(grid.step) >= 1
        whole = whole and all(math.isfinite(v) for v in (*grid.offset, *grid.step, *grid.values))
        if not whole or min(grid.step) <= 0 or (grid.values and len(grid.values) != grid.count):
            raise DataError("grid: expected finite offsets and positive steps")
        return grid


def grid_of(x: Floats) -> Grid | None:
    """Find the grid of floats `[N, *event]`: of all, of each channel or column, or a few values.

    None for continuous values. A column's own grid is looked for only where it has few levels
    (256): standardised pixels or codes, not a table of measurements.
    """
    found = distinct(x)
    grid = None if found is None else find_grid(found, x.size, x.dtype)
    if (
        grid is not None
        and found is not None
        and len(found) > limits.ROUNDINGS_A_LEVEL * grid.count
    ):
        grid = None  # one large column beside small ones: to its rounding they are all 0
    if grid is not None and grid.count <= limits.FEW_VALUES:
        return grid
    each = _grid_of_each(x) if x.shape[1] > 1 else None
    if each is not None and (grid is None or np.median(each.step) > 1.5 * grid.step[0]):
        return each  # columns less their means lie on a fine common grid by arithmetic alone
    if grid is not None:
        return grid
    few = found is not None and 2 < len(found) <= limits.FEW_VALUES
    if few and found is not None and x.size >= limits.REPEATS_PER_LEVEL**2 * len(found):
        return Grid(len(found), values=tuple(found.tolist()))
    return None


def is_shifted_grid(x: Floats, *, step: float) -> bool:
    """Say whether every pixel of `[N, C, H, W]` has levels of one step but its own offset.

    The differences from the first example then lie on one grid, coarser than `step`: a mean
    picture was subtracted.
    """
    x = x[: limits.ROWS_FOR_MEAN_PICTURE]
    found = distinct(x[1:].astype(np.float64) - x[:1].astype(np.float64))
    largest = float(abs(x).max())
    if found is None or largest == 0:
        return False
    stored = np.float32 if x.dtype == np.float64 else x.dtype
    allowed = limits.ROUNDINGS[-1] * float(np.finfo(stored).eps) * largest
    levels = _merged(found, allowed)
    line = None if levels is None else _line(levels, allowed)
    few = line is not None and line[2] < 2 * limits.FEW_VALUES and x.size > 2 * len(found)
    return few and line is not None and line[1] > step


def quantised(x: Floats, count: int, notes: list[str]) -> tuple[NDArray[Any], Grid]:
    """Round values to `count` equally spaced levels from the least to the greatest, and say so."""
    low, high = float(x.min()), float(x.max())
    grid = Grid(count, (low,), ((high - low) / (count - 1) or 1.0,))
    levels = np.rint((x.astype(np.float64) - low) / grid.step[0]).astype(grid.dtype)
    off = float(abs(grid.values_of(levels) - x).max())
    notes.append(f"values quantised to {grid.describe()}, as asked: moved by at most {off:.3g}")
    return levels, grid


def _grid_of_each(x: Floats) -> Grid | None:
    """Find one grid a channel, or a column of few levels; None unless each has one."""
    grids = []
    for part in (x[:, c] for c in range(x.shape[1])):
        found = distinct(part)
        if found is None:
            return None
        grid = find_grid(found, part.size, x.dtype)
        if grid is None or (x.ndim == 2 and grid.count > limits.FEW_VALUES):
            return None
        grids.append(grid)
    offset, step = (tuple(getattr(g, n)[0] for g in grids) for n in ("offset", "step"))
    return Grid(max(grid.count for grid in grids), offset, step)


def distinct(x: Floats) -> Floats | None:
    """Return the distinct values, ascending, as float64; None when there are very many."""
    found = np.empty(0, x.dtype)
    for _, piece in _rows(x):
        found = np.union1d(found, piece)
        if len(found) > limits.DISTINCT_VALUES:
            return None
    return found.astype(np.float64)


def find_grid(found: Floats, count: int, dtype: Any) -> Grid | None:
    """Find offset and step of distinct values, seen `count` times in all and stored as dtype.

    Rounding is that of dtype or, for float64, of float32 as well (values that were float32 once).
    None when they lie on no grid of at most 65,536 levels, or might do so by chance.

    Example:
        >>> find_grid(np.arange(0, 17) / 16, 1000, np.float32).count
        17
    """
    if len(found) == 1:
        return Grid(1, (float(found[0]),), (abs(float(found[0])) or 1.0,))
    stored = np.float32 if dtype == np.float64 else dtype
    units = [roundings * float(np.finfo(stored).eps) for roundings in limits.ROUNDINGS]
    if dtype == np.float64:
        units.insert(0, limits.ROUNDINGS_IN_FLOAT64 * float(np.finfo(np.float64).eps))
    for unit in units:
        allowed = unit * float(abs(found).max())
        levels = _merged(found, allowed)
        line = None if levels is None else _line(levels, allowed)
        if levels is not None and line is not None:
            offset, step, last = line
            if _is_meant(levels, step, last, allowed, count, dtype):
                return named(offset, step, last, slack=4 * allowed)
    return None


def _merged(found: Floats, allowed: float) -> Floats | None:
    """Return one value for each run of values that differ by rounding only; None for long runs."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(found) > allowed]))
    ends = np.append(starts[1:], len(found)) - 1
    if float((found[ends] - found[starts]).max()) > 2 * allowed:
        return None
    return np.asarray((found[starts] + found[ends]) / 2)


def _line(levels: Floats, allowed: float) -> tuple[float, float, int] | None:
    """Return offset, step and last index of the coarsest grid that holds all levels; or None.

    Both ends lie on the grid, so the step is the span over a whole number m of steps. Every m is
    tried against a few levels, and what is left against all, from the coarsest on.
    """
    place = levels - levels[0]
    span = float(place[-1])
    most = min(limits.MOST_LEVELS - 1, int(span * limits.ROUNDING_SHARE_OF_STEP / (2 * allowed)))
    if len(levels) < 2 or most < len(levels) - 1:
        return None
    m = np.arange(len(levels) - 1, most + 1)
    for value in place[np.linspace(1, len(place) - 1, 16).astype(int)]:
        at = m * (value / span)
        m = m[abs(at - np.rint(at)) <= 3 * allowed * m / span]
    for steps in m.tolist():
        index = np.rint(place * (steps / span))
        centred = index - index.mean()
        step = float(centred @ levels / (centred @ centred))
        offset = float(levels.mean() - step * index.mean())
        if float(abs(levels - offset - step * index).max()) <= 2 * allowed:
            return offset, step, steps
    return None


def _is_meant(
    levels: Floats, step: float, last: int, allowed: float, count: int, dtype: Any
) -> bool:
    """Say whether the grid is the data's own: not chance, and not the rounding of the format.

    Values that repeat are levels, but not of a grid: logs of counts lie on one of 65,536 levels by
    chance, as they are sums of the logs of few primes. Where levels are missing, half of the values
    must speak for the grid among the grids tried before it.
    """
    largest = float(abs(levels).max())
    if step <= 2 * float(np.spacing(np.asarray(largest, dtype))):
        return False
    window = min(0.9, 6 * allowed / step)
    surprise = (len(levels) - 2) * -math.log(window)
    missing = last + 1 - len(levels)
    repeated = count >= limits.REPEATS_PER_LEVEL * len(levels)
    if repeated and (
        missing == 0 or surprise / 2 > math.log(1 + missing) + limits.SURPRISE_OF_REPEATED_GRID
    ):
        return True
    return not repeated and surprise > limits.SURPRISE_OF_GRID


def named(low: float, step: float, last: int, *, slack: float = 0.0) -> Grid:
    """Return the grid of `last + 1` levels from `low` on, widened as such grids are.

    They begin at 0, −1 or −½ and end at a whole bit depth. slack: how far rounding may have moved
    the first level.
    """
    used = last + 1
    for start in (0.0, -1.0, -0.5):
        before = round((low - start) / step)
        off = slack * (1 + before / max(1, last))  # one level has no step to be rounded
        aligned = before >= 0 and abs(low - start - before * step) <= off
        aligned = aligned and off <= step / (2 if before == 0 else 16)  # or any start would do
        full = _depth(before + used)
        whole = full == _depth(used) and abs(2 * start + (full - 1) * step) <= 2 * step
        widened = before == 0 or limits.BIT_DEPTH_FROM < before + used <= limits.MOST_LEVELS
        if aligned and widened and (start == 0.0 or whole):
            low, used = start, before + used
            break
    used = _depth(used) if used > limits.BIT_DEPTH_FROM else used
    return Grid(used, (low,), (step,))


def _depth(used: int) -> int:
    """Return the levels of the least whole bit depth from 8 on that has so many."""
    return 1 << max(8, (used - 1).bit_length())


def _rows(x: Floats) -> Iterator[tuple[int, Floats]]:
    """Cut into pieces of bounded memory, with the row where each begins."""
    rows = max(1, _CHUNK // max(1, x[0].size if x.ndim > 1 else 1))
    for start in range(0, len(x), rows):
        yield start, x[start : start + rows]
