"""Files written whole or not at all; JSON and NumPy's files, checked as they are read.

Which to use: `write_atomic` for bytes or text, `write_json` and `read_json` for what a run
remembers, `read_npy` for the bytes of one array, `numpy_error` for an error of `numpy.load`.
A reader never sees half a file: either the old one is there, or the new one. Nothing is unpickled.
"""

import contextlib
import functools
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

from .errors import DataError, RunError

__all__ = [
    "numpy_error",
    "numpy_errors",
    "parse_json",
    "read_json",
    "read_npy",
    "write_atomic",
    "write_json",
]


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a half.

    The bytes go to a temporary file in the same folder, are forced to the disk (`fsync`) and take
    the name in one step (`os.replace`). On failure the temporary file is removed.

    Args:
        path: The file.
        data: Its new content; text is written as UTF-8.

    Raises:
        RunError: The system refuses (no space, no permission, no such folder).

    Example:
        >>> write_atomic("note.txt", "12 nats")
        >>> Path("note.txt").read_text()
        '12 nats'
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already when all went well
            temporary.unlink()
    _sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON, indented by two, in the order it has, through `write_atomic`.

    File names that are not valid UTF-8 survive as escapes.

    Args:
        path: The file.
        obj: Dictionaries, lists, strings, finite numbers, booleans and None.

    Raises:
        RunError: `obj` holds NaN or an infinity, which JSON lacks, or the system refuses.

    Example:
        >>> write_json("metrics.json", {"elbo": -89.4})
        >>> read_json("metrics.json")
        {'elbo': -89.4}
    """
    try:
        text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RunError(f"{path}: cannot be written as JSON: {error}") from error
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        What it holds, as Python objects.

    Raises:
        RunError: The file is missing, unreadable, not UTF-8, not JSON (NaN and Infinity are not)
            or nested too deeply; the text holds its name and, where there is one, the position.

    Example:
        >>> write_atomic("broken.json", '{"elbo": }')
        >>> read_json("broken.json")
        Traceback (most recent call last):
            ...
        kullback.core.errors.RunError: broken.json: not valid JSON: Expecting value at line 1 ...
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not valid JSON: byte {error.start} is not UTF-8") from error
    return parse_json(text, path)


def parse_json(text: str, name: str | Path, *, pairs: type | None = None) -> Any:
    """Read JSON text.

    Args:
        text: The JSON.
        name: Its source, for messages.
        pairs: A class made from the (name, value) pairs of each object, instead of a dictionary.

    Returns:
        What the text holds, as Python objects.

    Raises:
        RunError: As `read_json`.

    Example:
        >>> parse_json("[1, 2]", "standard input")
        [1, 2]
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise RunError(f"{name}: not valid JSON: {where}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name}: not valid JSON: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _sync_folder(folder: Path) -> None:
    """Make the new name durable where the system can do that; the file itself already is."""
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def numpy_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that NumPy's reader raises on damaged bytes.

    Their modules are imported here, since they are not needed to start the command.
    """
    import struct
    import tokenize
    import zipfile
    import zlib

    return (
        *(OSError, EOFError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError),
        *(RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
        tokenize.TokenError,
    )


def numpy_error(error: BaseException) -> str:
    """Return in words why NumPy could not read a file; never with the advice to load pickles.

    Args:
        error: What `numpy.load` raised.

    Returns:
        The reason in a few words: NumPy's own text, unless it mentions pickles.

    Example:
        >>> numpy_error(ValueError("Object arrays cannot be loaded when allow_pickle=False"))
        'it holds Python objects, which are never loaded'
    """
    text = str(error)
    if "pickle" not in text:
        return text or type(error).__name__
    objects = "Object arrays" in text
    return "it holds Python objects, which are never loaded" if objects else "not NumPy's format"


def read_npy(content: bytes, name: str) -> Any:
    """Return the array in the bytes of a `.npy` file.

    Args:
        content: The bytes.
        name: The file, for messages.

    Returns:
        The NumPy array.

    Raises:
        DataError: Damage, an archive of several arrays, or Python objects.

    Example:
        >>> read_npy(b"nonsense", "p.npy")
        Traceback (most recent call last):
            ...
        kullback.core.errors.DataError: p.npy: not an array of numbers: not NumPy's format
    """
    import numpy as np

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except numpy_errors() as error:
        raise DataError(f"{name}: not an array of numbers: {numpy_error(error)}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name}: an archive (.npz), not an array. Try: numpy.save of one array")
    return array
