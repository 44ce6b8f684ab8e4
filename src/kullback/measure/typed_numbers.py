"""Numbers and tables as people type them: `0.5`, `1e-3`, `1_000`, `1/3`, `50%`, `0.5, 0.5`.

Which to use: `number` for one number, `split_list` for the parts of a list, `read_typed` for a
table. Nothing is ever evaluated, and nothing here imports torch.
"""

import math
import re
from collections.abc import Iterable

__all__ = ["cells_of", "number", "read_typed", "short", "split_list", "sums_to_one"]

_SUM_TOLERANCE = 1e-6  # as `exact` allows of float64 tables: many were float32 once

PLAIN = r"[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+)?"
NUMBER = re.compile(rf"({PLAIN})(?:\s*/\s*({PLAIN}))?\s*(%?)")
OPEN, CLOSE = "([{", ")]}"


def number(text: str) -> float | None:
    """Read one number: a decimal, a fraction of two or a percentage; None for anything else.

    `inf` and `nan` are read too: that they are no probability is said where they stand.

    Args:
        text: What was typed.

    Returns:
        The number, or None.

    Example:
        >>> number("1/4"), number("25 %"), number("2.5e-1"), number("1_000"), number("2**2")
        (0.25, 0.25, 0.25, 1000.0, None)
    """
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return float(text)
    found = NUMBER.fullmatch(text)
    if found is None or not text.isascii():
        return None
    above, below, percent = float(found[1]), float(found[2] or 1.0), found[3]
    return None if below == 0 else above / below / (100.0 if percent else 1.0)


def short(text: str) -> str:
    """Quote a text for a message, cut where it is long.

    Args:
        text: Any text.

    Returns:
        The text in quotes, at most 60 characters of it.

    Example:
        >>> short("normal"), len(short("x" * 1000))
        ("'normal'", 63)
    """
    start = text[:60]
    return repr(text if text == start else f"{start}…")


def sums_to_one(masses: Iterable[float]) -> bool:
    """Say whether masses sum to 1, within the 1e-6 that `exact` allows of float64 tables.

    Args:
        masses: Any numbers.

    Returns:
        Whether |Σ − 1| ≤ 1e-6; False for NaN.

    Example:
        >>> sums_to_one([0.1] * 10), sums_to_one([0.5, 0.4])
        (True, False)
    """
    return math.isclose(math.fsum(masses), 1.0, rel_tol=0.0, abs_tol=_SUM_TOLERANCE)


def split_list(text: str) -> list[str] | None:
    """Cut at the commas outside of brackets; None where brackets do not match.

    Args:
        text: What was typed.

    Returns:
        The parts, or None.

    Example:
        >>> split_list("[0, 0], [[1, 0], [0, 1]]")
        ['[0, 0]', '[[1, 0], [0, 1]]']
    """
    parts, waiting, start = [], [], 0
    for place, letter in enumerate(text):
        if letter in OPEN:
            waiting.append(CLOSE[OPEN.index(letter)])
        elif letter in CLOSE:
            if not waiting or waiting.pop() != letter:
                return None
        elif letter == "," and not waiting:
            parts.append(text[start:place].strip())
            start = place + 1
    return None if waiting else [*parts, text[start:].strip()]


def read_typed(text: str) -> tuple[tuple[str, ...], list[float]] | None:
    """Read names (or none) and numbers as typed: with or without brackets; None for other text.

    Args:
        text: `0.5, 0.25, 25%`, `[1/2 1/2]` or `{a: 0.5, b: 0.5}`.

    Returns:
        The outcomes' names (empty without braces) and the numbers, or None.

    Example:
        >>> read_typed("[1/2, 25%, 25%]")
        ((), [0.5, 0.25, 0.25])
        >>> read_typed("{a: 0.5, b: 0.5}")
        (('a', 'b'), [0.5, 0.5])
    """
    text = text.strip()
    if text[:1] == "{" and text[-1:] == "}":
        pairs = [part.rpartition(":") for part in split_list(text[1:-1]) or []]
        numbers = [number(value) for _, _, value in pairs]
        labels = tuple(key.strip().strip("\"'") for key, _, _ in pairs)
        good = None not in numbers and all(labels) and len(set(labels)) == len(labels)
        return (labels, [n for n in numbers if n is not None]) if good else None
    if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")):
        text = text[1:-1]
    cut = re.split(r"[,;]", text) if set(text) & set(",;") else cells_of(text)
    if ";" in text and "," in text:
        return None  # decimal commas, or two kinds of separators
    found = [number(part) for part in cut]
    return None if None in found or not found else ((), [n for n in found if n is not None])


def cells_of(line: str) -> list[str]:
    """Cut a line at white space; a fraction or percentage with spaces in it stays whole.

    Args:
        line: One line of numbers, or of names and numbers.

    Returns:
        The cells.

    Example:
        >>> cells_of("1 / 2  50 %")
        ['1/2', '50%']
    """
    return re.sub(r"\s*/\s*", "/", re.sub(r"\s+%", "%", line)).split()
