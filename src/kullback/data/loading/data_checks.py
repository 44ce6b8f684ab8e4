"""Notes on data that a model does not suit: columns without a density, examples all alike.

Which to use: `doubts` for continuous values, `sameness` for any.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..examples import plural

__all__ = [
    "doubts",
    "sameness",
]


def doubts(values: NDArray[Any]) -> list[str]:
    """Return a note for each property of `[N, *event]` that a Gaussian density does not suit.

    Looked for: columns of whole numbers or of few values, a point mass (a value that a share of
    rows above 5 % repeats exactly: a bound, a zero, a mark for missing values), and heavy tails.
    Images are looked at channel by channel.
    """
    rows = values[: limits.ROWS_FOR_DOUBTS]
    columns = rows if rows.ndim == 2 else np.moveaxis(rows, 1, -1).reshape(-1, rows.shape[1])
    columns = columns[: 10 * limits.ROWS_FOR_DOUBTS]
    notes: dict[str, list[str]] = {}
    what = "column" if values.ndim == 2 else "channel"
    for index, column in enumerate(columns.T):
        if said := _doubt(column.astype(np.float64)):
            notes.setdefault(said[0], []).append(f"{what} {index}{said[1]}")
    return [f"{_listed(named)}: {why}" for why, named in notes.items()]


def sameness(values: NDArray[Any]) -> list[str]:
    """Return notes on images `[N, C, H, W]` of one colour, and on examples that are all alike."""
    notes = []
    if len(values) > 1 and all((row == values[0]).all() for row in values):
        notes.append(
            f"all {plural(len(values), 'example')} are identical: a model of them learns that one"
        )
    if values.ndim == 4:
        step = limits.ROWS_FOR_MEAN_PICTURE
        parts = (values[start : start + step] for start in range(0, len(values), step))
        plain = sum(_of_one_colour(part) for part in parts)
        if plain:
            notes.append(f"{plural(plain, 'image')} of one colour everywhere")
    return notes


def _of_one_colour(images: NDArray[Any]) -> int:
    """Count the images that are one colour everywhere; most differ in two corners already."""
    alike = images[(images[:, :, 0, 0] == images[:, :, -1, -1]).all(1)]
    return int((alike == alike[:, :, :1, :1]).all((1, 2, 3)).sum())


def _doubt(column: NDArray[Any]) -> tuple[str, str] | None:
    """Return what is doubtful about a column, and its figure in words."""
    found, counts = np.unique(column, return_counts=True)
    few = len(found) * limits.REPEATS_PER_LEVEL <= len(column) and len(found) <= limits.FEW_VALUES
    if few and len(found) > 1:
        why = "so few values are levels, and a density on them has no finite maximum; "
        return why + "code them as a data set of their own", f" ({len(found)} values)"
    if len(found) > 1 and bool((column == np.rint(column)).all()):
        why = "whole numbers taken as continuous, since they have too many levels together"
        return why, ""
    share = float(counts.max()) / len(column)
    if len(found) > 1 and counts.max() > 2 and share > limits.POINT_MASS_SHARE:
        value = f" ({100 * share:.0f} % are exactly {found[counts.argmax()]:.6g})"
        why = "a value that repeats has no density (a bound, a zero, a mark for missing values?)"
        return why, value
    low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
    far = float(abs(column - middle).max())
    if high > low and far > limits.HEAVY_TAIL_RANGES * (high - low):
        why = "tails too heavy for a Gaussian density; a log, an asinh or ranks would suit it"
        return why, f" (as far as {far / (high - low):,.0f} interquartile ranges from the median)"
    return None


def _listed(named: list[str]) -> str:
    more = (
        f" and {len(named) - limits.NAMED_COLUMNS} more"
        if len(named) > limits.NAMED_COLUMNS
        else ""
    )
    return ", ".join(named[: limits.NAMED_COLUMNS]) + more
