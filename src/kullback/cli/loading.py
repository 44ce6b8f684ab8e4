"""A function of the user's, found by FILE.py:name or package.module:name."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from kullback.core import DataError, require

from .user_code import user_code

__all__ = ["function_at"]


def function_at(place: str) -> Callable[..., Any]:
    """Import the file or module of `place` and return its function.

    Errors: `ValueError` for a place that is not FILE.py:name; `DataError` for a file or module that
    is not there, or has no such function, with those that it has, or that fails when it is run.

    >>> function_at("math:sqrt")(9.0)
    3.0
    """
    source, _, name = place.rpartition(":")
    require(bool(source and name), "LOSS", "FILE.py:function or package.module:function", place)
    module = _file(Path(source)) if source.endswith(".py") else _module(source)
    found = getattr(module, name, None)
    if not callable(found):
        known = [n for n, f in vars(module).items() if callable(f) and not n.startswith("_")]
        known = [n for n in known if getattr(vars(module)[n], "__module__", "") == module.__name__]
        raise DataError(f"{source}: has no function {name!r}. It has: {', '.join(known) or 'none'}")
    return found  # type: ignore[no-any-return]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem], before = module, sys.modules.get(path.stem)
    sys.path.insert(0, str(path.parent.resolve()))  # as when Python runs a script
    try:
        with user_code(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        with user_code(None, traceback=True):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise DataError(f"{name}: no such module. Try: FILE.py:function") from error
        raise
    finally:
        sys.path.remove(str(Path.cwd()))
