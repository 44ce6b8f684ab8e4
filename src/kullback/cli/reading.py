"""What P and Q can be: numbers, a file of numbers, standard input, or a named distribution.

Which to use: `read_pair` and `read`; `looks_like` for numbers that are no table: counts,
percentages, logarithms of probabilities, logits or raw observations, of which only some become a
table when divided by their sum.
"""

import csv
import math
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from kullback.core import (
    ArgumentValueError,
    DataError,
    RunError,
    message,
    parse_json,
    read_npy,
    require,
)
from kullback.measure import (
    FAMILIES,
    cells_of,
    describe,
    family_of,
    number,
    parse,
    read_typed,
    short,
    sums_to_one,
)

from .limits import (
    MAX_BYTES,
    MAX_LOG_PROBABILITY,
    MIN_OBSERVATIONS,
    NEAR_HUNDRED,
    NEAR_ONE,
    REPEATS,
)
from .session import say

__all__ = [
    "Given",
    "Kind",
    "Tables",
    "decoded",
    "looks_like",
    "read",
    "read_bytes",
    "read_pair",
]

_DRAWS = (
    "for raw observations of a continuous quantity, in Python: x, y = "
    "(torch.from_numpy(numpy.loadtxt(f))[:, None] for f in ('p.csv', 'q.csv')); "
    "print(kullback.sampled.kl_from_draws(x, y))"
)
_TALLY = (
    "for raw observations of a discrete quantity, count each value first and give names and "
    "counts (value,count) with --normalise"
)
_LOG_RATIO = (
    "for the log-probabilities of drawn items (tokens) under P and under Q, in Python: "
    "print(kullback.sampled.log_ratio(log_p, log_q))"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a list of numbers looks like, in words, what to try, and whether a sum may divide it.

    weights: False where dividing by the sum would give an exact number without a meaning.
    """

    words: str
    remedy: str
    weights: bool


def looks_like(values: Sequence[float], *, named: bool = False) -> Kind:
    """Say what finite numbers that do not sum to 1 look like.

    named: whether each number has the name of an outcome beside it: then it is no observation.

    >>> looks_like([3.0, 1.0, 0.0]).words
    'counts'
    >>> looks_like([math.log(0.25), math.log(0.75)]).words
    'natural logarithms of probabilities'
    """
    if min(values) < 0:
        return _with_negatives(values, named=named)
    total, whole = sum(values), all(value == int(value) for value in values)
    weights = "--normalise, which divides by the sum"
    if abs(total - 1) <= NEAR_ONE:
        return Kind("probabilities that were rounded", weights, weights=True)
    if abs(total - 100) <= NEAR_HUNDRED:
        return Kind("percentages", weights, weights=True)
    if not named and _observed(values, whole=whole):
        words = f"raw observations, or weights of outcomes ({len(values)} numbers without names)"
        other = "--weights, if each is the count or weight of one outcome"
        return Kind(words, f"{other}; {_TALLY if whole else _DRAWS}", weights=False)
    if len(values) == 1:
        chance = (
            f"bernoulli({values[0]:g}), if it is a chance"
            if values[0] <= 1
            else "two numbers or more"
        )
        return Kind("one number alone", chance, weights=True)
    return Kind("counts" if whole else "weights", weights, weights=True)


def _with_negatives(values: Sequence[float], *, named: bool) -> Kind:
    most = max(values)
    total = most + math.log(math.fsum(math.exp(value - most) for value in values))
    many = len(values) >= MIN_OBSERVATIONS and not named
    if most <= 0 and abs(total) <= NEAR_ONE:
        return Kind("natural logarithms of probabilities", "--log", weights=False)
    if most <= 0:
        other = f"; {_LOG_RATIO}" if many else ""
        words = "logarithms of probabilities that do not sum to 1"
        return Kind(words, f"--log --normalise, if there is one per outcome{other}", weights=False)
    if many:
        words = "raw observations or logits (numbers of both signs)"
        return Kind(words, f"{_DRAWS}; for logits: --log --normalise", weights=False)
    return Kind("logits or differences", "for logits: --log --normalise", weights=False)


def _observed(values: Sequence[float], *, whole: bool) -> bool:
    """Say whether many numbers are more like observations than like one count per outcome.

    Numbers that are not whole are no counts. Whole ones that repeat (zeros apart, which a sparse
    histogram has many of) are throws of a die rather than counts of many outcomes.
    """
    if len(values) < MIN_OBSERVATIONS:
        return False
    if not whole:
        return True
    positive = [value for value in values if value > 0]
    return len(positive) >= MIN_OBSERVATIONS and REPEATS * len(set(positive)) <= len(positive)


SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".json", ".npy", ".npz")
FORMS = "numbers (0.5,0.25,0.25), a .csv, .json or .npy file, or a name such as normal(0,1)"
STDIN = "standard input"


@dataclass(frozen=True, slots=True)
class Tables:
    """How numbers become a table: divided by their sum, whatever they look like, exponentiated."""

    normalise: bool = False
    weights: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """P or Q as read: the text, what it stands for (table or distribution), names of outcomes.

    read_as: the family and its parameters in full, where the text abbreviates them.
    """

    text: str
    value: Any
    labels: tuple[str, ...] = ()
    read_as: str | None = None
    data: bool = False

    @property
    def table(self) -> bool:
        """Whether it is a table `[outcomes]`, float64."""
        return isinstance(self.value, Tensor)

    @property
    def what(self) -> str:
        """What it was read as, in a few words."""
        if self.table:
            return f"a table of {len(self.value)} outcomes, from {short(self.text)}"
        return f"{type(self.value).__name__}, from {short(self.text)}"


def read(text: str, *, name: str = "P", how: Tables | None = None) -> Given:
    """Read one distribution.

    Errors: `ArgumentValueError` for text that stands for none; `DataError` for a file that cannot
    be read or does not hold one.

    >>> read("0.5, 0.5").value
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> read("[1/2, 25%, 25%]").value
    tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    how = how or Tables()
    known = Path(text).suffix.lower() in SUFFIXES
    if text.strip() == "-":
        return _data(STDIN, _stdin(), ".any", name, how)
    typed = None if known else read_typed(text)
    if typed is not None:
        return Given(text, _table(typed[1], name, how, named=bool(typed[0])), typed[0])
    if known or _exists(text):
        path = Path(text)
        return _data(text, read_bytes(path), path.suffix.lower(), name, how)
    if "(" in text:
        value = parse(text, name=name, normalise=how.normalise or how.weights)
        if isinstance(value, Tensor):
            value = _table(value.tolist(), name, how)
        return Given(text, value, read_as=describe(text))
    family = family_of(text)
    hint = f"{family}(...), written {FAMILIES[family].usage}" if family else ""
    if re.search(r"\d,\d", text) and ";" in text:
        hint = "decimal points: 0.5,0.5"
    raise ArgumentValueError(message(name, FORMS, short(text), hint))


def read_pair(p: str, q: str, *, how: Tables | None = None) -> tuple[Given, Given]:
    """Read two distributions that fit each other; outcomes with names are matched by name.

    >>> p, q = read_pair("normal(0,1)", "laplace(0,1)")
    >>> p.table, q.table
    (False, False)
    """
    once = p.strip() != "-" or q.strip() != "-"
    require(once, "P and Q", "one of them from standard input", "- twice")
    first = read(p, name="P", how=how)
    second = read(q, name="Q", how=how)
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
    places = {label: place for place, label in enumerate(second.labels)}
    order = [places[label] for label in first.labels]
    return first, Given(second.text, second.value[order], first.labels)


def read_bytes(path: Path) -> bytes:
    """Return what a file (or a pipe with a name) holds.

    Errors: `DataError` for a folder, a device, a file that cannot be read or is beyond reason.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path}: a folder, not a file")
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise DataError(f"{path}: a device, not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {words}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB of numbers")
    return content


def decoded(content: bytes, name: str) -> str:
    """Return text from UTF-8, with or without a byte order mark, or UTF-16 with one."""
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not text: byte {error.start} is not {error.encoding}") from error
    if "\0" in text:
        raise DataError(f"{name}: not text in UTF-8: it holds zero bytes. Try: save as UTF-8")
    return text


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)  # noqa: PTH110 (Path.exists raises on a name that is too long)
    except ValueError:
        return False


def _stdin() -> bytes:
    if sys.stdin is None:
        raise DataError(f"{STDIN}: closed")
    if sys.stdin.isatty():
        say("reading numbers from standard input; end with Ctrl-D")
    raw = getattr(sys.stdin, "buffer", None)
    try:
        content = sys.stdin.read().encode() if raw is None else raw.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{STDIN}: cannot be read: {error}") from error
    return bytes(content)


def _require(ok: bool, first: Given, second: Given, expected: str, got: str) -> None:
    """Require that two tables fit; it is the data's fault when one comes from a file."""
    if ok:
        return
    files = [given.text for given in (first, second) if given.data]
    text = message("P and Q", expected, got)
    if files:
        raise DataError(f"{', '.join(files)}: {text}")
    raise ArgumentValueError(text)


def _data(text: str, content: bytes, suffix: str, name: str, how: Tables) -> Given:
    """Read a table from the bytes of a file or of standard input."""
    npy = suffix in (".npy", ".npz") or content.startswith(b"\x93NUMPY")
    try:
        labels, masses = _from_npy(content, text) if npy else _from_text(content, text, suffix)
        named = bool(labels) and not _fractional(labels)
        table = _table(masses, name, how, named=named)
    except ArgumentValueError as error:
        raise DataError(f"{text}: {error}") from error
    return Given(text, table, labels, data=True)


def _fractional(labels: Sequence[str]) -> bool:
    """Say whether the names of outcomes are numbers that are not whole: then they are data."""
    values = [number(label) for label in labels]
    return all(value is not None for value in values) and any(
        value is not None and math.isfinite(value) and value != int(value) for value in values
    )


def _table(masses: Sequence[float], name: str, how: Tables, *, named: bool = False) -> Tensor:
    """Check masses and return them as a table that sums to 1."""
    require(len(masses) >= 1, name, "at least one probability", "none")
    if how.log:
        masses = _exponentials(masses, name, shift=how.normalise or how.weights)
    for place, mass in enumerate(masses, 1):
        if not (math.isfinite(mass) and mass >= 0):
            _refuse_mass(masses, place, name, named=named, log=how.log)
    total = sum(masses)
    require(0 < total < math.inf, name, "probabilities with a positive sum", f"a sum of {total:g}")
    near = sums_to_one(masses)
    table = torch.tensor(masses, dtype=torch.float64)
    if near and not (how.normalise or how.weights):
        return table
    if not near and not how.log:
        kind = looks_like(masses, named=named)
        allowed = how.weights or (how.normalise and kind.weights)
        got = f"a sum of {total:.9g} (these look like {kind.words})"
        require(allowed, name, "probabilities that sum to 1", got, kind.remedy)
        if (
            len(masses) >= MIN_OBSERVATIONS
            and kind.words == "counts"
            and not (named or how.weights)
        ):
            say(
                f"note: {name}: {len(masses)} numbers taken as the counts of {len(masses)} outcomes"
            )
    elif not near:
        allowed = how.normalise or how.weights
        got = f"exponentials with a sum of {total:.9g}"
        require(allowed, name, "log-probabilities", got, "--log --normalise, if they are logits")
    return table / table.sum()


def _exponentials(values: Sequence[float], name: str, *, shift: bool) -> list[float]:
    """Return e to the power of each; less the largest one first where a sum divides them."""
    most = max(values)
    good = all(value < math.inf for value in values) and most > -math.inf  # NaN fails
    require(good, name, "logarithms below infinity, not all -inf", "others")
    if not shift:
        expected = "natural logarithms of probabilities, at most 0"
        hint = "--log --normalise, if they are logits"
        require(most <= MAX_LOG_PROBABILITY, name, expected, f"{most:g}", hint)
    return [math.exp(value - most if shift else value) for value in values]


def _refuse_mass(
    masses: Sequence[float], place: int, name: str, *, named: bool, log: bool
) -> NoReturn:
    """Say which mass is none, and what the numbers look like."""
    finite = [mass for mass in masses if math.isfinite(mass)]
    odd = log or not finite or len(finite) < len([m for m in masses if m > -math.inf])
    kind = None if odd or min(masses) >= 0 else looks_like(finite, named=named)
    got = f"{masses[place - 1]:g} (number {place})"
    got += "" if kind is None else f"; these look like {kind.words}"
    expected = "finite probabilities of at least 0"
    raise ArgumentValueError(message(name, expected, got, "" if kind is None else kind.remedy))


_OTHER_FORMATS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "an archive or a spreadsheet (.zip, .xlsx)",
    b"\x1f\x8b": "compressed (.gz)",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)",
    b"\x89HDF": "an HDF5 file",
}


def _from_text(content: bytes, name: str, suffix: str) -> tuple[tuple[str, ...], list[float]]:
    what = next((words for mark, words in _OTHER_FORMATS.items() if content.startswith(mark)), None)
    if what is not None:
        raise DataError(f"{name}: {what}, which is not read. Try: save as .csv, .json or .npy")
    text = decoded(content, name)
    start = text.lstrip()[:1]
    typed = read_typed(text) if suffix != ".json" and start in ("[", "(") else None
    if typed is not None:
        return typed
    return _from_json(text, name) if suffix == ".json" or start == "{" else _from_csv(text, name)


def _from_json(text: str, name: str) -> tuple[tuple[str, ...], list[float]]:
    """Read a list of numbers, or an object of names and numbers."""
    expected = "a list of numbers, or an object of names and numbers"
    try:
        held = parse_json(text, name, pairs=_Pairs)
    except RunError as error:
        raise DataError(str(error)) from error
    pairs = held if isinstance(held, _Pairs) else None
    numbers = held if pairs is None else [value for _, value in pairs]
    if not isinstance(numbers, list):
        raise DataError(message(name, expected, type(held).__name__))
    if any(type(n) not in (int, float) for n in numbers):
        wrong = next(n for n in numbers if type(n) not in (int, float))
        kind = "a list" if pairs is None else "an object"
        raise DataError(message(name, expected, f"{kind} with {_as_json(wrong)} in it"))
    labels = () if pairs is None else tuple(key for key, _ in pairs)
    _require_once(labels, name)
    try:
        return labels, [float(n) for n in numbers]
    except OverflowError as error:
        raise DataError(message(name, expected, "an integer beyond float64")) from error


def _as_json(value: Any) -> str:
    """Name a value of JSON that is no number: null, true, a string, a list or an object."""
    if isinstance(value, _Pairs | list):
        return "an object" if isinstance(value, _Pairs) else "a list"
    return short(value) if isinstance(value, str) else {None: "null"}.get(value, str(value).lower())


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it is written, names that stand twice included."""


def _require_once(labels: Sequence[str], name: str) -> None:
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        hint = "two columns are names and numbers; one column is numbers"
        raise DataError(message(name, "each name once", f"{twice!r}, one of them twice", hint))


def _from_npy(content: bytes, name: str) -> tuple[tuple[str, ...], list[float]]:
    array = read_npy(content, name)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        got = f"{array.dtype} {list(array.shape)}"
        raise DataError(message(name, "numbers [outcomes]", got))
    return (), array.astype(np.float64).tolist()


def _rows(text: str, name: str) -> list[list[str]]:
    """Cut text into rows of cells: at a tab, semicolon or comma of every line, or white space."""
    every = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    lines = [line for line in every if line.lstrip()[0] != "#"]
    mark = _mark_of(lines)
    rows = _cut(lines, mark, name)
    if mark is not None and all(len(row) > 1 and not row[-1] for row in rows):
        rows = [row[:-1] for row in rows]  # a separator that ends every line
    for line in every:
        if re.match(r"\s*#[^\s#]", line):
            _require_comment(line, _cut([line], mark, name)[0], name)
    if mark == ";" and any(re.fullmatch(r"[+-]?\d*,\d+", row[-1]) for row in rows if row):
        raise DataError(f"{name}: decimal commas, which are not read. Try: 0.5 for 0,5")
    return rows


def _mark_of(lines: list[str]) -> str | None:
    """Return what separates cells; None for white space, also of plain numbers with tabs."""
    everywhere = (mark for mark in "\t;," if lines and all(mark in line for line in lines))
    somewhere = (mark for mark in ";,\t" if any(mark in line for line in lines))
    mark = next(everywhere, next(somewhere, None))
    plain = all(None not in map(number, cells_of(line)) for line in lines)
    return None if mark == "\t" and plain else mark


def _cut(lines: list[str], mark: str | None, name: str) -> list[list[str]]:
    if mark is None:
        cells = [(line, cells_of(line)) for line in lines]
        return [
            row if None not in map(number, row) else [part.strip() for part in line.rsplit(None, 1)]
            for line, row in cells
        ]
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    except csv.Error as error:
        raise DataError(f"{name}: not a table of text: {error}") from error


def _require_comment(line: str, row: list[str], name: str) -> None:
    """Refuse `#tag,5`, which is a comment or an outcome: it would be left out in silence."""
    if len(row) == 2 and number(row[1]) is not None:
        hint = "the name in quotes, or '# ' before a comment"
        got = f"{short(line.strip())}, which may be either"
        raise DataError(message(name, "a comment, or a name and a number", got, hint))


def _from_csv(text: str, name: str) -> tuple[tuple[str, ...], list[float]]:
    """Read one row, one column, or two columns: names and numbers; a heading is left out."""
    rows = _rows(text, name)
    headed = len(rows) > 1 and _heading(rows[0], name)
    rows = rows[1:] if headed else rows
    if len(rows) == 1 and not (len(rows[0]) == 2 and number(rows[0][0]) is None):
        rows = [[cell] for cell in rows[0]]
    widths = {len(row) for row in rows}
    numbers = [number(row[-1]) for row in rows]
    if widths not in ({1}, {2}) or None in numbers:
        _refuse_rows(rows, name)
    labels = tuple(row[0] for row in rows) if widths == {2} else ()
    _require_one_table(labels, numbers, name)
    _require_once(labels, name)
    if labels and not headed:
        _require_no_thousands(rows, name)
    return labels, [n for n in numbers if n is not None]


_MISSING = ("", "-", ".", "?", "na", "n/a", "#n/a", "null", "none", "missing")


def _heading(row: list[str], name: str) -> bool:
    """Say whether the first row is a heading; refuse one whose number cannot be read.

    pandas writes a Series without a name under `,0`.
    """
    if row == ["", "0"]:
        return True
    if number(row[-1]) is not None:
        return False
    broken = row[-1].lower() in _MISSING or re.match(r"\W*\d", row[-1]) or _hint(row)
    if broken and len(row) <= 2:
        got = repr(",".join(row)[:60])
        raise DataError(message(name, "a heading in words, or a number", got, _hint(row)))
    return True


_THOUSANDS = "numbers without separators of thousands: 1000 for 1,000"


def _hint(row: list[str]) -> str:
    """Say what to try where the last cell of a row is no number."""
    if re.fullmatch(r"[+-]?\d{1,3}([,.'’ \u00a0\u202f]\d{3})+", row[-1]):
        return _THOUSANDS
    turned = len(row) == 2 and number(row[0]) is not None and number(row[1]) is None
    return "names first, then numbers: awk '{print $2, $1}'" if turned else ""


def _refuse_rows(rows: list[list[str]], name: str) -> NoReturn:
    """Say which row is not like the others, or has no number."""
    widths = [len(row) for row in rows]
    common = max(set(widths) & {1, 2}, key=widths.count, default=0)
    wrong = next((row for row in rows if len(row) != common or number(row[-1]) is None), [])
    expected = "one row or one column of numbers, or two columns: names and numbers"
    got = repr(",".join(wrong)[:60])
    raise DataError(message(name, expected, got, _hint(wrong) if wrong else ""))


def _require_no_thousands(rows: list[list[str]], name: str) -> None:
    """Refuse `1,500` and `12,000` for names and numbers; say how `1,500` alone is read."""
    groups = all(re.fullmatch(r"[1-9]\d{0,2}", a) and re.fullmatch(r"\d{3}", b) for a, b in rows)
    if not groups:
        return
    if any(cell[0] == "0" for _, cell in rows):
        got = repr(",".join(next(row for row in rows if row[1][0] == "0")))
        raise DataError(message(name, "names and numbers", got, _THOUSANDS))
    first = rows[0]
    read_as = f"the number {first[1]} of an outcome named {first[0]}"
    say(f"note: {name}: '{first[0]},{first[1]}' is read as {read_as}")


def _require_one_table(labels: Sequence[str], numbers: Sequence[float | None], name: str) -> None:
    """Refuse two columns of tables, or one of both: the first would be taken for names."""
    sums = [number(label) for label in labels]
    values = [value for value in sums if value is not None]
    if len(values) < len(labels) or len(values) < 2 or not (0 <= min(values) <= max(values) < 1):
        return
    found = [n for n in numbers if n is not None]

    tables = {
        "two columns that are tables": sums_to_one(values),
        "rows that are tables": all(map(sums_to_one, zip(values, found, strict=True))),
        "one joint table of two columns": sums_to_one([*values, *found]),
    }
    got = next((words for words, yes in tables.items() if yes), None)
    if got is not None:
        hint = "one table a file, in one column"
        raise DataError(message(name, "names, then numbers", got, hint))
