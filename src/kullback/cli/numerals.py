"""Numbers as people type them: `0.5`, `1e-3`, `1_000`, `1/3`, `50%`; nothing is ever evaluated.

Which to use: `number` for one number, `split_list` for the parts of a list, and the types `Whole`
and `Real` for options (`--draws 1e6`).
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

__all__ = ["Real", "Whole", "number", "short", "split_list"]

PLAIN = r"[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+)?"
NUMBER = re.compile(rf"({PLAIN})(?:\s*/\s*({PLAIN}))?\s*(%?)")
OPEN, CLOSE = "([{", ")]}"


def number(text: str) -> float | None:
    """Read one number: a decimal, a fraction of two or a percentage; None for anything else.

    `inf` and `nan` are read too: that they are no probability is said where they stand.

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

    >>> short("normal"), len(short("x" * 1000))
    ("'normal'", 63)
    """
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def split_list(text: str) -> list[str] | None:
    """Cut at the commas outside of brackets; None where brackets do not match.

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


def _real(_type: Any, tokens: Sequence[Any]) -> float:
    """Read an option's number."""
    text = tokens[0].value
    value = number(text)
    if value is None:
        raise ValueError(f"expected a number such as 0.5 or 1e-3; got {text.strip()!r}")
    return value


def _whole(_type: Any, tokens: Sequence[Any]) -> int:
    """Read an option's whole number, also as 1e6 and 1_000_000."""
    text = tokens[0].value.strip()
    if re.fullmatch(r"[+-]?\d+", text) and len(text) < 20:
        return int(text)
    value = number(text)
    if value is None or value != value or abs(value) >= 2**63 or value != int(value):
        raise ValueError(f"expected a whole number such as 10000 or 1e4; got {text!r}")
    return int(value)


Real = Annotated[float, Parameter(converter=_real)]
Whole = Annotated[int, Parameter(converter=_whole)]
