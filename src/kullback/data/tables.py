"""Tables of text, `.csv` and `.tsv`, to numbers: delimiter, heading, names, decimal marks.

Which to use: `read_table` for the numbers, `heading_of` for the names of columns alone.

A number may be written with a decimal point or a decimal comma, and with thousands grouped. Where
both readings of a whole table are possible (1,234) and nothing tells them apart, it is refused.
"""

import codecs
import csv
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError

from . import limits
from .counts import SIZE_COLUMNS
from .examples import plural

__all__ = ["heading_of", "read_table"]

_MARKS = "\t;|,"  # between columns; in a number only the last has a meaning
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", "."})
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u202f\u2009", " ") | {"’": "'"})
_END = r"(e[+-]?\d+)?"
_POINT = re.compile(rf"[+-]?\d{{1,3}}(([,' ])\d{{3}})(\2\d{{3}})*(\.\d*)?{_END}", re.IGNORECASE)
_COMMA = re.compile(
    rf"[+-]?(\d{{1,3}}(([.' ])\d{{3}})(\3\d{{3}})*|\d+)?(,\d*)?{_END}", re.IGNORECASE
)
_ENCODINGS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
Rows = list[list[str]]


def _of_point(text: str) -> float | None:
    """Read a number with a decimal point, thousands grouped by commas, spaces or apostrophes."""
    if _is_plain(text):
        return float(text)
    plain = text.strip().translate(_SPACES)
    if not _POINT.fullmatch(plain):
        return None
    return float(re.sub("[,' ]", "", plain))


def _of_comma(text: str) -> float | None:
    """Read a number with a decimal comma, thousands grouped by points, spaces or apostrophes."""
    plain = text.strip().translate(_SPACES)
    if _COMMA.fullmatch(plain):
        plain = re.sub("[.' ]", "", plain).replace(",", ".")
    elif "." in plain:
        return None
    return float(plain) if _is_plain(plain) else None


def _is_number(text: str) -> bool:
    """Say whether a cell is a number in one of the ways of writing them."""
    return _is_plain(text) or _of_point(text) is not None or _of_comma(text) is not None


def _is_plain(text: str) -> bool:
    """Say whether a cell is a number as Python writes it; 1_2 is a name."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def read_table(path: Path, label: str = "") -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """Read a table of numbers, with notes on what was left out or written in a special way.

    The arrays: `table` `[n, D]`, `size_factors` where a column is called so, and the labels. Left
    out are a first row and a first column of names, and rows and a last column of blank cells.

    Args:
        path: The file.
        label: The name of a column of labels, of any text, or "".

    Returns:
        The arrays, and the notes.

    Raises:
        DataError: The file cannot be read, a cell is no number, or rows differ in length.
    """
    rows, mark = _cells(path)
    notes: list[str] = []
    rows, heading = _with_heading(_without_blanks(rows, notes), notes)
    if not rows:
        raise DataError(f"{path}: expected rows of numbers; got none")
    labels = _taken_out(label, rows, heading, path) if label else {}
    _drop_last_blank(rows, heading)
    unnamed = bool(heading) and (len(heading) == len(rows[0]) - 1 or not heading[0].strip())
    named = len(rows[0]) > 1 and (unnamed or _are_names(rows))
    heading = heading[1:] if named and len(heading) == len(rows[0]) else heading
    values = _numbers([row[named:] for row in rows], path, mark, notes, after=bool(heading))
    whole = (abs(values) <= limits.MOST_WHOLE) & (values == np.rint(values))
    if values.shape[1] and bool(whole.all()):
        values = values.astype(np.int64)
    sized = [k for k, name in enumerate(heading) if name.strip().lower() in SIZE_COLUMNS]
    if not sized:
        return {"table": values} | labels, notes
    sizes = values[:, sized[0]].astype(float)
    return {"table": np.delete(values, sized, axis=1), "size_factors": sizes} | labels, notes


def heading_of(path: Path) -> list[str]:
    """Return the cells of the first row; none where the file cannot be read."""
    try:
        with _opened(path) as lines:
            first = list(itertools.islice(lines, limits.TABLE_LOOK))
        return [one.strip() for one in next(_split(first, _mark_of(first)), [])]
    except (OSError, UnicodeError, csv.Error):
        return []


class _opened:
    """The lines of a file of text, in the encoding that its first bytes tell, else UTF-8."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            encoding = _ENCODINGS.get(file.read(2), "utf-8-sig")
        self.file = path.open(newline="", encoding=encoding)

    def __enter__(self) -> Iterator[str]:
        return iter(self.file)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _cells(path: Path) -> tuple[Rows, str]:
    """Return the cells of all rows, and what stands between columns."""
    try:
        with _opened(path) as lines:
            first = list(itertools.islice(lines, limits.TABLE_LOOK))
            mark = _mark_of(first)
            return [row for row in _split(itertools.chain(first, lines), mark) if row], mark
    except (OSError, UnicodeError, csv.Error) as error:
        hint = ". Try: save it as UTF-8" if isinstance(error, UnicodeError) else ""
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a table: {reason}{hint}") from error


def _split(lines: Iterator[str] | list[str], mark: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=mark, skipinitialspace=True)


def _mark_of(first: list[str]) -> str:
    """Return what stands between columns: what divides the first rows alike, into numbers."""

    def fit(mark: str) -> tuple[bool, float]:
        try:
            rows = [row for row in _split(first, mark) if row]
        except csv.Error:  # a long row as one cell
            return False, 0.0
        widths = {len(row) for row in rows[1:] or rows}
        cells = [cell for row in rows[1:] or rows for cell in row]
        if widths <= {1}:
            return False, 0.0
        return len(widths) == 1, sum(map(_is_number, cells)) / len(cells)

    found = {mark: fit(mark) for mark in _MARKS}
    best = max(found, key=lambda mark: found[mark])
    return best if found[best][1] else ","


def _without_blanks(rows: Rows, notes: list[str]) -> Rows:
    """Leave out rows of which every cell is blank, as spreadsheets write them below a table."""
    kept = [row for row in rows if any(one and not one.isspace() for one in row)]
    if left := len(rows) - len(kept):
        notes.append(f"{plural(left, 'row')} of blank cells left out")
    return kept


def _with_heading(rows: Rows, notes: list[str]) -> tuple[Rows, list[str]]:
    """Take the names of columns from the first row, where it has some."""
    if not rows:
        return rows, []
    first = rows[0]
    if all(_is_number(one) for one in first):
        places = [str(k) for k in range(len(first))]
        if len(rows) > 1 and len(first) >= limits.NUMBERED_COLUMNS and first == places:
            notes.append(f"the first row, 0 to {len(first) - 1:,}, taken as numbers of columns")
            return rows[1:], first
        return rows, []
    rest = [one for one in first[1:] if one.strip()]
    if rest and len(rest) == len(first) - 1 and all(map(_is_number, rest)) and first[0].strip():
        return rows, []  # names of rows, and none of columns
    return rows[1:], first


def _drop_last_blank(rows: Rows, heading: list[str]) -> None:
    """Remove a last column without any text, which a mark at the end of every line makes."""
    width = len(rows[0])
    blank = width > 1 and all(len(row) == width and not row[-1].strip() for row in rows)
    if blank and (not heading or len(heading) < width or not heading[-1].strip()):
        for row in (*rows, *([heading] if len(heading) == width else [])):
            row.pop()


def _are_names(rows: Rows) -> bool:
    """Say whether the first cells are names of rows: texts, but for at most half of them."""
    first = [row[0] for row in rows]
    words = [one for one in first if one.strip().lower() not in _MISSING and not _is_number(one)]
    return 2 * len(words) > len(first)


def _taken_out(
    label: str, rows: Rows, heading: list[str], path: Path
) -> dict[str, NDArray[np.generic]]:
    """Take the column of labels out of a table."""
    named = [name.strip() for name in heading]
    if label not in named:
        raise DataError(
            f"{path}: expected a column {label!r}; got {', '.join(named) or 'no names'}"
        )
    place = named.index(label) - len(heading)  # from the end: names of rows may have no heading
    heading.pop(place)
    if any(len(row) < len(heading) + 1 for row in rows):
        raise DataError(f"{path}: rows differ in length")
    return {label: np.array([row.pop(place).strip() for row in rows])}


@dataclass(frozen=True, slots=True)
class _Writing:
    """A way of writing numbers. read: None for a cell that is not written so."""

    read: Callable[[str], float | None]
    says: str


_POINTS = _Writing(_of_point, "a point is decimal, thousands are grouped")
_COMMAS = _Writing(_of_comma, "a comma is decimal, points group thousands")


def _numbers(
    rows: Rows, path: Path, mark: str, notes: list[str], *, after: bool
) -> NDArray[np.float64]:
    """Return cells as numbers, or say which is none."""
    width = len(rows[0])
    for number, row in enumerate(rows, start=1 + after):
        if len(row) != width:
            raise DataError(f"{path}: row {number}: expected {width} numbers; got {len(row)}")
    with suppress(ValueError):
        values = np.array([[float(one) for one in row] for row in rows])
        if not any("_" in "".join(row) for row in rows):
            _note_points(rows, mark, notes)
            return values
    read = _writing_of(rows, path, mark, notes).read
    found = np.empty((len(rows), width))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            value = read(cell)
            if value is None:
                raise DataError(
                    f"{path}: row {number + 1 + after}: expected numbers; got {cell[:20]!r} in "
                    f"column {column + 1}. Try: {_advice(cell)}"
                )
            found[number, column] = value
    return found


def _note_points(rows: Rows, mark: str, notes: list[str]) -> None:
    """Say how 1.234 is read where it may be a grouped 1234: in a table without commas."""
    if mark != ";":
        return
    pointed = [one.strip() for row in rows for one in row if "." in one]
    if pointed and all(re.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}", one) for one in pointed):
        found = f"{float(pointed[0]):g}"
        notes.append(f"numbers such as {pointed[0]} read as {found}: the point is decimal")


def _writing_of(rows: Rows, path: Path, mark: str, notes: list[str]) -> _Writing:
    """Return the way in which all cells are written that are numbers; DataError where two fit."""
    cells = [one for row in rows for one in row if one.strip().lower() not in _MISSING]
    cells = [one for one in cells if _is_number(one)]
    spaced = next((one.strip() for one in cells if " " in one.strip()), "")
    if spaced and mark == ",":
        hint = "commas between columns, and no spaces in a number"
        raise DataError(f"{path}: expected numbers; got {spaced[:20]!r}. Try: {hint}")
    fit = [one for one in (_POINTS, _COMMAS) if all(one.read(cell) is not None for cell in cells)]
    odd = next((one for one in cells if "," in one), "")
    if len(fit) == len((_POINTS, _COMMAS)) and odd and mark != ",":
        grouped, decimal = _of_point(odd), _of_comma(odd)
        raise DataError(
            f"{path}: expected numbers that can be read in one way; got {odd.strip()[:20]!r}, "
            f"which is {grouped:.10g} or, with a decimal comma, {decimal:.10g}. Try: write "
            "numbers with a decimal point and without grouped thousands"
        )
    found = fit[0] if fit else _POINTS
    special = [one for one in cells if (found is _COMMAS and "," in one) or not _is_plain(one)]
    if fit and special:
        cell, value = special[0].strip()[:20], found.read(special[0])
        notes.append(f"numbers such as {cell!r} read as {value:.10g}: {found.says}")
    return found


def _advice(cell: str) -> str:
    """Say what to do about a cell that is no number."""
    if cell.strip().lower() in _MISSING:
        return "rows without missing values, or fill them in"
    if _is_number(cell):
        return "one way of writing numbers in the whole table, with a decimal point"
    if len(cell.split()) > 1 and all(map(_is_number, cell.split())):
        return "commas between columns"
    if any(map(str.isdigit, cell)):
        return "numbers with a point, without signs of units; --label for a column of names"
    return "columns of numbers alone, or --label for a column of names"
