"""What makes a density of continuous values doubtful, found in the training values and said.

Which to use: `doubts`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import limits

__all__ = ["doubts"]

NAMED = 5  # columns named in one note
ROWS = 100_000  # looked at


def doubts(values: NDArray[Any]) -> list[str]:
    """Return a note for each property of `[N, *event]` that a Gaussian density does not suit.

    Looked for: columns of whole numbers or of few values, a point mass (a value that a share of
    rows above 5 % repeats exactly: a bound, a zero, a mark for missing values), and heavy tails.
    Images are looked at channel by channel.
    """
    rows = values[:ROWS]
    columns = rows if rows.ndim == 2 else np.moveaxis(rows, 1, -1).reshape(-1, rows.shape[1])
    columns = columns[: 10 * ROWS]
    notes: dict[str, list[str]] = {}
    what = "column" if values.ndim == 2 else "channel"
    for index, column in enumerate(columns.T):
        if said := _doubt(column.astype(np.float64)):
            notes.setdefault(said[0], []).append(f"{what} {index}{said[1]}")
    return [f"{_listed(named)}: {why}" for why, named in notes.items()]


def _doubt(column: NDArray[Any]) -> tuple[str, str] | None:
    """Return what is doubtful about a column, and its figure in words."""
    found, counts = np.unique(column, return_counts=True)
    few = len(found) * limits.REPEATS <= len(column) and len(found) <= limits.FEW_VALUES
    if few and len(found) > 1:
        why = "so few values are levels, and a density on them has no finite maximum; "
        return why + "code them as a data set of their own", f" ({len(found)} values)"
    if len(found) > 1 and bool((column == np.rint(column)).all()):
        why = "whole numbers taken as continuous, since they have too many levels together"
        return why, ""
    share = float(counts.max()) / len(column)
    if len(found) > 1 and counts.max() > 2 and share > limits.POINT_MASS:
        value = f" ({100 * share:.0f} % are exactly {found[counts.argmax()]:.6g})"
        why = "a value that repeats has no density (a bound, a zero, a mark for missing values?)"
        return why, value
    low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
    far = float(abs(column - middle).max())
    if high > low and far > limits.HEAVY_TAIL * (high - low):
        why = "tails too heavy for a Gaussian density; a log, an asinh or ranks would suit it"
        return why, f" (as far as {far / (high - low):,.0f} interquartile ranges from the median)"
    return None


def _listed(named: list[str]) -> str:
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more
