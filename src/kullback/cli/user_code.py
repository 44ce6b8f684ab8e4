"""The user's own Python, run for a command: what it prints and how it fails.

Which to use: `user_code(path)` around everything that runs it.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from kullback.core import DataError, KullbackError

__all__ = ["user_code"]


@contextlib.contextmanager
def user_code(path: Path | None, *, traceback: bool = False) -> Iterator[None]:
    """Run a block that calls the user's code in `path`, which prints on standard error.

    traceback: let its own exceptions through as they are, for one who debugs it.
    Errors: `DataError` for an exception that went through the file, or one of its syntax, and for
    `sys.exit`. Others (a bug of this package, an interrupt) come through as they are.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KullbackError:
        raise
    except SystemExit as error:
        place = "" if path is None else f"{path}{_where(path, error)}: "
        raise DataError(f"{place}the code calls exit({error.code!r})") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if traceback or path is None:
            raise
        if not _where(path, error) and not isinstance(error, SyntaxError):
            raise  # not the user's
        first = (str(error).strip() or "without a message").splitlines()[0]
        words = f"{type(error).__name__}: {first}"
        raise DataError(f"{path}{_where(path, error)}: {words}") from error


def _where(path: Path, error: BaseException) -> str:
    """Return `, line 3`: the last line of the file that the error went through."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if _same(trace.tb_frame.f_code.co_filename, path):
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None and isinstance(error, SyntaxError) and _same(error.filename or "", path):
        line = error.lineno
    return "" if line is None else f", line {line}"


def _same(name: str, path: Path) -> bool:
    return name == str(path) or (bool(name) and Path(name).absolute() == path.absolute())
