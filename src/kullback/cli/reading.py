"""What P and Q can be: numbers, a file of numbers, or a named distribution."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import ArgumentValueError, DataError, RunError, require
from kullback.core.checks import message
from kullback.core.files import read_json

from .families import FAMILIES, parse

__all__ = ["Given", "read", "read_pair"]

SUFFIXES = (".csv", ".json", ".npy")
FORMS = "numbers (0.5,0.25,0.25), a .csv, .json or .npy file, or a name such as normal(0,1)"


@dataclass(frozen=True, slots=True)
class Given:
    """P or Q as read: the text, what it stands for (table or distribution), names of outcomes."""

    text: str
    value: Any
    labels: tuple[str, ...] = ()

    @property
    def table(self) -> bool:
        """Whether it is a table `[outcomes]`, float64."""
        return isinstance(self.value, Tensor)


def read(text: str, *, name: str = "P", normalise: bool = False) -> Given:
    """Read one distribution.

    Errors: `ArgumentValueError` for text that stands for none; `DataError` for a file that cannot
    be read or does not hold one.

    >>> read("0.5, 0.5").value
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if Path(text).suffix.lower() in SUFFIXES:
        try:
            labels, masses = _from_file(Path(text))
            return Given(text, _table(masses, name, normalise=normalise), labels)
        except ArgumentValueError as error:
            raise DataError(f"{text}: {error}") from error
    if "(" in text:
        value = parse(text, name=name, normalise=normalise)
        if isinstance(value, Tensor):
            value = _table(value.tolist(), name, normalise=normalise)
        return Given(text, value)
    numbers = [_number(part) for part in text.split(",")]
    if None in numbers:
        hint = f"{text}(...)" if text.strip().lower() in FAMILIES else ""
        raise ArgumentValueError(message(name, FORMS, repr(text), hint))
    return Given(text, _table([n for n in numbers if n is not None], name, normalise=normalise))


def read_pair(p: str, q: str, *, normalise: bool = False) -> tuple[Given, Given]:
    """Read two distributions that fit each other; outcomes with names are matched by name.

    >>> p, q = read_pair("normal(0,1)", "laplace(0,1)")
    >>> p.table, q.table
    (False, False)
    """
    first = read(p, name="P", normalise=normalise)
    second = read(q, name="Q", normalise=normalise)
    kinds = {True: "a table", False: "a named distribution"}
    got = f"{kinds[first.table]} and {kinds[second.table]}"
    hint = "categorical(...) is a table" if first.table != second.table else ""
    same = first.table == second.table
    require(same, "P and Q", "two tables or two named distributions", got, hint)
    if not first.table:
        return first, second
    sizes = len(first.value), len(second.value)
    got = f"{sizes[0]} and {sizes[1]} outcomes"
    _require(sizes[0] == sizes[1], first, second, "tables of the same length", got)
    if not first.labels or not second.labels or first.labels == second.labels:
        return first, second
    strangers = sorted(set(first.labels) ^ set(second.labels))
    shown = ", ".join(strangers[:5])
    _require(not strangers, first, second, "the same outcomes", f"{shown} in only one of them")
    order = [second.labels.index(label) for label in first.labels]
    return first, Given(second.text, second.value[order], first.labels)


def _require(ok: bool, first: Given, second: Given, expected: str, got: str) -> None:
    """Require that two tables fit; it is the data's fault when one comes from a file."""
    if ok:
        return
    files = [g.text for g in (first, second) if Path(g.text).suffix.lower() in SUFFIXES]
    text = message("P and Q", expected, got)
    if files:
        raise DataError(f"{', '.join(files)}: {text}")
    raise ArgumentValueError(text)


def _table(masses: Sequence[float], name: str, *, normalise: bool) -> Tensor:
    """Check masses and return them as a table that sums to 1."""
    require(len(masses) >= 1, name, "at least one probability", "none")
    for place, mass in enumerate(masses, 1):
        good = math.isfinite(mass) and mass >= 0
        require(good, name, "finite probabilities of at least 0", f"{mass:g} (number {place})")
    total = math.fsum(masses)
    require(0 < total < math.inf, name, "probabilities with a positive sum", f"a sum of {total:g}")
    table = torch.tensor(masses, dtype=torch.float64)
    if normalise:
        return table / total
    good = abs(total - 1) <= 1e-6
    require(good, name, "probabilities that sum to 1", f"a sum of {total:.9g}", "--normalise")
    return table


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _from_file(path: Path) -> tuple[tuple[str, ...], list[float]]:
    """Return the names (or none) and the masses in a file."""
    if path.suffix.lower() == ".json":
        return _from_json(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _from_npy(path, content) if path.suffix.lower() == ".npy" else _from_csv(path, content)


def _from_json(path: Path) -> tuple[tuple[str, ...], list[float]]:
    expected = "a list of numbers, or an object of names and numbers"
    try:
        held = read_json(path)
    except RunError as error:
        raise DataError(str(error)) from error
    labels = tuple(held) if isinstance(held, dict) else ()
    numbers = list(held.values()) if isinstance(held, dict) else held
    if not isinstance(numbers, list) or any(type(n) not in (int, float) for n in numbers):
        raise DataError(message(str(path), expected, type(held).__name__ + " of other things"))
    return labels, [float(n) for n in numbers]


def _from_npy(path: Path, content: bytes) -> tuple[tuple[str, ...], list[float]]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not an array of numbers: {error}") from error
    good = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "fiu"
    if not good:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "others"
        raise DataError(message(str(path), "numbers [outcomes]", got))
    return (), array.astype(np.float64).tolist()


def _from_csv(path: Path, content: bytes) -> tuple[tuple[str, ...], list[float]]:
    """Read one row, one column, or two columns: names and numbers; a heading is left out."""
    try:
        text = content.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of text: {error}") from error
    rows = [[cell.strip() for cell in row] for row in rows]
    if len(rows) > 1 and _number(rows[0][-1]) is None:
        rows = rows[1:]
    if len(rows) == 1 and not (len(rows[0]) == 2 and _number(rows[0][0]) is None):
        rows = [[cell] for cell in rows[0]]
    widths = {len(row) for row in rows}
    numbers = [_number(row[-1]) for row in rows]
    if widths not in ({1}, {2}) or None in numbers:
        wrong = next((row for row in rows if _number(row[-1]) is None), rows[0] if rows else [])
        expected = "one row or one column of numbers, or two columns: names and numbers"
        raise DataError(message(str(path), expected, repr(",".join(wrong)[:60])))
    labels = tuple(row[0] for row in rows) if widths == {2} else ()
    if len(set(labels)) < len(labels):
        raise DataError(message(str(path), "each name once", "one of them twice"))
    return labels, [n for n in numbers if n is not None]
