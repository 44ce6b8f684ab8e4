"""The errors a user of kullback can meet, their exit codes, and the checks that raise them.

Every error of this package is a `KullbackError`. A bad argument is also a `ValueError` or a
`TypeError`, so library code can be caught in the usual way; the command line prints any
`KullbackError` as one plain message and lets every other exception show its traceback.

Which to use: `require` for a value, `require_type` for a type; `message` writes the sentence where
another error is raised: `name: expected …; got …. Try: …`.
"""

import importlib
import math
import operator
import re
import sys
import warnings
from types import ModuleType
from typing import Any

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DataError",
    "KullbackError",
    "MissingExtraError",
    "RunError",
    "describe",
    "import_extra",
    "message",
    "one_line",
    "printable",
    "require",
    "require_count",
    "require_type",
    "warn_caller",
]

_PACKAGE = __name__.partition(".")[0] + "."


class KullbackError(Exception):
    """Base class: what went wrong, where, and what to try. Exit code 1."""

    exit_code = 1


class ArgumentValueError(KullbackError, ValueError):
    """An argument has a value outside what the function accepts. Exit code 2."""

    exit_code = 2


class ArgumentTypeError(KullbackError, TypeError):
    """An argument has a type the function does not take. Exit code 2."""

    exit_code = 2


class DataError(KullbackError):
    """The user's data cannot be read or cannot be used as asked. Exit code 3."""

    exit_code = 3


class RunError(KullbackError):
    """A run failed: damaged file, non-finite loss, no space on the disk. Exit code 1."""


class MissingExtraError(KullbackError, ImportError):
    """An optional dependency is missing; the message says how to install it. Exit code 1."""


def message(name: str, expected: str, got: object, hint: str = "") -> str:
    """Write the sentence of an error: what was expected, what came, what to try.

    Args:
        name: The argument.
        expected: What is accepted, in words.
        got: What came; it is formatted with `str`.
        hint: What to try; "" leaves it out.

    Returns:
        `name: expected …; got …. Try: …`.

    Example:
        >>> message("draws", "an integer of at least 1", 0, "pass draws=1")
        'draws: expected an integer of at least 1; got 0. Try: pass draws=1'
    """
    text = f"{name}: expected {expected}; got {got}"
    return f"{text}. Try: {hint}" if hint else text


def require(ok: bool, name: str, expected: str, got: object, hint: str = "") -> None:  # noqa: FBT001
    """Raise `ArgumentValueError` (a `ValueError`) unless `ok`.

    Args:
        ok: Whether the value is accepted.
        name: The argument.
        expected: What is accepted, in words.
        got: What came.
        hint: What to try; "" leaves it out.

    Raises:
        ArgumentValueError: `ok` is false; its text is that of `message`.

    Example:
        >>> require(2 > 1, "draws", "at least 2", 1)
        >>> require(False, "draws", "at least 2", 1)
        Traceback (most recent call last):
            ...
        kullback.core.errors.ArgumentValueError: draws: expected at least 2; got 1
    """
    if not ok:
        raise ArgumentValueError(message(name, expected, got, hint))


def require_type(value: object, types: type | tuple[type, ...], name: str, hint: str = "") -> None:
    """Raise `ArgumentTypeError` (a `TypeError`) unless `value` is an instance of `types`.

    Args:
        value: The argument's value.
        types: The type, or the types, that are accepted.
        name: The argument.
        hint: What to try; "" leaves it out.

    Raises:
        ArgumentTypeError: `value` has another type.

    Example:
        >>> require_type("3", int, "draws")
        Traceback (most recent call last):
            ...
        kullback.core.errors.ArgumentTypeError: draws: expected int; got str
    """
    if not isinstance(value, types):
        names = types if isinstance(types, tuple) else (types,)
        wanted = " or ".join(t.__name__ for t in names)
        raise ArgumentTypeError(message(name, wanted, type(value).__name__, hint))


def warn_caller(text: str, category: type[Warning]) -> None:
    """Warn at the line outside of this package that led here, however many calls lie between.

    Args:
        text: The warning.
        category: Its class.

    Example:
        >>> import pytest
        >>> with pytest.warns(UserWarning, match="coarse"):
        ...     warn_caller("logits: too coarse", UserWarning)
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def describe(array: Any) -> str:
    """Write an array's dtype and shape in a few characters, for messages.

    Args:
        array: Anything with `dtype` and `shape`: a tensor or a NumPy array.

    Returns:
        For instance "float32 [2, 3]".

    Example:
        >>> import numpy as np
        >>> describe(np.zeros((2, 3), dtype=np.float32))
        'float32 [2, 3]'
    """
    dtype = str(array.dtype).removeprefix("torch.")
    return f"{dtype} {list(array.shape)}"


def require_count(number: object, name: str, least: int = 1) -> int:
    """Require an integer, of Python or NumPy but no `bool`, of at least `least`, and return it.

    Args:
        number: What was given.
        name: The argument's, for the message.
        least: The smallest that is good.

    Returns:
        The number as an `int`.

    Raises:
        ArgumentTypeError: No integer.
        ArgumentValueError: A smaller one.

    Example:
        >>> require_count(1000, "draws")
        1000
        >>> require_count(2.5, "draws")
        Traceback (most recent call last):
            ...
        kullback.core.errors.ArgumentTypeError: draws: expected int; got float. Try: draws=2
    """
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        finite = isinstance(number, float) and math.isfinite(number)
        hint = f"{name}={number:.0f}" if finite else ""
        raise ArgumentTypeError(message(name, "int", type(number).__name__, hint))
    found = operator.index(number)
    require(found >= least, name, f"at least {least}", found)
    return found


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Args:
        module: The module's dotted name.
        extra: The extra of this package that installs it.

    Returns:
        The module.

    Raises:
        MissingExtraError: The module is missing; the text holds the install command.

    Example:
        >>> import_extra("json", "none").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; it comes with: pip install 'kullback[{extra}]'"
        ) from error


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def one_line(error: BaseException) -> str:
    """Return an exception's kind and the first line of what it says.

    Args:
        error: any exception.

    Returns:
        `Kind: words`.

    Example:
        >>> one_line(ValueError("no such data"))
        'ValueError: no such data'
        >>> one_line(KeyError())
        'KeyError: without a message'
    """
    words = (str(error).strip() or "without a message").splitlines()[0]
    return f"{type(error).__name__}: {words}"


def printable(text: str) -> str:
    r"""Write control characters, and those that reverse text, as escapes: names come from data.

    Args:
        text: Any text, for a terminal or a page.

    Returns:
        The text; line ends and tabs stay.

    Example:
        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
