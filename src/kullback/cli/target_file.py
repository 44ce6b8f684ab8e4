"""Reading `target.py:log_density`: a user's own file, run as Python, and what it defines.

Which to use: `read_target`. The file is the user's program: it is executed, with all that implies.
"""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.core import DataError, require

from .user_code import user_code

__all__ = ["TargetFile", "read_target"]


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A log density of one point and what its file says about it: `parameters`, `data`, prior."""

    path: Path
    name: str
    log_density: Callable[..., Any]
    parameters: Any
    data: Any = None
    log_prior: Callable[..., Any] | None = None


def read_target(text: str, *, dim: int | None = None) -> TargetFile:
    """Run a Python file and take its log density and its `parameters`.

    text: `file.py:function`; the function is `log_density` where it is left out. The file's
    `parameters` is a dimension or a mapping of names to shapes and constraints; dim stands in for
    it. Optional: `data` (tensors with rows) and `log_prior`.
    Errors: `DataError` for a file that is missing or fails (with its last line), or lacks a name;
    `ArgumentValueError` for text in another form.

    >>> _ = Path("normal.py").write_text("parameters = 1; log_density = lambda z: -z[0]**2")
    >>> read_target("normal.py").parameters
    1
    """
    place, _, function = text.rpartition(":")
    if not place or function.endswith(".py"):
        place, function = text, "log_density"
    require(place.endswith(".py"), "TARGET", "file.py:function", repr(text))
    path = Path(place)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Try: file.py:log_density")
    with user_code(path):
        found = runpy.run_path(str(path), run_name="kullback_target")
    if not callable(found.get(function)):
        names = [name for name, value in found.items() if callable(value) and name[0] != "_"]
        listed = f" (it has {', '.join(sorted(names)[:8])})" if names else ""
        raise DataError(f"{path}: no function {function!r}{listed}")
    parameters = found.get("parameters") if dim is None else dim
    if parameters is None:
        raise DataError(
            f"{path}: says nothing about its parameters. Try: parameters = 2 in the file, "
            'parameters = {"mu": (), "tau": constraints.positive}, or --dim 2'
        )
    both = (found.get("data"), found.get("log_prior"))
    return TargetFile(path, f"{path.name}:{function}", found[function], parameters, *both)
