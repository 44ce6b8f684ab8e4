"""Argument checks with one shape of message: `name: expected …; got …. Try …`."""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

from .errors import ArgumentTypeError, ArgumentValueError, MissingExtraError

__all__ = ["describe", "import_extra", "message", "require", "require_type", "warn_caller"]

_PACKAGE = __name__.partition(".")[0] + "."


def message(name: str, expected: str, got: object, hint: str = "") -> str:
    """Write the house's error sentence: what was expected, what came, what to try.

    >>> message("draws", "an integer of at least 1", 0, "pass draws=1")
    'draws: expected an integer of at least 1; got 0. Try: pass draws=1'
    """
    text = f"{name}: expected {expected}; got {got}"
    return f"{text}. Try: {hint}" if hint else text


def require(ok: bool, name: str, expected: str, got: object, hint: str = "") -> None:  # noqa: FBT001
    """Raise `ArgumentValueError` (a `ValueError`) unless `ok`.

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

    >>> import pytest
    >>> with pytest.warns(UserWarning, match="coarse"):
    ...     warn_caller("logits: too coarse", UserWarning)
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def describe(array: Any) -> str:
    """Say an array's type and shape in a few characters, for messages.

    >>> import numpy as np
    >>> describe(np.zeros((2, 3), dtype=np.float32))
    'float32 [2, 3]'
    """
    dtype = str(array.dtype).removeprefix("torch.")
    return f"{dtype} {list(array.shape)}"


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Raises `MissingExtraError` naming the extra and the install command.

    >>> import_extra("json", "none").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; it comes with: pip install 'kullback[{extra}]'"
        ) from error
