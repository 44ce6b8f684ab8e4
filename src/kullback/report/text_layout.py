"""Numbers and columns of plain text, as the explanations print them.

Which to use: `number` for one figure, `signed` with its sign,
`value_text` and `measured_text` for what was measured, `aligned` for a table.
"""

import math
import unicodedata
from collections.abc import Sequence

from kullback.sampled import Measured

from .limits import LARGE, SMALL

__all__ = ["UNITS", "aligned", "measured_text", "number", "signed", "value_text"]

UNITS = {"nats": 1.0, "bits": math.log(2.0)}


def number(value: float) -> str:
    """Return a figure with four decimals, or four digits where those would say too little.

    Args:
        value: Any number.

    Returns:
        Fixed-point text for sizes from `limits.SMALL` to `limits.LARGE`, else with four significant
        digits; "0", "inf" and "nan" for those.

    Example:
        >>> number(0.25), number(3e-7), number(0.0), number(float("inf"))
        ('0.2500', '3e-07', '0', 'inf')
    """
    if value == 0:
        return "0"
    plain = SMALL <= abs(value) < LARGE or not math.isfinite(value)
    return f"{value:.4f}" if plain else f"{value:.4g}"


def signed(value: float) -> str:
    """Print a figure with its sign, a true minus.

    >>> signed(-0.125), signed(0.25)
    ('−0.1250', '+0.2500')
    """
    return number(value).replace("-", "−", 1) if value <= 0 else f"+{number(value)}"


def value_text(measured: Measured, unit: str) -> str:
    """Print a measured scalar in a unit, ± its error if it has one.

    >>> value_text(Measured(0.5, "sum over the table"), "nats")
    '0.5000 nats'
    """
    if measured.estimate is not None:
        return (measured.estimate.bits() if unit == "bits" else measured.estimate).brief
    return f"{number(float(measured) / UNITS[unit])} {unit}"


def measured_text(measured: Measured, unit: str, *, gap: str = " ") -> str:
    """Return a measured scalar in a unit, ± its error if it has one, and the method.

    Args:
        measured: A scalar, in nats.
        unit: "nats" or "bits".
        gap: What stands between the value and the method.

    Returns:
        The text, the method in parentheses.

    Example:
        >>> measured_text(Measured(0.5, "sum over the table"), "nats")
        '0.5000 nats (sum over the table)'
    """
    return f"{value_text(measured, unit)}{gap}({measured.method})"


def aligned(
    rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), gap: int = 2
) -> list[str]:
    """Bring cells to columns; those of the columns in `left` to the left, others to the right.

    Args:
        rows: Cells; a row may lack the last ones.
        left: The columns that are aligned to the left, from 0.
        gap: Spaces between columns.

    Returns:
        One line a row, as wide as a terminal shows it.

    Example:
        >>> aligned([["symbol", "p"], ["a", "0.5000"]])
        ['symbol       p', 'a       0.5000']
    """
    count = max(len(row) for row in rows)
    wide = [max(_width(row[i]) for row in rows if i < len(row)) for i in range(count)]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            fill = " " * (wide[i] - _width(cell))
            cells.append(cell + fill if i in left else fill + cell)
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Return how many cells a text takes: marks on a letter none, wide letters two."""
    marks = sum(bool(unicodedata.combining(letter)) for letter in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
